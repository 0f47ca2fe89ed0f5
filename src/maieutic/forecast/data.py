"""Forecasts as plain data for programs: bytes, seconds, tokens; None where something is not known before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maieutic.forecast.happened import Happened, Line
from maieutic.forecast.memory import Item
from maieutic.forecast.needs import Remedy
from maieutic.forecast.predict import StageForecast


def as_data(forecast: StageForecast) -> dict[str, Any]:
    """One stage under one assumption."""
    inputs, lengths = forecast.inputs, forecast.inputs.lengths
    return {
        "name": inputs.name,
        "algorithm": inputs.algorithm,
        "steps": forecast.steps,
        "parameters": {"trained": inputs.sizes.parameters(True), "frozen": inputs.sizes.parameters(False)},
        "rows_at_once": forecast.rows,
        "lengths": {
            "prompt": lengths.prompt, "longest_prompt": lengths.longest_prompt,
            "completion": lengths.completion, "longest_completion": lengths.longest, "turns": lengths.turns,
        },
        "step": {
            "samples": forecast.tokens.samples,
            "generated_tokens": forecast.tokens.generated,
            "trained_tokens": forecast.tokens.trained,
            "seconds": dict(forecast.seconds),
            "operations": dict(forecast.operations),
            "seconds_known": forecast.step_seconds,
        },
        "reward_seconds": forecast.reward,
        "evaluation_seconds": forecast.evaluation,
        "seconds": forecast.total_seconds,
        "memory": {
            "standing": [_item(item) for item in forecast.memory.standing],
            "phases": {
                phase: {"items": [_item(item) for item in items], "peak_bytes": forecast.memory.peak(phase)}
                for phase, items in forecast.memory.phases.items()
            },
        },
    }  # fmt: skip


def _item(item: Item) -> dict[str, Any]:
    return {"what": item.what, "bytes": item.bytes, **({"key": item.key} if item.key else {})}


def remedies_data(remedies: Sequence[Remedy]) -> list[dict[str, Any]]:
    """What to change where memory does not suffice."""
    return [{"phase": r.phase, "key": r.key, "present": r.present, "value": r.value} for r in remedies]


def lines_data(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """What was foreseen beside what happened."""
    return [
        {"what": x.what, "unit": x.unit, "predicted": x.predicted, "happened": x.happened, "ratio": x.ratio}
        for x in lines
    ]


def happened_data(happened: Happened) -> dict[str, Any]:
    """A stage as it went."""
    return {
        "name": happened.stage, "steps": happened.steps, "seconds": dict(happened.seconds),
        "completion": happened.length, "longest_completion": happened.longest,
        "evaluation_seconds": happened.evaluation, "memory_bytes": happened.memory,
    }  # fmt: skip
