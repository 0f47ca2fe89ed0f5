"""Reasoning at inference: each method is a Sampler around a Sampler, and counts what it spends."""

from maieutic.search.found import Candidate, Cost, Found, Question, Search, Searched

__all__ = ["Candidate", "Cost", "Found", "Question", "Search", "Searched"]
