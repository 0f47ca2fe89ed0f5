"""A run as plain data, for `--json`. NaN stays NaN here; who writes it down turns it into null."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maieutic.report.reading import RunView
from maieutic.report.transcripts import shown_first
from maieutic.run.records import StoredRollout


def as_data(
    view: RunView, metrics: Sequence[str] | None, galleries: Mapping[str, Sequence[StoredRollout]]
) -> dict[str, Any]:
    """Everything that is shown, and every point of the curves (of `metrics`; None: of all)."""
    found, refused = view.changes
    return {
        "format": 1,
        "name": view.config.name,
        "path": str(view.path),
        "state": view.state.value,
        "checkpoint": None if view.checkpoint is None else dict(zip(("stage", "step"), view.checkpoint)),
        "stages": [
            {
                "name": s.name, "algorithm": s.algorithm, "tasks": s.tasks, "steps_done": s.done,
                "steps": s.total, "seconds": s.seconds, "rollouts": s.rollouts,
            }
            for s in view.stages
        ],
        "evaluations": [
            {
                "stage": m.stage, "name": m.name, "problems": len(m.evaluation.problems), "samples": m.evaluation.n,
                "metrics": {name: interval.to_dict() for name, interval in m.intervals.items()},
                "histogram": m.evaluation.histogram(),
            }
            for m in view.measured
        ],
        "differences": [
            {"name": c.name, "metric": c.metric, "old": c.old, "new": c.new, **c.difference.to_dict()} for c in found
        ],
        "curves": {
            stage: {name: points for name, points in curves.items() if metrics is None or name in metrics}
            for stage, curves in view.curves.items()
        },
        "phases": {stage: each.to_dict() for stage, each in view.waterfalls.items()},
        "alarms": [each.to_dict() for each in view.alarms],
        "health": [{"stage": n.stage, "kind": n.kind, "text": n.text} for n in view.notes],
        "warnings": [*view.warnings, *refused],
        "rollouts": {order: [_rollout(each) for each in rollouts] for order, rollouts in galleries.items()},
    }  # fmt: skip


def _rollout(stored: StoredRollout) -> dict[str, Any]:
    rollout, score = stored.rollout, stored.score
    return {
        "id": stored.id, "stage": stored.stage, "step": stored.step, "task": stored.task.id,
        "prompt": [{"role": m.role, "content": m.content} for m in shown_first(stored)], "answer": stored.task.answer,
        "completion": rollout.text, "finish": rollout.finish.value, "tokens": rollout.completion_length,
        "spans": [{"role": s.role, "start": s.start, "stop": s.stop, "text": s.text} for s in rollout.spans],
        "reward": score.reward, "correct": score.correct, "parts": dict(score.parts),
        "advantages": None if stored.advantages is None else [float(a) for a in stored.advantages],
        "notes": [note for note in (rollout.note, score.note) if note],
    }  # fmt: skip
