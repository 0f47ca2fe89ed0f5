"""Trees that count visits: which child to look at next, and what is carried back.

    Q = W / N      W sum of the values that were carried back through a node, N its visits
    PUCT           Q + c · P · √N_parent / (1 + N)            AlphaMath, arXiv 2405.03553, c = 1.25
    UCT            Q + c · √(ln N_parent / N)                 rStar, arXiv 2408.06195, c = 2; ∞ where N = 0

One agent plays, so values are carried back as they are, with no change of sign. While several leaves are looked at
together, each that is under way counts as a visit that lost (`pending`), so that the next looks elsewhere; that is
taken back before the true value comes.

Children are sampled, and there is always one more that could be. Progressive widening lets their number grow with the
visits: a node of N visits has C · N^α of them (Coulom, "Computing Elo ratings of move patterns in the game of Go",
2007, where it is the logarithm of N; the power is of Couëtoux et al., "Continuous upper confidence trees", 2011).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maieutic.search.prefix import Prefix

#: (Q, P, N_parent, N) → how much a child asks to be looked at.
Rule = Callable[[float, float, int, int], float]


def puct(c: float = 1.25) -> Rule:
    """Q + c · P · √N_parent / (1 + N). At c = 0 greedy; for large c visits become proportional to P."""
    return lambda q, prior, parent, visits: q + c * prior * math.sqrt(parent) / (1 + visits)


def uct(c: float = 2.0) -> Rule:
    """Q + c · √(ln N_parent / N), infinite for what was never visited."""
    return lambda q, _prior, parent, visits: q + c * math.sqrt(math.log(parent) / visits) if visits else math.inf


@dataclass(eq=False)
class Node:
    """A beginning in the tree. `value` is what a judge says of it, `children` None until it was expanded, `sampled` how
    often a child was sampled, those that said the same included; `closed`: nothing new is to be found in it."""

    prefix: Prefix
    parent: Node | None = None
    prior: float = 1.0
    value: float | None = None
    number: int | None = None
    children: list[Node] | None = None
    visits: int = 0
    total: float = 0.0
    pending: int = 0
    sampled: int = 0
    closed: bool = False

    @property
    def q(self) -> float | None:
        """W / N; None where it was never visited."""
        return self.total / self.visits if self.visits else None

    @property
    def worth(self) -> float:
        """Q, or what the judge said of a node that was never visited."""
        return self.q if self.q is not None else self.value or 0.0

    def played(self, loss: float) -> float | None:
        """Q with what is under way counted as lost by so much."""
        visits = self.visits + self.pending
        return (self.total - loss * self.pending) / visits if visits else None


@dataclass(frozen=True)
class Widening:
    """When an expanded node wants a child more: while fewer than C · N^α were sampled. Samples count, not the different
    children among them: a node at which there is one thing to say would else be asked for another at every visit.

    >>> [math.ceil(1.0 * visits**0.5) for visits in (1, 2, 4, 5, 9, 10)]  # sampled after so many visits, C = 1, α = ½
    [1, 2, 2, 3, 3, 4]
    """

    factor: float
    power: float = 0.5

    def wanted(self, node: Node) -> bool:
        """Whether the node wants one more."""
        return node.children is not None and node.sampled < self.factor * node.visits**self.power

    def worthwhile(self, node: Node) -> bool:
        """Whether nothing is left to be found at its children, and one sample in four, or more, was a new one."""
        known = node.children or ()
        return bool(known) and node.sampled < 4 * len(known) and all(child.closed for child in known)


@dataclass(frozen=True)
class Descent:
    """How a path from the root to a leaf is chosen.

    first_play   Q of a child that was never visited: a number (0 where values are between −1 and 1), or None for its
                 parent's Q. Where values are between 0 and 1, 0 would keep it from ever being looked at.
    loss         what a visit under way counts for.
    revisit      whether a finished leaf is visited again and again; else it is closed after its first visit.
    widening     when a node that was expanded is given a further child; None: never.
    """

    rule: Rule
    first_play: float | None = None
    loss: float = 1.0
    revisit: bool = False
    widening: Widening | None = None

    def path(self, root: Node, draw: random.Random) -> list[Node] | None:
        """From the root to a node without children, or to one that wants a child more, ties at random; None where
        everything is closed."""
        if root.closed:
            return None
        path = [root]
        while path[-1].children is not None and not self.wider(path[-1]):
            path.append(self._best(path[-1], draw))
        return path

    def _best(self, node: Node, draw: random.Random) -> Node:
        able = [child for child in node.children or () if not child.closed]
        count = node.visits + node.pending
        unknown = self.first_play if self.first_play is not None else node.played(self.loss) or 0.0
        scores = []
        for child in able:
            q = child.played(self.loss)
            scores.append(self.rule(unknown if q is None else q, child.prior, count, child.visits + child.pending))
        top = max(scores)
        return draw.choice([child for child, score in zip(able, scores, strict=True) if score == top])

    def wider(self, node: Node) -> bool:
        """Whether the node wants a child more. The root does, too, where all else is closed."""
        if self.widening is None:
            return False
        return self.widening.wanted(node) or (node.parent is None and self.widening.worthwhile(node))

    def carry_back(self, path: Sequence[Node], value: float) -> None:
        """One simulation more through every node of the path, and what it leaves closed."""
        for node in path:
            node.visits += 1
            node.total += value
        if not self.revisit:
            self.close(path)

    def close(self, path: Sequence[Node]) -> None:
        """Close the end of the path where nothing can follow, and with the last of its children a parent that wants
        no other."""
        for node in reversed(path):
            node.closed = not self.wider(node) and all(child.closed for child in node.children or ())
            if not node.closed:
                return


def under_way(path: Sequence[Node], by: int) -> None:
    """Count the path as under way (1), or no longer (−1)."""
    for node in path:
        node.pending += by
