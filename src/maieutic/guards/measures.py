"""What a step says to the guards: a few numbers, from its groups alone. Names begin with `guards/`.

truth       share of rollouts that are right, by the verifier that the reward does not ask where there is one
paid        mean reward without penalties, in units of `scale`
scale       what there is to earn: the sum of the weights, or what the rewards of a step differ by, if that is more
alignment   mean pay of right rollouts minus that of wrong ones, in units of `scale`: 0 where being right does not pay
pass        share of groups with a right rollout
uniform     share of groups whose rewards are all equal and whose rollouts are not all right
copied, repeated, foreign   see `maieutic.rewards.traits`, means over rollouts
several     share of rollouts that state several answers, side by side or within one marker
diversity   different n-grams among all n-grams of a group, mean over groups
unscorable  share of rollouts without a reward

Of long steps at most `TEXTS` rollouts are read for what their texts show, `ASKED` are shown to a held-out verifier, and
`TOKENS` tokens of each are looked at: a step takes a few milliseconds. Hinted groups say nothing of the policy and are
left out. Letters: `G` siblings of a group.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

from maieutic.protocols import Verifier
from maieutic.rewards import traits
from maieutic.types import Finish, Group, Rollout, Score, Task

#: Rollouts of a step whose texts are looked at, that a held-out verifier is asked about; tokens of each.
TEXTS, ASKED, TOKENS = 64, 32, 512

#: The n of n-grams that are compared among siblings.
GRAM = 3

#: Is a rollout right? None where nobody can say.
Truth = Callable[[Task, Rollout, Score], bool | None]

Judged = tuple[Task, Rollout, Score]


def by_score(task: Task, rollout: Rollout, score: Score) -> bool | None:
    """What the reward itself says."""
    del task, rollout
    return score.correct


def held_out_truth(verifier: Verifier) -> Truth:
    """What a verifier says that the reward does not ask; what the reward says, of a task without an answer."""

    def truth(task: Task, rollout: Rollout, score: Score) -> bool | None:
        if task.answer is None or rollout.finish is Finish.ERROR:
            return score.correct
        return verifier(task, rollout.text).correct

    return truth


def measures(
    groups: Sequence[Group], truth: Truth | None = None, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """The numbers above, as far as the groups say. `truth`: who says what is right, instead of the scores.

    `weights` of the reward's parts: of parts that are penalties, what is below 0 is not pay.
    """
    groups = [group for group in groups if not group.hinted]
    judged = [(group.task, rollout, score) for group in groups for rollout, score in zip(group.rollouts, group.scores)]
    if not judged:
        return {}
    right = _right(judged, truth)
    found: dict[str, float | None] = {"unscorable": sum(score.reward is None for *_, score in judged) / len(judged)}
    found |= _pay(judged, right, weights or {})
    found |= _of_groups(groups, right)
    found |= _of_texts(spread(judged, TEXTS))
    return {f"guards/{name}": value for name, value in found.items() if value is not None}


def spread(values: Sequence[Judged], most: int) -> list[Judged]:
    """At most so many of them, evenly from front to back."""
    return [values[i * len(values) // most] for i in range(most)] if len(values) > most else list(values)


def _right(judged: Sequence[Judged], truth: Truth | None) -> dict[int, bool]:
    """Whether a rollout is right, by its identity; those of whom nobody says so are not there."""
    asked = judged if truth is None else spread(judged, ASKED)
    told = {id(each[1]): (truth or by_score)(*each) for each in asked}
    return {key: value for key, value in told.items() if value is not None}


def _pay(judged: Sequence[Judged], right: Mapping[int, bool], weights: Mapping[str, float]) -> dict[str, float | None]:
    paid = {id(rollout): pay(score, weights) for _, rollout, score in judged if score.reward is not None}
    if not paid:
        return {"truth": _mean(map(float, right.values()))}
    scale = max(sum(map(abs, weights.values())), max(paid.values()) - min(paid.values()), 1e-9)
    of_right = _mean(paid[key] for key, good in right.items() if good and key in paid)
    of_wrong = _mean(paid[key] for key, good in right.items() if not good and key in paid)
    return {
        "truth": _mean(map(float, right.values())),
        "paid": statistics.fmean(paid.values()) / scale,
        "scale": scale,
        "alignment": None if of_right is None or of_wrong is None else (of_right - of_wrong) / scale,
    }


def pay(score: Score, weights: Mapping[str, float]) -> float:
    """A reward without its penalties: without what its parts took from it."""
    return (score.reward or 0.0) - sum(w * min(0.0, score.parts.get(name, 0.0)) for name, w in weights.items())


def _of_groups(groups: Sequence[Group], right: Mapping[int, bool]) -> dict[str, float | None]:
    verdicts = [[right[id(r)] for r in group.rollouts if id(r) in right] for group in groups]
    known = [each for group, each in zip(groups, verdicts) if len(each) == len(group.rollouts)]
    equal = [
        len(set(group.rewards)) == 1 and not (each and all(each))
        for group, each in zip(groups, verdicts)
        if len(group.rewards) > 1
    ]
    return {"pass": _mean(float(any(each)) for each in known), "uniform": _mean(map(float, equal))}


def _of_texts(judged: Sequence[Judged]) -> dict[str, float | None]:
    tokens = [traits.chosen(rollout)[:TOKENS] for _, rollout, _ in judged]
    prompts = [rollout.tokens[: rollout.prompt_length] for _, rollout, _ in judged]
    asked = [" ".join(message.content for message in task.prompt) for task, *_ in judged]
    siblings: dict[str, list[tuple[int, ...]]] = {}
    for (task, *_), own in zip(judged, tokens):
        siblings.setdefault(task.id, []).extend(traits.grams(own, GRAM))
    return {
        "copied": _mean(map(traits.copied, tokens, prompts)),
        "repeated": _mean(map(traits.repeated, tokens)),
        "foreign": _mean(traits.foreign(rollout.text, text) for (_, rollout, _), text in zip(judged, asked)),
        "several": _mean(float(states_several(task, rollout)) for task, rollout, _ in judged),
        "diversity": _mean(len(set(each)) / len(each) for each in siblings.values() if each),
    }


def states_several(task: Task, rollout: Rollout) -> bool:
    """Whether a rollout states several answers where one is asked for."""
    if traits.listed_answers(rollout.text) > 1:
        return True
    found = traits.enumerated(rollout.text)
    return found > 1 and found > traits.alternatives(task.answer or "")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return statistics.fmean(known) if known else None
