"""What the results allow to say, in plain words: never an order within what the intervals do not tell apart."""

from __future__ import annotations

from collections.abc import Sequence

from maieutic.compare.analyse import Analysis, Comparison
from maieutic.compare.measures import NUMBERS
from maieutic.compare.results import Results
from maieutic.core.intervals import Interval

#: What an arm may spend beside the budget without a word being lost about it.
UNEVEN = 0.05


def verdict(results: Results, analysis: Analysis) -> list[str]:
    """Sentences, in order: what was compared, the arms with each other, what each learnt."""
    if not analysis.arms:
        return ["No arm has a complete run yet: there is nothing to say."]
    told = [_what(results, analysis), *uneven(results, analysis)]
    told += [between(pair, len(analysis.pairs)) for pair in analysis.pairs]
    told += [sentence for arm in analysis.arms for sentence in learnt(analysis, arm)]
    missing = [f"{arm.name} (seed {seed})" for arm in results.plan.arms for seed in results.plan.study.seeds
               if seed not in results.trials.get(arm.name, {})]  # fmt: skip
    if missing:
        told.append(f"Without a complete run, and left out: {', '.join(missing)}.")
    return told


def uneven(results: Results, analysis: Analysis) -> list[str]:
    """One sentence for each arm that spent visibly more than the budget (no step is cut in two), or less."""
    budget = results.plan.arms[0].stage.budget
    if budget is None:
        return []
    spent = {arm: costs[budget.kind] / budget.amount for arm, costs in analysis.costs.items()}
    return [
        f"Not quite equal: {arm} spent {100 * share:.0f} % of the budget of {budget.kind.replace('_', ' ')}, "
        + ("for its steps are large." if share > 1 else "for its steps cost nothing any more.")
        for arm, share in spent.items()
        if abs(share - 1) > UNEVEN
    ]


def between(pair: Comparison, family: int) -> str:
    """`a is better than b on pass@1 by 3.1 points (1.0 to 5.2; 3 seeds, 200 problems).`"""
    low, high = points(pair.metric, pair.effect.interval.low), points(pair.metric, pair.effect.interval.high)
    if pair.seeds < 2:
        seen = points(pair.metric, pair.effect.interval.value)
        return (
            f"With one seed nothing can be said of {pair.new} and {pair.old} as algorithms; in this run {pair.new} was "
            f"{seen} {unit(pair.metric)} from {pair.old} on {pair.metric}."
        )
    if pair.claimed:
        better, worse = (pair.new, pair.old) if pair.effect.interval.value > 0 else (pair.old, pair.new)
        return f"{better} is better than {worse} on {pair.metric} by {size(pair)}."
    if pair.effect.seen:
        return (
            f"Between {pair.new} and {pair.old} no difference on {pair.metric} can be claimed: alone the interval "
            f"would be {low} to {high} {unit(pair.metric)}, but of {family} comparisons one may look so by chance "
            f"(p = {pair.p_adjusted:.2g} among them)."
        )
    return (
        f"No difference between {pair.new} and {pair.old} could be seen on {pair.metric}: it may lie between {low} and "
        f"{high} {unit(pair.metric)} ({where(pair)})."
    )


def learnt(analysis: Analysis, arm: str) -> list[str]:
    """Whether the arm learnt anything, and whether it learnt something new or only became surer."""
    surer = analysis.gain(arm, analysis.metric)
    new = analysis.gain(arm, f"pass@{analysis.k}")
    if surer is None:
        return []
    if surer.seeds < 2:
        return []
    family = len(analysis.gains)
    told = [_gained(surer, family)]
    if new is not None and new.metric != surer.metric:
        told.append(_new(new, surer, family))
    return told


def _alone(gain: Comparison, family: int) -> str:
    """A change whose own interval leaves 0 out, and that is not claimed all the same."""
    return (
        f"{gain.metric} changed by {size(gain)}, but of {family} comparisons one may look so by chance "
        f"(p = {gain.p_adjusted:.2g} among them)"
    )


def _gained(gain: Comparison, family: int) -> str:
    if gain.claimed:
        word = "better" if gain.effect.interval.value > 0 else "worse"
        return f"{gain.new} became {word} than the model it started from: {gain.metric} changed by {size(gain)}."
    if gain.effect.seen:
        word = "better" if gain.effect.interval.value > 0 else "worse"
        return (
            f"That {gain.new} became {word} than the model it started from cannot be claimed: {_alone(gain, family)}."
        )
    low, high = (points(gain.metric, x) for x in (gain.effect.interval.low, gain.effect.interval.high))
    return (
        f"Whether {gain.new} differs from the model it started from cannot be said: {gain.metric} changed by {low} to "
        f"{high} {unit(gain.metric)} ({where(gain)})."
    )


def _new(new: Comparison, surer: Comparison, family: int) -> str:
    """Pass@k asks what a model can do at all, the study's metric how surely it does it."""
    k = new.metric.partition("@")[2]
    if new.claimed and new.effect.interval.value > 0:
        return (
            f"{new.new} learnt something new, as far as {k} samples tell: within them it solves more problems than its "
            f"start did, {new.metric} changed by {size(new)}. With more samples its start might solve those too."
        )
    if new.claimed:
        return f"{new.new} lost solutions that its start had: {new.metric} changed by {size(new)}."
    if new.effect.seen:
        did = "learnt something new" if new.effect.interval.value > 0 else "lost solutions that its start had"
        return f"That {new.new} {did} cannot be claimed: {_alone(new, family)}."
    low, high = (points(new.metric, x) for x in (new.effect.interval.low, new.effect.interval.high))
    range_ = f"{new.metric} changed by {low} to {high} {unit(new.metric)}"
    if surer.claimed and surer.effect.interval.value > 0:
        return f"{new.new} became surer of what its start could do already; no novel solutions were seen: {range_}."
    return f"No novel solutions of {new.new} were seen: {range_}."


def size(comparison: Comparison) -> str:
    """`3.1 points (1.0 to 5.2; 3 seeds, 200 problems)`, of the better one over the worse one."""
    interval = comparison.effect.interval
    if interval.value < 0 and comparison.old != "start":
        interval = Interval(-interval.value, -interval.high, -interval.low)
    signed = comparison.old == "start"
    value, low, high = (points(comparison.metric, x, signed) for x in (interval.value, interval.low, interval.high))
    return f"{value} {unit(comparison.metric)} ({low} to {high}; {where(comparison)})"


def points(metric: str, x: float, signed: bool = True) -> str:
    """A difference: of shares in percentage points."""
    shown = round(x if metric in NUMBERS else 100 * x, 1) + 0.0  # no minus before 0.0
    return f"{shown:+.1f}".replace("-", "−") if signed else f"{shown:.1f}".replace("-", "−")


def unit(metric: str) -> str:
    """What differences of the metric are in."""
    return {"unique": "solutions", "length": "tokens"}.get(metric, "points")


def where(comparison: Comparison) -> str:
    """`3 seeds, 200 problems`."""
    return f"{comparison.seeds} seed{'s' * (comparison.seeds != 1)}, {comparison.problems:,} problems"


def _what(results: Results, analysis: Analysis) -> str:
    names: Sequence[str] = list(analysis.arms)
    budget = results.plan.arms[0].stage.budget
    spent = "" if budget is None else f", each with {budget.amount:,.15g} {budget.kind.replace('_', ' ')}"
    return (
        f"Compared on {analysis.taskset}: {', '.join(names)}{spent}. Differences are paired by seed and problem; the "
        "intervals are of 95 % and reckon with other seeds and other problems; claims hold for all comparisons of a "
        "kind at once."
    )
