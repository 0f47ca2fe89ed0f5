"""Tree of Thoughts (arXiv 2305.10601): states of a solution, which the model itself proposes and judges.

    generate ─► evaluate ─► select            breadth first: the best of a level go on
         └───── again from the best ◄──┘      depth first: the best child first, back where nothing is worth it

    generate   sample     steps of the completion, tokens that the model chose in their place
               propose    one call returns several next steps; the solution is put together of them, so that none of its
                          tokens was chosen in its place (`mask` False)
    evaluate   value      several verdicts on each state, as words that count for something, summed; a state is asked
                          about once, however often it comes up, and counts for 0 when it comes up twice in a step
               vote       several votes for the best of the states
               judge      a critic or reward model: `values`
    select     greedy     the best; the first of equals
               sample     drawn by value, without putting back (the paper's code puts back)

Proposals and verdicts are tokens that the model chooses: the budget pays for them.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import ClassVar

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Chat, Sampler
from maieutic.search.found import Cost, Found, Question, Read
from maieutic.search.judges import Judge, judged
from maieutic.search.prefix import EMPTY, Growth, Log, Prefix, distinct
from maieutic.search.spending import Ask, Purse
from maieutic.search.thinking import Plain, Thinking
from maieutic.steps import DELIMITER, Delimiter
from maieutic.types import Finish, Message


@dataclass(frozen=True)
class Thoughts:
    """Breadth first: of each of `keep` states `children` (when they are sampled), of all these the best `keep`.

    thinking      what the model is asked (see `thinking`). `judgements` verdicts on each state, or votes.
    generate, evaluate, select   see the top; `values` is the judge of "judge".
    depth         steps at most.
    judge_tokens, propose_tokens   of a verdict or vote, and of a list of proposals, at most.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    thinking: Thinking = field(default_factory=Plain, kw_only=True)
    generate: str = field(default="sample", kw_only=True)
    evaluate: str = field(default="value", kw_only=True)
    select: str = field(default="greedy", kw_only=True)
    values: Judge | None = field(default=None, kw_only=True)
    keep: int = field(default=5, kw_only=True)
    children: int = field(default=5, kw_only=True)
    judgements: int = field(default=3, kw_only=True)
    depth: int = field(default=8, kw_only=True)
    judge_tokens: int = field(default=64, kw_only=True)
    propose_tokens: int = field(default=256, kw_only=True)
    delimiter: Delimiter = field(default=DELIMITER, kw_only=True)
    step_tokens: int | None = field(default=None, kw_only=True)
    temperature: float | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "thoughts"

    def __post_init__(self) -> None:
        _check(self)

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        mind = Mind(self, question, Purse(self.sampler, budget))
        draw = random.Random(f"{question.sampling.key}/select")
        live, ended = [Thought(EMPTY)], list[Thought]()
        for _ in range(self.depth):
            made = await mind.think(live)
            if not made:
                break
            best = SELECT[self.select](made, self.keep, draw)
            for each in best:
                mind.log.note(each.node, kept=True)
            ended += [each for each in best if each.prefix.finish is not None]
            live = [each for each in best if each.prefix.finish is None]
            if not live or not mind.purse.rest:
                break
        return mind.found(ended, live)


@dataclass(frozen=True)
class DepthFirst(Thoughts):
    """Depth first: the best child of the latest state first; children below `threshold` are not gone into, and where
    there are none the search goes back. It ends after `expansions`, or with `solutions` whole solutions."""

    threshold: float = field(default=0.0, kw_only=True)
    expansions: int = field(default=100, kw_only=True)
    solutions: int = field(default=1, kw_only=True)
    name: ClassVar[str] = "thoughts_dfs"

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`."""
        mind = Mind(self, question, Purse(self.sampler, budget))
        waiting, ended, cut = [Thought(EMPTY)], list[Thought](), list[Thought]()
        expanded = 0
        while waiting and len(ended) < self.solutions:
            thought = waiting.pop()
            if thought.prefix.finish is not None:
                ended.append(thought)
                continue
            cut.append(thought)
            if thought.prefix.depth >= self.depth or expanded >= self.expansions or not mind.purse.rest:
                continue
            expanded += 1
            made = await mind.think([thought])
            able = sorted((each for each in made if each.value >= self.threshold), key=lambda each: -each.value)
            for each in able:
                mind.log.note(each.node, kept=True)
            waiting += reversed(able)
        return mind.found(ended, cut[1:] or cut)


def _check(search: Thoughts) -> None:
    for name, table in (("generate", GENERATE), ("evaluate", EVALUATE), ("select", SELECT)):
        if getattr(search, name) not in table:
            raise UnknownName(f"way to {name} thoughts", getattr(search, name), table)
    counts = ("keep", "children", "judgements", "depth", "judge_tokens", "propose_tokens")
    if min(getattr(search, name) for name in counts) < 1:
        said = ", ".join(f"{name}={getattr(search, name)}" for name in counts)
        raise ConfigError(f"{search.name}: got {said}; expected at least 1 each")
    if EVALUATE[search.evaluate] is _by_judge and search.values is None:
        raise ConfigError(f"{search.name}: got evaluate='judge' and no values; expected a critic or reward model")


@dataclass
class Thought:
    """A state, its value and its number in the log."""

    prefix: Prefix
    parent: Thought | None = None
    value: float = 0.0
    node: int = -1


class Mind:
    """One search of one problem: what was asked, what was judged already."""

    def __init__(self, search: Thoughts, question: Question, purse: Purse) -> None:
        self.search, self.question, self.purse = search, question, purse
        self.growth = Growth(search.chat, search.delimiter, search.step_tokens, search.temperature)
        said = [message.content for message in question.messages if message.role == "user"]
        self.problem = said[-1] if said else search.chat.decode(question.prompt)
        self.known: dict[str, float] = {}
        self.log = Log()
        self.turn = 0

    async def think(self, thoughts: Sequence[Thought]) -> list[Thought]:
        """The children of these thoughts, valued; none where the budget has ended. What says the same as one before it
        is in the log with a value of 0, and does not go on."""
        self.turn += 1
        made = await GENERATE[self.search.generate](self, thoughts)
        fresh = distinct(made, lambda each: each.prefix)
        for each, value in zip(fresh, await EVALUATE[self.search.evaluate](self, fresh), strict=True):
            each.value = value
        for each in made:
            above = each.parent if each.parent is not None and each.parent.node >= 0 else None
            before, number = ("", None) if above is None else (above.prefix.text, above.node)
            each.node = self.log.add(each.prefix, number, before, value=each.value, kept=False)
        return fresh

    async def ask(self, prompts: Sequence[str], what: str, tokens: int, n: int) -> list[list[str]]:
        """Replies to prompts of one message, `n` each, fewer where the budget ends."""
        sampling = self.question.sampling
        how = replace(
            sampling,
            max_tokens=tokens,
            temperature=sampling.temperature if self.search.temperature is None else self.search.temperature,
            interject=None,
            interject_ids=frozenset(),
            not_first=frozenset(),
            until=None,
        )
        keyed = [replace(how, key=f"{how.key}/{self.turn}/{what}/{i}") for i in range(len(prompts))]
        written = [self.search.chat.prompt((Message("user", text),)) for text in prompts]
        made = await self.purse.sample([Ask(*each, n) for each in zip(written, keyed, strict=True)])
        return [[self.search.chat.decode(each.tokens) for each in some] for some in made]

    def found(self, ended: Sequence[Thought], cut: Sequence[Thought]) -> Found:
        """The states as candidates; the best of the whole solutions, or of what was cut where there is none."""
        able = [*ended, *cut]
        chosen = max(range(len(ended) or len(able)), key=lambda i: able[i].value)
        candidates = tuple(each.prefix.candidate(self.search.read, each.value) for each in able)
        return Found(candidates, chosen, self.purse.cost, self.log.told())


async def _sampled(mind: Mind, thoughts: Sequence[Thought]) -> list[Thought]:
    asked = [(each.prefix, mind.search.children, f"{mind.turn}/{i}") for i, each in enumerate(thoughts)]
    grown = await mind.growth.grow(mind.purse, mind.question, asked)
    return [Thought(child, parent) for parent, family in zip(thoughts, grown, strict=True) for child in family]


async def _proposed(mind: Mind, thoughts: Sequence[Thought]) -> list[Thought]:
    thinking, chat = mind.search.thinking, mind.search.chat
    prompts = [thinking.proposing(mind.problem, each.prefix.text) for each in thoughts]
    replies = await mind.ask(prompts, "propose", mind.search.propose_tokens, 1)
    return [
        Thought(_written(text, parent.prefix, chat, thinking.over(mind.problem, text)), parent)
        for parent, said in zip(thoughts, replies, strict=True)
        for reply in said
        for text in thinking.proposed(mind.problem, parent.prefix.text, reply)
    ]


def _written(text: str, parent: Prefix, chat: Chat, over: bool) -> Prefix:
    """A state that was put together of what was proposed."""
    tokens = chat.encode(text)
    blank = (False,) * len(tokens)
    finish = Finish.STOP if over else None
    return Prefix(tokens, blank, (0.0,) * len(tokens), text, parent.depth + 1, len(parent.tokens), finish)


async def _by_value(mind: Mind, thoughts: Sequence[Thought]) -> list[float]:
    fresh = [text for text in dict.fromkeys(each.prefix.text for each in thoughts) if text not in mind.known]
    thinking, search = mind.search.thinking, mind.search
    prompts = [thinking.valuing(mind.problem, text) for text in fresh]
    replies = await mind.ask(prompts, "value", search.judge_tokens, search.judgements)
    heard = [(text, said) for text, said in zip(fresh, replies, strict=True) if said]
    mind.known.update({text: thinking.valued(said) for text, said in heard})
    mind.purse.cost += Cost(judged=len(heard))
    return [mind.known.get(each.prefix.text, 0.0) for each in thoughts]


async def _by_vote(mind: Mind, thoughts: Sequence[Thought]) -> list[float]:
    texts = list(dict.fromkeys(each.prefix.text for each in thoughts))
    if not texts:
        return []
    thinking, search = mind.search.thinking, mind.search
    prompt = thinking.voting(mind.problem, texts)
    [replies] = await mind.ask([prompt], "vote", search.judge_tokens, search.judgements)
    votes = [thinking.voted(reply, len(texts)) for reply in replies]
    mind.purse.cost += Cost(judged=len(texts))
    counts = {text: float(votes.count(i)) for i, text in enumerate(texts)}
    return [counts.pop(each.prefix.text, 0.0) for each in thoughts]


async def _by_judge(mind: Mind, thoughts: Sequence[Thought]) -> list[float]:
    fresh = {each.prefix.text: each.prefix.tokens for each in thoughts if each.prefix.text not in mind.known}
    assert mind.search.values is not None, "seen to by _check"
    said = await judged(mind.search.values, mind.question.prompt, list(fresh.values()))
    mind.known.update(zip(fresh, said, strict=True))
    mind.purse.cost += Cost(judged=len(fresh))
    return [mind.known[each.prefix.text] for each in thoughts]


def _greedy(made: Sequence[Thought], keep: int, _draw: random.Random) -> list[Thought]:
    return sorted(made, key=lambda each: -each.value)[:keep]


def _drawn(made: Sequence[Thought], keep: int, draw: random.Random) -> list[Thought]:
    """By value, without putting back; those of no value only when no others are left."""
    left, chosen = list(made), list[Thought]()
    while left and len(chosen) < keep:
        weights = [max(0.0, each.value) for each in left]
        at = draw.choices(range(len(left)), weights if any(weights) else None)[0]
        chosen.append(left.pop(at))
    return chosen


Generate = Callable[[Mind, Sequence[Thought]], Awaitable[list[Thought]]]
Evaluate = Callable[[Mind, Sequence[Thought]], Awaitable[list[float]]]
Select = Callable[[Sequence[Thought], int, random.Random], list[Thought]]
GENERATE: Mapping[str, Generate] = MappingProxyType({"sample": _sampled, "propose": _proposed})
EVALUATE: Mapping[str, Evaluate] = MappingProxyType({"value": _by_value, "vote": _by_vote, "judge": _by_judge})
SELECT: Mapping[str, Select] = MappingProxyType({"greedy": _greedy, "sample": _drawn})
