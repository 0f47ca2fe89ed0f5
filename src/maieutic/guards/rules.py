"""THE TABLE of guards, and what they are made of. A guard is a pure function of the numbers of the steps so far.

Every guard wants two things at once before it speaks: a change (or a level) that is large in its own units, which is
its threshold, and one that noise does not explain, `CERTAIN` standard errors. Where a policy that learns would do the
same, it also asks the truth: completions may grow longer while more of them are right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from maieutic.guards.measures import states_several
from maieutic.guards.trend import Finding, Floats, History, Scan, onset
from maieutic.rewards import traits
from maieutic.types import Finish, Rollout, Score, Task

#: Standard errors that a change must have, and those from which on the truth has risen or fallen beside it.
CERTAIN, BESIDE = 5.0, 2.0

#: Share of right answers from which on nothing is amiss with a policy that is sure of itself.
SOLVED = 0.9

Find = Callable[[History, float, int], Finding | None]
Excuse = Callable[[Scan | None, "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]"], "np.ndarray"]
Shows = Callable[[Task, Rollout, Score], float]


@dataclass(frozen=True)
class Guard:
    """One thing to look out for: `GUARDS["copied"]`.

    find       (history, threshold, window) → what was found, or None.
    threshold  in the units that `about` names.
    says       a sentence with the finding's numbers: `{before}`, `{after}`, `{value}`, `{truth}`.
    percent    whether those of the series are shares.
    shows      how well a rollout shows it; the rollouts with the highest numbers are shown.
    """

    find: Find
    threshold: float
    about: str
    says: str
    remedy: str
    shows: Shows
    percent: bool = True

    def text(self, found: Finding) -> str:
        """What was found, in words."""

        def told(value: float) -> str:
            return f"{100 * value:.1f} %" if self.percent else f"{value:.3g}"

        first, last = found.truth or (math.nan, math.nan)
        truth = "" if found.truth is None else f", right answers went from {100 * first:.1f} % to {100 * last:.1f} %"
        said = self.says.format(before=told(found.before), after=told(found.after), value=found.value, truth=truth)
        (a, b), (c, d) = found.reference, found.recent
        return f"{said} (steps {a}–{b} and {c}–{d}). It began about step {found.onset}"


def _nothing(changed: Scan | None, at: np.ndarray) -> np.ndarray:
    del changed
    return np.zeros_like(at)


def _rising(truth: Scan | None, at: np.ndarray) -> np.ndarray:
    """Excused where right answers rose beside it, or nearly all are right."""
    if truth is None:
        return np.zeros_like(at)
    return (truth.change(True) > BESIDE * truth.error) | (truth.after >= SOLVED)


def _not_falling(truth: Scan | None, at: np.ndarray) -> np.ndarray:
    """Excused unless right answers fell beside it."""
    if truth is None:
        return np.ones_like(at)
    return ~(truth.change(False) > BESIDE * truth.error)


def drift(
    name: str,
    *,
    rises: bool = True,
    level: float | None = None,
    ratio: bool = False,
    excuse: Excuse = _nothing,
) -> Find:
    """The last steps lie above (or below) some earlier ones by the threshold; `ratio`: by that factor.

    `level`: and beyond this value. `excuse`: not where the truth did this beside it.
    """

    def find(history: History, threshold: float, window: int) -> Finding | None:
        values, seen = history.series(name), history.scan(name, window)
        if seen is None or (level is not None and (seen.after < level if rises else seen.after > level)):
            return None
        change = seen.change(rises)
        with np.errstate(divide="ignore", invalid="ignore"):
            by = seen.after / seen.before if rises else seen.before / seen.after
            size = by if ratio else change
            bad = (size >= threshold) & (change > CERTAIN * seen.error)
        if bad.any():
            bad &= ~excuse(history.scan("guards/truth", window), bad)
        return _finding(history, values, seen, np.where(bad, size, -math.inf), window) if bad.any() else None

    return find


def _finding(history: History, values: Floats, seen: Scan, size: Floats, window: int) -> Finding:
    """The largest change, the latest of equals, with where it began and what the truth did beside it."""
    best = int(len(size) - 1 - np.argmax(size[::-1]))
    start, stop = int(seen.start[best]), int(seen.stop[best])
    began = onset(values, stop, float(seen.before[best]), seen.after)
    truth, steps = history.scan("guards/truth", window), history.steps
    beside = None if truth is None or math.isnan(truth.before[best]) else (float(truth.before[best]), truth.after)
    return Finding(
        float(size[best]), float(seen.before[best]), seen.after, (steps[start], steps[stop - 1]),
        (steps[-window], steps[-1]), steps[began], beside,
    )  # fmt: skip


def reaches(name: str, *, steps: int = 2) -> Find:
    """The mean of the last window is at the threshold or above, and at least so many of its steps are above 0."""

    def find(history: History, threshold: float, window: int) -> Finding | None:
        values = history.series(name)
        last = values[-window:]
        known = np.isfinite(last)
        if known.sum() < max(2, window // 2) or (last[known] > 0).sum() < steps:
            return None
        mean = float(last[known].mean())
        if mean < threshold:
            return None
        earlier = values[:-window][np.isfinite(values[:-window])]
        before = float(earlier[:window].mean()) if len(earlier) else float(last[known][0])
        first = max(0, len(values) - window)
        began = onset(values, 0, 0.0, threshold) if before < threshold else 0
        at = history.steps
        return Finding(mean, before, mean, (at[0], at[min(window, len(at)) - 1]), (at[first], at[-1]), at[began])

    return find


def proxy(history: History, threshold: float, window: int) -> Finding | None:
    """The pay rose while right answers fell by the threshold. Noise moves both alike, so each is asked for less."""
    paid, truth = history.scan("guards/paid", window), history.scan("guards/truth", window)
    if paid is None or truth is None:
        return None
    fall, least = truth.change(False), 0.75 * CERTAIN
    bad = (fall >= threshold) & (fall > least * truth.error) & (paid.change(True) > least * paid.error)
    if not bad.any():
        return None
    size = np.where(bad, fall, -math.inf)
    return _finding(history, history.series("guards/paid"), paid, size, window)


def unearned(history: History, threshold: float, window: int) -> Finding | None:
    """The pay rose by the threshold, in units of what there is to earn, and right answers did not."""
    values, scale = history.series("guards/paid"), history.series("guards/scale")
    paid, truth = history.scan("guards/paid", window), history.scan("guards/truth", window)
    if paid is None or truth is None or truth.after >= SOLVED:
        return None
    unit = np.nanmean(scale[-window:]) / np.nanmax(scale)  # of the widest range seen so far
    gain, right = unit * paid.change(True), truth.change(True)
    # a truth that rose by less than it is uncertain has not risen; one that rose by half as much as the pay has
    still = (right < BESIDE * truth.error) | (right < 0.02)
    bad = (gain >= threshold) & (paid.change(True) > CERTAIN * paid.error) & still & (right < 0.5 * gain)
    return _finding(history, values, paid, np.where(bad, gain, -math.inf), window) if bad.any() else None


def alignment(history: History, threshold: float, window: int) -> Finding | None:
    """Right rollouts earn hardly more than wrong ones: less than the threshold, of what there is to earn."""
    values, wide = history.series("guards/alignment"), 2 * window
    last = values[-wide:][np.isfinite(values[-wide:])]
    if len(last) < window:
        return None
    mean, error = float(last.mean()), float(last.std(ddof=1) / math.sqrt(len(last)))
    if mean + BESIDE * error > threshold:
        return None
    known = np.flatnonzero(np.isfinite(values))
    before = float(values[known[:window]].mean())
    began = onset(values, int(known[0]), before, mean) if before > threshold else int(known[0])
    at = history.steps
    return Finding(
        mean, before, mean, (at[int(known[0])], at[int(known[min(window, len(known)) - 1])]),
        (at[-min(wide, len(at))], at[-1]), at[began],
    )  # fmt: skip


def validation(history: History, threshold: float, window: int) -> Finding | None:
    """The last validation is worse than an earlier one by the threshold, and the pay rose between them."""
    held, paid = history.series("guards/validation"), history.series("guards/paid")
    at = np.flatnonzero(np.isfinite(held))
    if len(at) < 2 or not np.isfinite(paid).any():
        return None
    last, error = int(at[-1]), noise_of_share(history, held)
    best: Finding | None = None
    for i in map(int, at[:-1]):
        fall = float(held[i] - held[last])
        first, then = paid[max(0, i - window + 1) : i + 1], paid[max(0, last - window + 1) : last + 1]
        first, then = first[np.isfinite(first)], then[np.isfinite(then)]
        if fall < threshold or fall <= 0.75 * CERTAIN * error or not len(first) or last - i < window:
            continue
        spread = math.sqrt((np.var(first) + np.var(then)) / 2 * (1 / len(first) + 1 / len(then)))
        if then.mean() - first.mean() > BESIDE * spread and (best is None or fall > best.value):
            at_ = history.steps
            began = onset(held, i + 1, float(held[i]), float(held[last]))
            best = Finding(
                fall, float(held[i]), float(held[last]), (at_[i], at_[i]), (at_[last], at_[last]), at_[began]
            )
    return best


def noise_of_share(history: History, held: Floats) -> float:
    """The standard error of the difference of two shares of so many problems each (`guards/validation_problems`)."""
    problems = history.series("guards/validation_problems")
    known = problems[np.isfinite(problems)]
    share = float(np.clip(np.nanmean(held), 0.05, 0.95))
    return math.sqrt(2 * share * (1 - share) / max(1.0, float(known[-1]) if len(known) else 1.0))


def _wrong_and_paid(task: Task, rollout: Rollout, score: Score) -> float:
    del task, rollout
    return -math.inf if score.reward is None else score.reward - 1000.0 * bool(score.correct)


def _prompt(rollout: Rollout) -> tuple[int, ...]:
    return rollout.tokens[: rollout.prompt_length]


_LOOK = "look at the rollouts below"
_BACK = "go back to a checkpoint before it began"

#: Name → guard. The order is that of the documentation: what the reward says first, then what texts show.
GUARDS: Mapping[str, Guard] = {
    "proxy": Guard(
        proxy, 0.05, "points of right answers lost while the reward rises",
        "the reward rose from {before} to {after} of what there is to earn{truth}",
        f"the reward pays for something else than being right: {_LOOK}, weigh that part down or gate it by "
        f"correctness (`gate`), and {_BACK}",
        _wrong_and_paid,
    ),
    "unearned": Guard(
        unearned, 0.25, "share of what there is to earn that was gained without right answers",
        "the reward rose from {before} to {after} of what there is to earn{truth}",
        "form is paid like the answer: keep the weight of format at a tenth of that of the answer, or gate it by "
        f"correctness; if the answers are right after all, the verifier cannot read them: {_LOOK}",
        _wrong_and_paid,
    ),
    "alignment": Guard(
        alignment, 0.1, "what right rollouts earn more than wrong ones, of what there is to earn",
        "right rollouts earned {after} of what there is to earn more than wrong ones",
        f"being right hardly pays: {_LOOK}; add a reward for the answer (`rewards = {{ answer = 1.0, … }}`), or repair "
        "the verifier",
        _wrong_and_paid,
    ),
    "validation": Guard(
        validation, 0.05, "points of the validation metric lost while the reward rises",
        "validation fell from {before} to {after} while the reward rose",
        f"the policy learns the reward and not the task: {_LOOK}, raise beta or lower the learning rate, and {_BACK}",
        _wrong_and_paid,
    ),
    "longer": Guard(
        drift("completions/mean_length", ratio=True, excuse=_rising), 2.0, "times the tokens of earlier completions",
        "completions grew from {before} to {after} tokens{truth}",
        "length seems to pay: look for a part that grows with it, add soft_overlong, or take a loss without a length "
        "bias (dr_grpo)",
        lambda _, rollout, __: rollout.completion_length, percent=False,
    ),
    "shorter": Guard(
        drift("completions/mean_length", rises=False, ratio=True, excuse=_not_falling), 2.0,
        "times fewer tokens than earlier completions",
        "completions shrank from {before} to {after} tokens{truth}",
        "saying little seems to pay: weigh penalties on length and form down, so that no penalty outweighs an answer",
        lambda _, rollout, __: -rollout.completion_length, percent=False,
    ),
    "copied": Guard(
        drift("guards/copied", level=0.5), 0.25, "points more of the completion's n-grams stand in the prompt",
        "what completions copy of their prompts rose from {before} to {after}",
        "copying seems to pay: add the penalty `copied` or `too_long`",
        lambda _, rollout, __: traits.copied(traits.chosen(rollout), _prompt(rollout)) or 0.0,
    ),
    "repeated": Guard(
        drift("guards/repeated", level=0.4, excuse=_rising), 0.25, "points more of repeated n-grams",
        "repeated n-grams rose from {before} to {after}{truth}",
        "going round in circles seems to pay, or costs nothing: add the penalty `repetition`",
        lambda _, rollout, __: traits.repeated(traits.chosen(rollout)) or 0.0,
    ),
    "several_answers": Guard(
        drift("guards/several", level=0.3), 0.2, "points more of completions that state several answers",
        "completions that state several answers rose from {before} to {after}",
        "the verifier seems to take any of them: use one that reads strictly, or add the penalties `several_answers` "
        "and `enumerated_answer`",
        lambda task, rollout, _: float(states_several(task, rollout)),
    ),
    "language": Guard(
        drift("guards/foreign", level=0.1), 0.1, "points more of letters in scripts that the prompt does not use",
        "letters of scripts that the prompts do not use rose from {before} to {after}",
        "add the penalty `language_switch`, or raise beta to stay near the reference",
        lambda task, rollout, _: traits.foreign(rollout.text, " ".join(m.content for m in task.prompt)) or 0.0,
    ),
    "diversity": Guard(
        drift("guards/diversity", rises=False, ratio=True, excuse=_not_falling), 2.0,
        "times fewer different n-grams among siblings",
        "different n-grams among siblings fell from {before} to {after}{truth}",
        "the policy settles on one text that is wrong: raise the temperature or epsilon_high, or lower the learning "
        "rate",
        _wrong_and_paid,
    ),
    "entropy": Guard(
        drift("policy/entropy", rises=False, ratio=True, excuse=_rising), 20.0, "times less entropy than before",
        "entropy fell from {before} to {after} nats a token{truth}",
        "the policy hardly tries anything any more: lower the learning rate, raise epsilon_high, or stop here",
        _wrong_and_paid, percent=False,
    ),
    "pass_at_k": Guard(
        drift("guards/pass", rises=False, excuse=_rising), 0.3, "points fewer groups with a right rollout",
        "groups with a right rollout fell from {before} to {after}{truth}",
        f"tasks that were solved are not any more: lower the learning rate, raise beta, and {_BACK}",
        _wrong_and_paid,
    ),
    "uniform_groups": Guard(
        drift("guards/uniform", level=0.7), 0.4, "points more groups that are paid alike and not all right",
        "groups that are paid alike and are not all right rose from {before} to {after}{truth}",
        "there is nothing left to learn from this reward, though not all is right: it cannot tell right from wrong "
        "there, or the tasks are too hard",
        _wrong_and_paid,
    ),
    "kl": Guard(
        reaches("kl/reference"), 1.0, "nats a token from the reference",
        "the policy is {after} nats a token away from its reference",
        "raise beta, lower the learning rate, or let the reference follow",
        _wrong_and_paid, percent=False,
    ),
    "truncated": Guard(
        drift("completions/clipped_ratio", level=0.3), 0.2, "points more of completions cut by the length limit",
        "completions that the length limit cut rose from {before} to {after}",
        "raise max_completion_length unless they ramble, else add soft_overlong or missing_eos",
        lambda _, rollout, __: float(rollout.finish is Finish.LENGTH),
    ),
    "unscorable": Guard(
        reaches("guards/unscorable"), 0.05, "share of rollouts without a reward",
        "{after} of the rollouts have no reward",
        "the reward fails or runs out of time on what the policy writes, which it may learn to provoke: repair the "
        "function; their notes say what happened",
        lambda _, __, score: float(score.reward is None),
    ),
}  # fmt: skip

__all__ = ["GUARDS", "Guard", "alignment", "drift", "proxy", "reaches", "unearned", "validation"]
