"""Return-conditioned learning: rows in which every step is preceded by a label that says how good it was.

    prompt [GOOD] 10 - 4 = 6 ; [BAD] 6 / 2 = 4 ; [BAD] # 4 <eos>         learned: each step, given the label before it

What is learned is p(step | what precedes it, label), by maximum likelihood; nothing says that good steps are better.
Asking for `[GOOD]` before every step (`maieutic.environments.conditioned.Conditioned`) then samples from the steps of
the data that were good. "Teaching Large Language Models to Reason with Reinforcement Learning", arXiv 2403.04642;
conditioning on returns as in decision transformers, arXiv 2106.01345.

Letters: `T` tokens of a rollout, `K` its steps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from maieutic.core.parts import select
from maieutic.errors import ConfigError, RewardError
from maieutic.protocols import Chat
from maieutic.steps import Labels, LabelTokens, prompt_end, without
from maieutic.types import Example, Group, Rollout, Score, Span

#: (score of a rollout, index of the last token of each step `[K]`, whether the whole is good) → estimates `[K]`.
Rule = Callable[[Score, Sequence[int], bool], Sequence[float]]


def outcome(_score: Score, ends: Sequence[int], good: bool) -> list[float]:
    """Every step is as good as the whole: R̂ₖ = 1 if the solution is correct, else 0. Costs nothing."""
    return [float(good)] * len(ends)


def reward_model(score: Score, ends: Sequence[int], _good: bool) -> list[float]:
    """R̂ₖ is the step reward at the end of step k, as the stage's reward gave it. Raises RewardError without one."""
    given = dict(score.step_rewards)
    missing = [end for end in ends if end not in given]
    if missing:
        raise RewardError(
            f"labels of steps: got step rewards at tokens {sorted(given)}, expected one where each step ends "
            f"({list(ends)}). Remedy: a reward that scores steps cut by the same delimiter "
            '(`maieutic.step_rewards`), or labels = "outcome"'
        )
    return [given[end] for end in ends]


def monte_carlo(score: Score, ends: Sequence[int], good: bool) -> list[float]:
    """R̂ₖ = (continuations from the end of step k that end correct) / (continuations); of the last step: the verdict.

    An estimate of the value of the state, so of the probability of success (the labels of Math-Shepherd, arXiv
    2312.08935, before they are made hard). The source has the continuations sampled; they cost K a step.
    """
    return reward_model(score, ends, good)


#: What a rule asks of the source: how many continuations of each step, where nothing else is said.
CONTINUATIONS: Mapping[Rule, int] = {monte_carlo: 4}

#: How the labels of steps are come by, by name.
RULES: Mapping[str, Rule] = {rule.__name__: rule for rule in (outcome, monte_carlo, reward_model)}


@select
def conditioned_on_reward(
    rule: Rule = outcome,
    threshold: float = 0.5,
    ratio: Sequence[float] | None = None,
    loss_on_labels: bool = False,
    continuations: int | None = None,
    labels: Labels = Labels(),  # noqa: B008 - frozen
    seed: int = 0,
) -> Callable[[Sequence[Group]], list[Example]]:
    """Every scorable rollout, with a label before each of its steps: good where R̂ₖ ≥ threshold (inclusive), else bad.

    Labels have mask False, unless `loss_on_labels`. Labels that a rollout has already (it was asked for good steps) are
    taken out first. Rows come without log-probs of a sampler, at temperature 1, as imitation asks for neither.

    `ratio` (g, b): as many solutions as allow g good ones for b bad ones, chosen at random, seeded by (seed, groups); a
    solution is good if it is correct or, where nobody says so, if its reward reaches the threshold. None leaves the mix
    as it was sampled. The paper reports that 1 : 1 is worse than more good than bad; good ones alone would make the
    label mean nothing.

    `continuations` of each step are what `monte_carlo` asks of the source (None: 4; the paper's number is not known to
    us). A select has no tokenizer: `Algorithm.bind(policy.chat)` gives it the labels in tokens.

    Raises ValueError for a threshold beyond [0, 1], a ratio that is not two positive numbers, and continuations that
    the rule does not look at.
    """
    asked = _asked(rule, threshold, ratio, continuations)

    def bind(chat: Chat) -> Callable[[Sequence[Group]], list[Example]]:
        words = labels.bind(chat)

        def select_conditioned(groups: Sequence[Group]) -> list[Example]:
            rows = [
                (group, rollout, score, is_good(score, threshold))
                for group in groups
                for rollout, score in zip(group.rollouts, group.scores)
                if score.reward is not None and any(rollout.mask)
            ]
            kept = range(len(rows)) if ratio is None else mixed([row[3] for row in rows], ratio, _drawn(seed, groups))
            made: list[Example] = []
            for group, rollout, score, good in (rows[i] for i in kept):
                ends = [stop - 1 for _, stop in words.steps.of(rollout)]
                told = [estimate >= threshold for estimate in rule(score, ends, good)]
                row = labelled(rollout, words, told, loss_on_labels)
                row = replace(row, logprobs=(0.0,) * len(row.tokens), temperature=1.0)
                if any(row.mask):  # what said nothing but labels is no row
                    made.append(Example(row, score.reward or 0.0, group.id, unit=len(made), parts=score.parts))
            return made

        return _declared(select_conditioned, bind, labels, asked)

    def unbound(groups: Sequence[Group]) -> list[Example]:
        raise ConfigError(
            f"conditioned_on_reward: got {len(groups)} groups before it was told how labels are written in tokens; "
            "give the algorithm the policy's chat first: `algorithm = algorithm.bind(policy.chat)`"
        )

    return _declared(unbound, bind, labels, asked)


def _asked(rule: Rule, threshold: float, ratio: Sequence[float] | None, continuations: int | None) -> int:
    """How many continuations the rule wants; raises ValueError for options that make no sense."""
    asked = CONTINUATIONS.get(rule, 0) if continuations is None else continuations
    if not 0 <= threshold <= 1:
        raise ValueError(f"conditioned_on_reward: got threshold={threshold}; expected a probability, 0 to 1")
    if ratio is not None and not (len(ratio) == 2 and min(ratio) > 0):
        raise ValueError(
            f"conditioned_on_reward: got ratio={ratio!r}; expected two positive numbers, good and bad: without any bad "
            "ones the label means nothing, and expert iteration does the same with less"
        )
    if (rule in CONTINUATIONS) is not (asked > 0):
        raise ValueError(
            f"conditioned_on_reward: got continuations={continuations} with the rule {rule.__name__}; expected 1 or "
            f"more with {', '.join(known.__name__ for known in CONTINUATIONS)}, and none with another"
        )
    return asked


def _declared(function: Callable, bind: Callable, labels: Labels, continuations: int) -> Callable:
    function.bind = bind  # type: ignore[attr-defined]
    function.labels = labels  # type: ignore[attr-defined]
    function.continuations = continuations  # type: ignore[attr-defined]
    return function


def is_good(score: Score, threshold: float) -> bool:
    """Whether a whole solution is good: correct, or of a reward that reaches the threshold where nobody says."""
    return score.correct if score.correct is not None else (score.reward or 0.0) >= threshold


def mixed(good: Sequence[bool], ratio: Sequence[float], draw: random.Random) -> list[int]:
    """Indices of a mix with `ratio` (g, b) of good and bad, rising: as many as there can be, rounded to whole numbers,
    but one of each at least; none where there are only good or only bad ones.

    >>> mixed([True] * 5 + [False] * 5, (4, 1), random.Random(0))       # 5 good ones go with 5/4, rounded 1, bad one
    [0, 1, 2, 3, 4, 8]
    """
    sides = [[i for i, each in enumerate(good) if each is wanted] for wanted in (True, False)]
    scale = min(len(side) / share for side, share in zip(sides, ratio))
    counts = [min(len(side), max(1, round(scale * share))) if scale else 0 for side, share in zip(sides, ratio)]
    return sorted(i for side, count in zip(sides, counts) for i in draw.sample(side, count))


def _drawn(seed: int, groups: Sequence[Group]) -> random.Random:
    return random.Random(f"{seed}/{[group.id for group in groups]}")


def labelled(rollout: Rollout, words: LabelTokens, good: Sequence[bool], loss_on_labels: bool = False) -> Rollout:
    """The rollout with the label of each of its K steps before it; those that were there are gone.

    Log-probs of labels are 0. Spans are counted anew: labels are "tool" (an environment's), or "assistant" where they
    are learned. `text` stays: it is what was said.
    """
    start, places = prompt_end(rollout), words.steps.of(rollout)
    if len(places) != len(good):
        raise ValueError(f"labelled: got {len(good)} labels for {len(places)} steps; expected one a step")
    tokens, mask = list(rollout.tokens[:start]), list(rollout.mask[:start])
    logprobs, roles = list(rollout.logprobs[:start]), ["prompt"] * start
    for (first, stop), fine in zip(places, good):
        label = words.good if fine else words.bad
        kept = [first + i for i in without(rollout.tokens[first:stop], (words.good, words.bad))]
        tokens += [*label, *(rollout.tokens[i] for i in kept)]
        mask += [loss_on_labels] * len(label) + [rollout.mask[i] for i in kept]
        logprobs += [0.0] * len(label) + [rollout.logprobs[i] for i in kept]
    roles += ["assistant" if chosen else "tool" for chosen in mask[start:]]
    spans, at = [], 0
    for role, run in groupby(roles):
        stop = at + len(list(run))
        spans.append(Span(role, at, stop))
        at = stop
    return replace(rollout, tokens=tuple(tokens), mask=tuple(mask), logprobs=tuple(logprobs), spans=tuple(spans))
