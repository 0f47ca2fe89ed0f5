"""What `maieutic reward try` makes of a trial: a verdict a line, each with its remedy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from maieutic.rewards.adapt_trial import Trial
from maieutic.rewards.hacks import HackReport
from maieutic.rewards.lift import Ending, Judgement

Level = Literal["ok", "note", "broken"]
#: Hacks that are named, and characters of one that is shown.
LISTED, SHOWN = 6, 60


@dataclass(frozen=True)
class Verdict:
    """A finding: "ok", "note" (to be weighed) or "broken", and what to do."""

    level: Level
    said: str
    remedy: str = ""


def verdicts(trial: Trial) -> list[Verdict]:
    """Every finding about a reward, the same ones in the same order for every reward."""
    return [*_failures(trial), *_determinism(trial), *_threads(trial), *_speed(trial), *_spread(trial), *_sense(trial)]


def _failures(trial: Trial) -> list[Verdict]:
    found = []
    failed, late = trial.ended(Ending.FAILED), trial.ended(Ending.TIMED_OUT)
    silent, scored = trial.ended(Ending.UNSCORABLE), trial.ended(Ending.SCORED)
    total = sum(map(len, trial.judged))
    if failed:
        found.append(
            Verdict("broken", f"{len(failed)} of {total} completions were not scored: {_last(failed)}", _repair(failed))
        )
    if late:
        remedy = "make it faster, or allow more: reward_timeout_seconds in a config, --timeout here"
        found.append(Verdict("broken", f"{len(late)} of {total} completions took too long: {_last(late)}", remedy))
    if not scored and not failed and not late:
        remedy = "see that the tasks have what it looks for (its columns), and that it gives a number where it can"
        found.append(Verdict("broken", "it scored nothing: None for every completion", remedy))
    elif silent:
        found.append(Verdict("note", f"{len(silent)} of {total} left unscored: {silent[0].score.note}"))
    if len(scored) == total:
        found.append(Verdict("ok", f"scored all {total} completions"))
    return found


def _last(judged: Sequence[Judgement]) -> str:
    return judged[0].score.note


def _repair(failed: Sequence[Judgement]) -> str:
    return "" if "Remedy" in failed[0].score.note else "repair the function; what it said is above"


def _determinism(trial: Trial) -> list[Verdict]:
    if trial.again is None:
        return []
    found = []
    if trial.again:
        said = f"not deterministic: {trial.again} completions got another reward when judged again"
        remedy = "take randomness from the completion, keep no state between calls, ask models at temperature 0"
        found.append(Verdict("broken", said, remedy))
    elif trial.turned:
        said = f"{trial.turned} completions got another reward when their group was turned round"
        found.append(
            Verdict("broken", said, "judge a completion by what it is, not by where it stands or what went before")
        )
    elif trial.alone:
        said = f"{trial.alone} completions got another reward when judged one by one"
        found.append(Verdict("broken", said, "keep no state between calls"))
    else:
        found.append(Verdict("ok", "deterministic: the same again, in the reverse order" + _and_alone(trial)))
    return found


def _and_alone(trial: Trial) -> str:
    return ", and one by one" if trial.alone is not None else ""


def _threads(trial: Trial) -> list[Verdict]:
    if trial.threads is None:
        return []
    if trial.threads:
        remedy = "nothing for maieutic, which calls it in one thread of its own process; elsewhere, lock what it shares"
        return [Verdict("note", f"not for several threads at once: {trial.threads}", remedy)]
    return [Verdict("ok", "several threads at once agree")]


def _speed(trial: Trial) -> list[Verdict]:
    median, worst = statistics.median(trial.seconds), max(trial.seconds)
    said = f"a call takes {seconds(median)} (median), {seconds(worst)} (worst); the first {seconds(trial.start)}"
    if median > 1.0:
        remedy = "write it async where it waits for others: calls of a group are then made at once"
        return [Verdict("note", said, remedy)]
    return [Verdict("ok", said)]


def _spread(trial: Trial) -> list[Verdict]:
    if not trial.spreads:
        return []
    still = sum(spread == 0 for spread in trial.spreads)
    if still:
        remedy = "groups whose rewards are all equal teach nothing; try completions of your model: --model, --samples"
        return [Verdict("note", f"no variance within {still} of {len(trial.spreads)} groups", remedy)]
    low, high = min(trial.spreads), max(trial.spreads)
    return [Verdict("ok", f"standard deviation within groups: {low:.3g} to {high:.3g}")]


def _sense(trial: Trial) -> list[Verdict]:
    """Whether the order of rewards is that of the completions which are known to be right and wrong."""
    found: list[Verdict] = []
    gold = _by_kind(trial, "gold solution") or _by_kind(trial, "gold answer")
    for kind, said in (("wrong answer", "a wrong answer"), ("empty", "an empty text"), ("repeated", "a repeated text")):
        other = _by_kind(trial, kind)
        pairs = [(gold[i], other[i]) for i in gold.keys() & other.keys()]
        paid = sum(theirs >= ours for ours, theirs in pairs)
        if paid:
            remedy = "fine for a reward of form; one of correctness would be gamed"
            found.append(
                Verdict("note", f"{said} is paid as much as the gold one in {paid} of {len(pairs)} tasks", remedy)
            )
    return found


def hacked(report: HackReport) -> list[Verdict]:
    """Whether known ways of being paid for nothing are paid. Nothing is said of a reward that is not of correctness."""
    tried = len({each.hack for each in report.tried})
    if report.blind:
        return []
    if not report.paying:
        return [Verdict("ok", f"none of {tried} known hacks is paid more than an honest wrong answer")]
    names = list(report.paying)
    example = report.paying[names[0]][0].text
    shown = example if len(example) <= SHOWN else f"{example[: SHOWN - 1]}…"
    listed = ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
    said = f"{len(names)} of {tried} known hacks are paid more than an honest wrong answer: {listed}; e.g. {shown!r}"
    return [Verdict("note", said, "take the answer from one place, and refuse what gives several")]


def _by_kind(trial: Trial, kind: str) -> dict[int, float]:
    made = {}
    for i, (probe, judged) in enumerate(zip(trial.probes, trial.judged)):
        for name, judgement in zip(probe.kinds, judged):
            if name == kind and judgement.score.reward is not None:
                made[i] = judgement.score.reward
    return made


def seconds(value: float) -> str:
    """A duration as people read it."""
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.1f} s"
