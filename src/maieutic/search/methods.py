"""Searches by name, for configs and command lines.

    search = make_search("best_of_n", sampler, chat, read, samples=16, score=of_model(model))

A search is called with a sampler, a chat and what reads answers, and with options by keyword. Options without a default
are what it cannot do without: `requires("best_of_n")` is {"score"}.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Chat, Sampler
from maieutic.search.beam import Beam
from maieutic.search.best_of_n import BestOfN
from maieutic.search.budget import Wait
from maieutic.search.found import Read, Search
from maieutic.search.mcts import MCTS, UCT
from maieutic.search.particles import Particles
from maieutic.search.refine import Refine, RefineOracle, RefineVerified
from maieutic.search.tree import DepthFirst, Thoughts
from maieutic.search.vote import Greedy, Vote, WeightedVote

#: Name → `(sampler, chat, read, *, options) -> Search`.
SEARCHES: Mapping[str, Callable[..., Search]] = MappingProxyType(
    {
        made.name: made
        for made in (
            Greedy,
            Vote,
            WeightedVote,
            BestOfN,
            Beam,
            Particles,
            Thoughts,
            DepthFirst,
            MCTS,
            UCT,
            Wait,
            Refine,
            RefineVerified,
            RefineOracle,
        )
    }
)


def make_search(name: str, sampler: Sampler, chat: Chat, read: Read, **given: Any) -> Search:
    """The search of that name. Raises UnknownName for one that there is not, or for an option that it has not, and
    ConfigError where something is missing that it cannot do without."""
    known = options(name)
    for key in given:
        if key not in known:
            raise UnknownName(f"option of the search {name}", key, known)
    if missing := requires(name) - given.keys():
        raise ConfigError(
            f"search {name}: got no {' and no '.join(sorted(missing))}; expected who judges "
            "(a reward model or a critic; `maieutic.search.judges` makes judges of them)"
        )
    return SEARCHES[name](sampler, chat, read, **given)


def options(name: str) -> dict[str, Any]:
    """What can be said of the search of that name, and the defaults (`inspect.Parameter.empty` for none)."""
    if name not in SEARCHES:
        raise UnknownName("search", name, SEARCHES)
    parameters = inspect.signature(SEARCHES[name]).parameters.values()
    return {each.name: each.default for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY}


def requires(name: str) -> frozenset[str]:
    """The options that a search cannot do without: "score" (of completions), "values" (of their beginnings), …"""
    return frozenset(key for key, default in options(name).items() if default is inspect.Parameter.empty)
