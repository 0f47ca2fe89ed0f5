"""Pairs: from groups to preferences, each a better and a worse rollout of one task.

    mode            pairs a group          which
    ------------------------------------------------------------------------------------------------------------
    one             1                      a random correct one and a random wrong one
    disjoint        min(c, w)              random, no completion twice
    all             c · w                  every correct one with every wrong one (`cap` them)
    hard            1                      the wrong one that most siblings agree on, else the likeliest wrong one
    length_matched  1                      the two whose lengths differ least
    shared_prefix   1                      the two that say the same for longest (arXiv 2406.18629 learns from the
                                           first step that differs: `after_prefix=True`)

*Correct* and *wrong* are a score's `correct` where the reward says it; where no score of a group does, the rollouts
with its highest reward and those with its lowest. A wrong rollout in which no answer was found, while answers were
found in its siblings, is *malformed*: what it teaches is form. It stands in only where a group has no wrong answer
that was parsed, and at most `max_malformed` of a step's pairs may be such.

Completions that say the same count once a side, and are never paired with each other. Nothing crosses groups. Both
rows of a pair bear its number as their `unit`; a completion in several pairs becomes several rows.

Letters: `c` correct and `w` wrong rollouts of a group.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

from maieutic.choose import choose
from maieutic.core.parts import Select, compares, select, shown
from maieutic.errors import DataError
from maieutic.types import CHOSEN, REJECTED, Example, Group, Rollout, Score


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scorable rollout of a group: one side of a pair to be."""

    rollout: Rollout
    score: Score
    votes: int = 0
    """How many rollouts of its group gave the same answer; 0 where none was read."""

    @property
    def said(self) -> tuple[object, ...]:
        """What it says: its words, or its tokens where it has none. Two that say the same are duplicates."""
        return tuple(self.rollout.text.split()) or self.tokens

    @property
    def tokens(self) -> tuple[int, ...]:
        """All tokens after the prompt."""
        return self.rollout.tokens[self.rollout.prompt_length :]


Side = list[Candidate]
Pair = tuple[Candidate, Candidate]
Mode = Callable[[Side, Side, random.Random], list[Pair]]


def one(right: Side, wrong: Side, draw: random.Random) -> list[Pair]:
    """A random pair."""
    return [(draw.choice(right), draw.choice(wrong))]


def disjoint(right: Side, wrong: Side, draw: random.Random) -> list[Pair]:
    """min(c, w) random pairs, no completion in two of them."""
    count = min(len(right), len(wrong))
    return list(zip(draw.sample(right, count), draw.sample(wrong, count), strict=True))


def every(right: Side, wrong: Side, _: random.Random) -> list[Pair]:
    """All c · w pairs."""
    return list(product(right, wrong))


def hard(right: Side, wrong: Side, draw: random.Random) -> list[Pair]:
    """A random correct one with the most tempting wrong one.

    That is the likeliest wrong one of those that give the group's plurality answer; of all of them where the plurality
    is right or nobody read answers. Likelihood is the sampler's, summed over the completion.
    """
    most = max(side.votes for side in (*right, *wrong))
    tempting = [side for side in wrong if side.votes == most] or wrong
    return [(draw.choice(right), max(tempting, key=lambda side: sum(side.rollout.logprobs)))]


def length_matched(right: Side, wrong: Side, _: random.Random) -> list[Pair]:
    """The pair with the least difference in length; of several, the first."""
    return [min(product(right, wrong), key=lambda pair: abs(_length(pair[0]) - _length(pair[1])))]


def shared_prefix(right: Side, wrong: Side, _: random.Random) -> list[Pair]:
    """The pair with the longest common beginning, in tokens; of several, the first."""
    return [max(product(right, wrong), key=lambda pair: common_prefix(pair[0].tokens, pair[1].tokens))]


#: Mode → how pairs are formed of the correct and the wrong rollouts of one group, none of them empty.
MODES: Mapping[str, Mode] = {
    "one": one,
    "disjoint": disjoint,
    "all": every,
    "hard": hard,
    "length_matched": length_matched,
    "shared_prefix": shared_prefix,
}


@select
def pairs(
    mode: str = "one",
    *,
    cap: int | None = None,
    max_malformed: float = 0.2,
    after_prefix: bool = False,
    seed: int = 0,
) -> Callable[[Sequence[Group]], list[Example]]:
    """Pairs of a correct and a wrong rollout of one task (see the top of the file).

    `cap`: at most so many pairs a group, drawn at random. `after_prefix`: only tokens after the first that differs are
    learnt from; the common beginning becomes context. (It cancels in DPO, whose log-probs are sums; in losses of mean
    log-probs it does not.) What is random is a function of (seed, group), so a resumed run draws the same.

    Raises ValueError for a mode that does not exist, `cap` below 1 and `max_malformed` outside [0, 1].
    """
    if mode not in MODES:
        raise ValueError(f"pairs: got mode {mode!r}; expected one of {', '.join(MODES)}")
    if cap is not None and cap < 1:
        raise ValueError(f"pairs: got cap={cap}; expected at least 1, or None for no limit")
    if not 0.0 <= max_malformed <= 1.0:
        raise ValueError(f"pairs: got max_malformed={max_malformed}; expected a share between 0 and 1")

    def formed(group: Group, right: Side, wrong: Side) -> list[Pair]:
        draw = random.Random(f"{seed}/{group.id}")
        made = MODES[mode](right, wrong, draw)
        return made if cap is None or len(made) <= cap else draw.sample(made, cap)

    @compares(2)
    def form(groups: Sequence[Group]) -> list[Example]:
        made: list[tuple[Group, Pair]] = []
        stand_ins: list[int] = []
        for group in groups:
            right, wrong, malformed = sides(group)
            if right and (wrong or malformed):
                more = formed(group, right, wrong or malformed)
                stand_ins += [] if wrong else range(len(made), len(made) + len(more))
                made += [(group, pair) for pair in more]
        draw = random.Random(f"{seed}/{[group.id for group in groups]}")
        left_out = set(_surplus(stand_ins, len(made), max_malformed, draw))
        return _rows([pair for at, pair in enumerate(made) if at not in left_out], after_prefix)

    return form


@select
def best_vs_worst(*, after_prefix: bool = False) -> Callable[[Sequence[Group]], list[Example]]:
    """One pair a group: the rollout with its highest reward and the one with its lowest, whatever is correct.

    For graded rewards. Of several with the same reward, the first. A group whose rewards are all equal gives nothing.
    """

    @compares(2)
    def form(groups: Sequence[Group]) -> list[Example]:
        return _rows([pair for group in groups for pair in _best_and_worst(group)], after_prefix)

    return form


@select
def given_pairs() -> Callable[[Sequence[Group]], list[Example]]:
    """Preferences that were given in data: groups of two, the chosen one with the higher reward.

    A pair whose sides say the same, or of which one has no reward (it was too long), gives nothing. Raises DataError
    for a group that is not of two.
    """

    @shown
    @compares(2)
    def form(groups: Sequence[Group]) -> list[Example]:
        for group in groups:
            if len(group.rollouts) != 2:
                raise DataError(
                    f"task {group.task.id!r}: got {len(group.rollouts)} recorded completions; expected a chosen and a "
                    "rejected one. Give preferences by `RecordedPairs(…)`"
                )
        return _rows([pair for group in groups for pair in _best_and_worst(group)])

    return form


#: Name → the select that forms pairs so.
PAIRINGS: Mapping[str, Callable[..., Select]] = {
    **{mode: partial(pairs, mode) for mode in MODES},
    "best_vs_worst": best_vs_worst,
    "given": given_pairs,
}

#: How an algorithm is told which pairs: a name, a name with options, or the select itself.
Pairing = str | Mapping[str, Any] | Select


def pairing(wanted: Pairing) -> Select:
    """`pairing("all")`, `pairing({"mode": "all", "cap": 4})`, or a select as it is.

    Raises UnknownName and ConfigError as `choose` does.
    """
    if isinstance(wanted, Select):
        return wanted
    given = {"mode": wanted} if isinstance(wanted, str) else dict(wanted)
    return choose("pairs", PAIRINGS, str(given.pop("mode", "one")), given)


def sides(group: Group) -> tuple[Side, Side, Side]:
    """The correct, the wrong and the malformed rollouts of a group, each completion once a side."""
    members = _candidates(group)
    if any(side.score.correct is not None for side in members):
        right = [side for side in members if side.score.correct is True]
        wrong = [side for side in members if side.score.correct is False]
    else:
        right, wrong = _extremes(members)
    # A reward that says which answer it read says so of what is correct; one that never does is not asked.
    read = any(side.votes for side in members)
    said = {side.said for side in right}
    wrong = [side for side in _distinct(wrong) if side.said not in said]
    malformed = [side for side in wrong if read and not side.votes]
    return _distinct(right), [side for side in wrong if side.votes or not read], malformed


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    return next((at for at, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _candidates(group: Group) -> Side:
    if group.hinted:
        return []  # another prompt's rollouts
    votes = Counter(score.answer for score in group.scores if score.answer is not None)
    return [
        Candidate(rollout, score, votes[score.answer or ""])
        for rollout, score in zip(group.rollouts, group.scores)
        if score.reward is not None and any(rollout.mask)
    ]


def _extremes(members: Side) -> tuple[Side, Side]:
    """Those with the highest reward and those with the lowest; none where all are equal."""
    rewards = [side.score.reward or 0.0 for side in members]
    if len(set(rewards)) < 2:
        return [], []
    best, worst = max(rewards), min(rewards)
    return (
        [side for side, reward in zip(members, rewards) if reward == best],
        [side for side, reward in zip(members, rewards) if reward == worst],
    )


def _distinct(members: Side) -> Side:
    """The first of each completion."""
    first: dict[tuple[object, ...], Candidate] = {}
    for side in members:
        first.setdefault(side.said, side)
    return list(first.values())


def _length(side: Candidate) -> int:
    return side.rollout.completion_length


def _best_and_worst(group: Group) -> list[tuple[Group, Pair]]:
    best, worst = _extremes(_candidates(group))
    return [(group, (best[0], worst[0]))] if best and best[0].said != worst[0].said else []


def _surplus(stand_ins: Sequence[int], total: int, share: float, draw: random.Random) -> list[int]:
    """Which stand-ins to leave out, so that at most `share` of what remains are stand-ins."""
    others = total - len(stand_ins)
    room = len(stand_ins) if share == 1.0 else int(share * others / (1.0 - share) + 1e-9)
    return draw.sample(stand_ins, max(0, len(stand_ins) - room))


def _rows(made: Sequence[tuple[Group, Pair]], after_prefix: bool = False) -> list[Example]:
    """Two rows a pair, chosen first; pairs of which `after_prefix` leaves a side without a chosen token are dropped."""
    rows: list[Example] = []
    for group, (right, wrong) in made:
        shared = common_prefix(right.tokens, wrong.tokens) if after_prefix else 0
        rollouts = (_masked(right.rollout, shared), _masked(wrong.rollout, shared))
        if all(any(rollout.mask) for rollout in rollouts):
            rows += [
                Example(rollout, side.score.reward or 0.0, group.id, len(rows) // 2, role, parts=side.score.parts)
                for rollout, side, role in zip(rollouts, (right, wrong), (CHOSEN, REJECTED), strict=True)
            ]
    return rows


def _masked(rollout: Rollout, shared: int) -> Rollout:
    """The rollout with the first `shared` tokens after its prompt as context."""
    if not shared:
        return rollout
    start = rollout.prompt_length + shared
    blank = (False,) * start
    return replace(rollout, mask=blank + rollout.mask[start:], logprobs=(0.0,) * start + rollout.logprobs[start:])
