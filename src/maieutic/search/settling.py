"""Which of the attempts of a tree that counts visits it answers with.

    value    the best mean, among those that have an answer
    visits   the end of the path most walked
    vote     the most frequent answer; of the attempts that give it the best

Ties at random, by the question's key.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from maieutic.core.selection import plurality
from maieutic.search.found import Candidate
from maieutic.search.visits import Node

#: (root, draws of ties, candidates, the node of each or None) → the index of the one to answer with.
Choice = Callable[[Node, random.Random, Sequence[Candidate], Sequence[Node | None]], int]


def _by_value(_root: Node, draw: random.Random, candidates: Sequence[Candidate], _nodes: Sequence[Node | None]) -> int:
    able = [i for i, each in enumerate(candidates) if each.answer is not None] or list(range(len(candidates)))
    top = max(candidates[i].score or 0.0 for i in able)
    return draw.choice([i for i in able if (candidates[i].score or 0.0) == top])


def _by_visits(root: Node, draw: random.Random, candidates: Sequence[Candidate], nodes: Sequence[Node | None]) -> int:
    place = {node: i for i, node in enumerate(nodes) if node is not None}
    leading = set(place)
    for node in place:
        above = node.parent
        while above is not None:
            leading.add(above)
            above = above.parent
    node = root
    while node not in place:
        able = [child for child in node.children or () if child in leading]
        if not able:
            return _by_value(root, draw, candidates, nodes)
        top = max((child.visits, child.worth) for child in able)
        node = draw.choice([child for child in able if (child.visits, child.worth) == top])
    return place[node]


def _by_vote(root: Node, draw: random.Random, candidates: Sequence[Candidate], nodes: Sequence[Node | None]) -> int:
    winner = plurality([each.answer for each in candidates])
    able = [i for i, each in enumerate(candidates) if each.answer == winner]
    return able[_by_value(root, draw, [candidates[i] for i in able], [nodes[i] for i in able])]


#: How the answer is chosen among the attempts.
CHOICES: Mapping[str, Choice] = MappingProxyType({"value": _by_value, "visits": _by_visits, "vote": _by_vote})
