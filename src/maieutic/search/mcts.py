"""Monte-Carlo tree search over steps: what looks good is looked at more, what was found is carried back.

    select a leaf by PUCT or UCT ─► sample its next steps ─► value the leaf ─► carry the value back along the path

    mcts   AlphaMath, arXiv 2405.03553: PUCT. The prior of a step is exp(mean log-prob of its tokens), not normalised
           over siblings, as in its code (`normalise` does): a sum would be the death of long steps. A critic or a
           process model says how good a beginning is.
    uct    rStar, arXiv 2408.06195: UCT, and the value of a leaf is what completions sampled from it are worth: their
           score, or without one the share of all attempts so far that give the same answer.

What differs from both: steps of one kind (the task's delimiter ends them) instead of rStar's five actions; children are
valued when they are made, all in one call, and the root, which a process model cannot judge, is worth the mean of its
children; a finished leaf is a simulation of its own, when it is first selected, and is then closed. So N(root) is the
number of simulations, and N of a node is one more than its children's sum, or the same while it is being revisited.

Children are sampled when a leaf is expanded, and no others, unless `widen` says so: then a node that a path comes
through is given a further child while fewer than widen · N^alpha were sampled (progressive widening, see `visits`). It
goes on from the same prefix, of which the engine still has the keys and values; what is newly chosen is paid for.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Chat, Sampler
from maieutic.search.found import Cost, Found, Question, Read
from maieutic.search.judges import Judge, judged
from maieutic.search.prefix import EMPTY, Growth, Log, Prefix, distinct
from maieutic.search.settling import CHOICES, Choice
from maieutic.search.spending import Purse
from maieutic.search.visits import Descent, Node, Widening, puct, uct, under_way
from maieutic.steps import DELIMITER, Delimiter


@dataclass(frozen=True)
class MCTS:
    """Tree search by PUCT.

    values        how good a beginning is, finished ones included (`judges`): from −1 to 1, as AlphaMath's, or 0 to 1.
    terminal      how good a finished completion is, where that is known better: ±1 by the answer, when data are made.
    simulations   at most, unless the budget ends or nothing is left to be found.
    children      steps sampled of each node; those that say the same are one. `depth` steps at most.
    c             how much is explored. `first_play`, `revisit`: see `Descent`; `normalise`: see the top.
    widen, alpha  C and α of progressive widening: a node has C · N^α children sampled, `children` at least. None: it
                  keeps those that were sampled first.
    leaves        looked at together, so that the engine has more to batch; a visit under way counts as a lost one.
    choose        among finished ones: "value" (the best mean), "visits" (the path most walked), "vote" (the most
                  frequent answer). Ties at random, by the question's key.

    `log` has a row a node with its value, prior, visits and Q: the targets that a critic is trained on.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    values: Judge = field(kw_only=True)
    terminal: Judge | None = field(default=None, kw_only=True)
    simulations: int = field(default=40, kw_only=True)
    children: int = field(default=5, kw_only=True)
    depth: int = field(default=32, kw_only=True)
    c: float = field(default=1.25, kw_only=True)
    first_play: float | None = field(default=None, kw_only=True)
    revisit: bool = field(default=False, kw_only=True)
    normalise: bool = field(default=False, kw_only=True)
    widen: float | None = field(default=None, kw_only=True)
    alpha: float = field(default=0.5, kw_only=True)
    leaves: int = field(default=1, kw_only=True)
    choose: str = field(default="value", kw_only=True)
    delimiter: Delimiter = field(default=DELIMITER, kw_only=True)
    step_tokens: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "mcts"

    def __post_init__(self) -> None:
        _check(self)

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        descent = Descent(puct(self.c), self.first_play, revisit=self.revisit, widening=_widening(self, question))
        growth = Growth(self.chat, self.delimiter, self.step_tokens, self.temperature)
        tree = Tree(Walk(self, growth, descent), question, Purse(self.sampler, budget))
        await tree.search(_ByJudge(self.values, self.terminal, self.normalise))
        return tree.found(CHOICES[self.choose])


@dataclass(frozen=True)
class UCT:
    """Tree search by UCT, valued by `rollouts` completions from each leaf, which are attempts too.

    `score` says how good a completion is (None: the share of all attempts so far that give its answer). Else as `MCTS`.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    score: Judge | None = field(default=None, kw_only=True)
    rollouts: int = field(default=1, kw_only=True)
    simulations: int = field(default=16, kw_only=True)
    children: int = field(default=3, kw_only=True)
    depth: int = field(default=5, kw_only=True)
    c: float = field(default=2.0, kw_only=True)
    widen: float | None = field(default=None, kw_only=True)
    alpha: float = field(default=0.5, kw_only=True)
    leaves: int = field(default=1, kw_only=True)
    choose: str = field(default="vote", kw_only=True)
    delimiter: Delimiter = field(default=DELIMITER, kw_only=True)
    step_tokens: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "uct"

    def __post_init__(self) -> None:
        _check(self)
        if self.rollouts < 1:
            raise ConfigError(f"uct: got rollouts={self.rollouts}; expected at least 1, by which a leaf is valued")

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        growth = Growth(self.chat, self.delimiter, self.step_tokens, self.temperature)
        descent = Descent(uct(self.c), widening=_widening(self, question))
        tree = Tree(Walk(self, growth, descent), question, Purse(self.sampler, budget))
        await tree.search(_ByRollouts(self.score, self.rollouts))
        return tree.found(CHOICES[self.choose])


def _check(search: MCTS | UCT) -> None:
    if min(search.simulations, search.children, search.depth, search.leaves) < 1 or search.c < 0:
        raise ConfigError(
            f"{search.name}: got simulations={search.simulations}, children={search.children}, depth={search.depth}, "
            f"leaves={search.leaves}, c={search.c:g}; expected at least 1 each, and c of 0 or more"
        )
    if (search.widen is not None and not 0 < search.widen < math.inf) or not 0 < search.alpha <= 1:
        raise ConfigError(
            f"{search.name}: got widen={search.widen}, alpha={search.alpha:g}; expected widen above 0 (or None) and "
            "alpha above 0 and at most 1"
        )
    if search.choose not in CHOICES:
        raise UnknownName("way to choose an answer", search.choose, CHOICES)


def _widening(search: MCTS | UCT, question: Question) -> Widening | None:
    temperature = question.sampling.temperature if search.temperature is None else search.temperature
    if search.widen is None or temperature == 0:  # at 0 a further child says what the first one said
        return None
    return Widening(search.widen, search.alpha)


@dataclass(frozen=True)
class Walk:
    """What a tree is searched with: numbers of the search, how steps are sampled, how a leaf is selected."""

    search: MCTS | UCT
    growth: Growth
    descent: Descent


@dataclass(eq=False)
class Attempt:
    """A completion that was found, at a node of the tree or (None) sampled from one; and what it is worth."""

    prefix: Prefix
    node: Node | None = None
    score: float | None = None

    @property
    def worth(self) -> float:
        """Its score, or its node's."""
        return self.score if self.score is not None else self.node.worth if self.node is not None else 0.0


class Tree:
    """One search of one problem."""

    def __init__(self, walk: Walk, question: Question, purse: Purse) -> None:
        self.walk, self.question, self.purse = walk, question, purse
        self.root = Node(EMPTY)
        self.attempts: list[Attempt] = []
        self.log = Log()
        self.draw = random.Random(f"{question.sampling.key}/ties")

    async def search(self, valued: Valued) -> None:
        """Simulate until there were enough, the budget is spent, or everything is closed."""
        while self.root.visits < self.walk.search.simulations and self.purse.rest and not self.root.closed:
            left = self.walk.search.simulations - self.root.visits
            paths = await self._select(min(self.walk.search.leaves, left), valued)
            leaves = [path[-1] for path in paths]
            await valued.before(self, leaves)
            await self._expand(leaves)
            values = await valued.of(self, leaves)
            for path in paths:
                under_way(path, -1)
            for path, value in zip(paths, values, strict=True):
                if value is not None:
                    self.walk.descent.carry_back(path, value)
            if all(value is None for value in values):
                break
        await valued.after(self)

    async def _select(self, count: int, valued: Valued) -> list[list[Node]]:
        paths: list[list[Node]] = []
        while len(paths) < count:
            path = await self._descend(valued)
            if path is None or path[-1].pending:  # every other leaf is under way or closed
                break
            under_way(path, 1)
            paths.append(path)
        return paths

    async def _descend(self, valued: Valued) -> list[Node] | None:
        """From the root to a leaf. What wants a child more on the way is given one, as long as there are tokens."""
        descent = self.walk.descent
        while (path := descent.path(self.root, self.draw)) is not None and path[-1].children is not None:
            if not self.purse.rest:
                return None
            node = path[-1]
            asked = [(node.prefix, 1, f"{node.number}/wider {node.sampled}")]
            [family] = await self.walk.growth.grow(self.purse, self.question, asked)
            await valued.later(self, node, self._adopt(node, family))
            descent.close(path)
        return path

    async def _expand(self, leaves: Sequence[Node]) -> None:
        search = self.walk.search
        open_ = [leaf for leaf in leaves if leaf.prefix.finish is None and leaf.prefix.depth < search.depth]
        grown = await self.walk.growth.grow(
            self.purse, self.question, [(leaf.prefix, search.children, f"{leaf.number}") for leaf in open_]
        )
        for leaf, family in zip(open_, grown, strict=True):
            self._adopt(leaf, family)

    def _adopt(self, node: Node, family: Sequence[Prefix]) -> list[Node]:
        """The children that say something new, now the node's."""
        known = [child.prefix for child in node.children or ()]
        made = []
        for prefix in distinct([*known, *family], lambda each: each)[len(known) :]:
            child = Node(prefix, node, prefix.step_probability)
            child.number = self.log.add(prefix, node.number, node.prefix.text, prior=child.prior)
            made.append(child)
            if prefix.finish is not None:
                self.attempts.append(Attempt(prefix, child))
        node.sampled += len(family)
        if family:
            node.children = [*(node.children or ()), *made]
        return made

    def found(self, choose: Choice) -> Found:
        """The attempts as candidates; where nothing ended the longest beginnings: what is left open by a short one, and
        not yet wrong, would else win."""
        nodes = _nodes(self.root)
        longest = max(node.prefix.depth for node in nodes)
        attempts = self.attempts or [Attempt(node.prefix, node) for node in nodes if node.prefix.depth == longest]
        done = [each for each in attempts if each.prefix.finish is not None] or attempts
        candidates = [each.prefix.candidate(self.walk.search.read, each.worth) for each in done]
        for node in nodes:
            if node.number is not None:
                self.log.note(node.number, value=node.value, visits=node.visits, q=node.q)
        chosen = choose(self.root, self.draw, candidates, [each.node for each in done])
        return Found(tuple(candidates), chosen, self.purse.cost, self.log.told())


def _nodes(root: Node) -> list[Node]:
    found, waiting = [], [root]
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting.extend(reversed(node.children or ()))
    return found


class Valued(Protocol):
    """Says what leaves are worth."""

    async def before(self, tree: Tree, leaves: Sequence[Node]) -> None:
        """What must be known before they are expanded."""
        ...

    async def of(self, tree: Tree, leaves: Sequence[Node]) -> list[float | None]:
        """A value each, now that they are expanded; None of one that the budget left nothing for."""
        ...

    async def later(self, tree: Tree, parent: Node, made: Sequence[Node]) -> None:
        """What must be known of children that their parent was given after it was expanded."""
        ...

    async def after(self, tree: Tree) -> None:
        """What is to be known of the attempts when the search has ended."""
        ...


@dataclass(frozen=True)
class _ByJudge:
    """A judge looks at children when they are made."""

    values: Judge
    terminal: Judge | None
    normalise: bool

    async def before(self, tree: Tree, leaves: Sequence[Node]) -> None:
        """See `Valued`: nothing."""

    async def after(self, tree: Tree) -> None:
        """See `Valued`: nothing."""

    async def of(self, tree: Tree, leaves: Sequence[Node]) -> list[float | None]:
        """See `Valued`."""
        await self._judge(tree, [child for leaf in leaves for child in leaf.children or () if child.value is None])
        for leaf in leaves:
            self._share(leaf)
        return [self._worth(tree, leaf) for leaf in leaves]

    async def later(self, tree: Tree, parent: Node, made: Sequence[Node]) -> None:
        """See `Valued`."""
        await self._judge(tree, made)
        self._share(parent)

    async def _judge(self, tree: Tree, fresh: Sequence[Node]) -> None:
        ends = [child for child in fresh if child.prefix.finish is not None and self.terminal is not None]
        others = [child for child in fresh if child not in ends]
        for judge, nodes in ((self.values, others), (self.terminal or self.values, ends)):
            said = await judged(judge, tree.question.prompt, [node.prefix.tokens for node in nodes])
            tree.purse.cost += Cost(judged=len(nodes))
            for node, value in zip(nodes, said, strict=True):
                node.value = value

    def _share(self, parent: Node) -> None:
        """Priors that add up to 1, where they are to."""
        if self.normalise and parent.children:
            total = math.fsum(child.prefix.step_probability for child in parent.children)
            for child in parent.children:
                child.prior = child.prefix.step_probability / total

    def _worth(self, tree: Tree, leaf: Node) -> float | None:
        over = leaf.prefix.finish is not None or leaf.prefix.depth >= tree.walk.search.depth
        if not over and leaf.children is None:
            return None
        if leaf.value is None:
            known = [child.value or 0.0 for child in leaf.children or ()]
            leaf.value = math.fsum(known) / len(known)
        return leaf.value


@dataclass(frozen=True)
class _ByRollouts:
    """Completions are sampled from each leaf, which is worth their mean; a finished leaf is one by itself."""

    score: Judge | None
    rollouts: int
    sampled: dict[Node, list[Attempt]] = field(default_factory=dict)

    async def before(self, tree: Tree, leaves: Sequence[Node]) -> None:
        """See `Valued`."""
        open_ = [leaf for leaf in leaves if leaf.prefix.finish is None]
        asked = [(leaf.prefix, self.rollouts, f"{leaf.number}/rollout") for leaf in open_]
        grown = await tree.walk.growth.grow(tree.purse, tree.question, asked, whole=True)
        self.sampled.update({leaf: [each for each in tree.attempts if each.node is leaf] for leaf in leaves})
        for leaf, family in zip(open_, grown, strict=True):
            self.sampled[leaf] = [Attempt(prefix) for prefix in family]
            tree.attempts += self.sampled[leaf]

    async def of(self, tree: Tree, leaves: Sequence[Node]) -> list[float | None]:
        """See `Valued`."""
        await self._judge(tree, [each for leaf in leaves for each in self.sampled[leaf]])
        for leaf in leaves:
            own = [each.worth for each in self.sampled[leaf]]
            leaf.value = math.fsum(own) / len(own) if own else None
        return [leaf.value for leaf in leaves]

    async def later(self, tree: Tree, parent: Node, made: Sequence[Node]) -> None:
        """See `Valued`: nothing."""

    async def after(self, tree: Tree) -> None:
        """See `Valued`: shares of all that was found, and scores of what was never visited."""
        await self._judge(tree, [each for each in tree.attempts if self.score is None or each.score is None])

    async def _judge(self, tree: Tree, attempts: Sequence[Attempt]) -> None:
        if self.score is None:
            answers = [tree.walk.search.read(each.prefix.text) for each in tree.attempts]
            said = [share(tree.walk.search.read(each.prefix.text), answers) for each in attempts]
        else:
            said = await judged(self.score, tree.question.prompt, [each.prefix.tokens for each in attempts])
            tree.purse.cost += Cost(judged=len(attempts))
        for each, value in zip(attempts, said, strict=True):
            each.score = value


def share(answer: object, answers: Sequence[object]) -> float:
    """The share of attempts that give this answer; 0 for none."""
    return 0.0 if answer is None else answers.count(answer) / len(answers)
