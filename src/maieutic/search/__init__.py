"""Reasoning at inference: each method is a Sampler around a Sampler, and counts what it spends."""

from maieutic.search.found import Candidate, Cost, Found, Question, Search, Searched
from maieutic.search.methods import SEARCHES, make_search, options, requires

__all__ = [
    "SEARCHES", "Candidate", "Cost", "Found", "Question", "Search", "Searched", "make_search", "options", "requires",
]  # fmt: skip
