"""A study as plain data, for `--json`. What is not finite becomes null where it is written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maieutic.compare.analyse import Analysis, Comparison, Value
from maieutic.compare.results import Results
from maieutic.compare.sensitivity import Run, Sensitivity, diverged, median, quartiles
from maieutic.compare.verdict import verdict


def as_data(results: Results, analyses: Sequence[Analysis]) -> dict[str, Any]:
    """Everything that is shown, and the curves."""
    study = results.plan.study
    return {
        "format": 1,
        "name": study.name,
        "seeds": study.seeds,
        "metric": study.metric,
        "k": results.k,
        "warnings": list(results.plan.warnings),
        "tasksets": {
            analysis.taskset: {
                "arms": {arm: _values(values) for arm, values in analysis.arms.items()},
                "start": _values(analysis.start),
                "pairs": [_comparison(each) for each in analysis.pairs],
                "gains": [_comparison(each) for each in analysis.gains],
                "others": [_comparison(each) for each in analysis.others],
                "verdict": verdict(results, analysis),
            }
            for analysis in analyses
        },
        "costs": {arm: dict(costs) for arm, costs in analyses[0].costs.items()} if analyses else {},
        "trials": [
            {
                "arm": arm, "seed": seed, "seconds": trial.seconds, "costs": dict(trial.costs),
                "entropy": trial.entropy, "curve": trial.curve, "measured": trial.measured,
            }
            for arm, trials in results.trials.items()
            for seed, trial in trials.items()
        ],
    }  # fmt: skip


def _values(values: Mapping[str, Value]) -> dict[str, Any]:
    return {
        metric: {
            **value.interval.to_dict(),
            "over_seeds": value.over_seeds.to_dict(),
            "bootstrap": value.bootstrap.to_dict(),
            "by_seed": list(value.by_seed),
        }
        for metric, value in values.items()
    }


def _comparison(each: Comparison) -> dict[str, Any]:
    return {
        "new": each.new, "old": each.old, "metric": each.metric, **each.effect.interval.to_dict(),
        "p_value": each.effect.p_value, "p_adjusted": each.p_adjusted, "claimed": each.claimed,
        "over_seeds": each.over_seeds.to_dict(), "seeds": each.seeds, "problems": each.problems,
    }  # fmt: skip


def sensitivity_data(results: Results, found: Sequence[Sensitivity]) -> dict[str, Any]:
    """A sweep as plain data."""
    study = results.plan.study
    return {
        "format": 1,
        "name": study.name,
        "seeds": study.seeds,
        "metric": study.metric,
        "tasksets": {
            each.taskset: {
                "runs": len(each.runs), **_runs(each.runs),
                "settings": [
                    {
                        "name": setting.name, "values": dict(setting.values), **_runs(setting.runs),
                        "mean": None if setting.interval is None else setting.interval.to_dict(),
                        "by_seed": {run.seed: {"final": run.final, "diverged": run.reason} for run in setting.runs},
                    }
                    for setting in each.settings
                ],
                "levels": [
                    {"key": level.key, "value": level.value, "runs": len(level.runs), **_runs(level.runs)}
                    for level in each.levels
                ],
            }
            for each in found
        },
    }  # fmt: skip


def _runs(runs: Sequence[Run]) -> dict[str, Any]:
    low, high = quartiles(runs)
    return {"median": median(runs), "quartiles": [low, high], "interquartile_range": high - low,
            "diverged_share": diverged(runs)}  # fmt: skip
