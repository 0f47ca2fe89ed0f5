"""Where the seconds of a step go, phase after phase.

Read from the metrics `time/…`, `beside/…` and `rate/…` (`maieutic.run.timing` says what each is), over all steps of a
stage that have them. The parts of the first level add up to the step; `rest` is what a phase owns beside those within.
What the bottleneck is, is said in `maieutic.report.bottleneck`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maieutic.report.curves import Points, finite
from maieutic.run.timing import RATED

Curves = Mapping[str, Points]

#: Phases in the order of a step; those that are not named come before the last.
PHASES = (
    "sampling", "reward", "select", "pack", "annotate", "credit", "update", "publish", "store", "checkpoint",
    "validation", "other",
)  # fmt: skip

#: The same within a phase.
WITHIN = ("prefill", "decode", "forward", "backward", "optimiser")

REST = "rest"

#: Share of a step below which a part is told together with others.
SMALL = 0.005

#: Beginning of the names of what is no part of a step.
EVALUATION = "time/evaluation/"

#: Names of phases whose path says too little.
TITLES = {
    "old_logprobs": "policy (old_logprobs)",
    "ref_logprobs": "reference (ref_logprobs)",
    "old_values": "critic (old_values)",
    "final_values": "critic (final_values)",
    "teacher_logprobs": "teacher (teacher_logprobs)",
    "teacher_top_ids": "teacher (teacher_top_ids)",
    "teacher_top_logprobs": "teacher (teacher_top_logprobs)",
}


@dataclass(frozen=True, slots=True)
class Part:
    """A phase of a mean step: `Part("sampling/decode", 1.31, start=0.08, share=0.54, tokens_per_second=1450.0)`.

    `seconds` with those of the phases within it, `start` where it would begin if each phase ran once.
    """

    path: str
    seconds: float
    start: float
    share: float
    tokens_per_second: float | None = None
    share_of_peak: float | None = None

    @property
    def depth(self) -> int:
        """0 for a phase of the step itself."""
        return self.path.count("/")

    @property
    def title(self) -> str:
        """Its name, for people."""
        name = self.path.rpartition("/")[2]
        return TITLES.get(name, name)


@dataclass(frozen=True, slots=True)
class Waterfall:
    """A mean step of a stage, in the order of its phases: those within a phase follow it.

    `rewards` are (busy seconds, share of these that was hidden behind something else); `evaluation` the seconds of the
    evaluations after the stage, which are no part of a step.
    """

    steps: int
    seconds: float
    parts: tuple[Part, ...]
    rewards: tuple[float, float] | None = None
    flops_per_second: float | None = None
    share_of_peak: float | None = None
    evaluation: float = 0.0
    bottleneck: str = ""

    def part(self, path: str) -> Part | None:
        """The part of that path."""
        return next((part for part in self.parts if part.path == path), None)

    def of(self, path: str) -> list[Part]:
        """The parts within the part of that path, `rest` included; the step's own for an empty path."""
        depth = path.count("/") + 1 if path else 0
        return [part for part in self.parts if part.depth == depth and part.path.startswith(f"{path}/" if path else "")]

    @property
    def large(self) -> list[Part]:
        """The parts that are worth a line: the step's own of at least `SMALL` of it, and those within them."""
        return [part for part in self.parts if part.share >= SMALL]

    @property
    def small(self) -> list[Part]:
        """The step's own parts that are not."""
        return [part for part in self.of("") if part.share < SMALL]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        columns = ("path", "seconds", "share", "tokens_per_second", "share_of_peak")
        return {
            "steps": self.steps,
            "seconds": self.seconds,
            "phases": [{name: getattr(part, name) for name in columns} for part in self.parts],
            "rewards": None if self.rewards is None else dict(zip(("busy_seconds", "hidden_share"), self.rewards)),
            "flops_per_second": self.flops_per_second,
            "share_of_peak": self.share_of_peak,
            "evaluation_seconds": self.evaluation,
            "bottleneck": self.bottleneck,
        }


def waterfall(curves: Curves) -> Waterfall | None:
    """What the metrics of a stage say of its mean step; None where no step has times (an older run)."""
    steps = dict(finite(curves.get("time/step", [])))
    if not steps:
        return None
    evaluations = [name for name in curves if name.startswith(EVALUATION)]
    means = {
        name.removeprefix("time/"): _total(points) / len(steps)
        for name, points in curves.items()
        if name.startswith("time/") and name != "time/step" and name not in evaluations
    }
    whole = sum(steps.values()) / len(steps)
    busy, hidden = _total(curves.get("beside/reward", [])), _weighted(curves, "beside/reward_hidden", "beside/reward")
    return Waterfall(
        steps=len(steps),
        seconds=whole,
        parts=tuple(_parts("", means, 0.0, whole or 1.0, curves)),
        rewards=None if hidden is None else (busy / len(steps), hidden),
        flops_per_second=_weighted(curves, "rate/flops_per_second", "time/step"),
        share_of_peak=_weighted(curves, "rate/share_of_peak", "time/step"),
        evaluation=sum(_total(curves[name]) for name in evaluations),
    )


def _parts(above: str, means: Mapping[str, float], start: float, whole: float, curves: Curves) -> list[Part]:
    """The parts within the phase `above`, each followed by those within it."""
    depth = above.count("/") + 1 if above else 0
    order = PHASES if not above else WITHIN
    last = len(order) - (not above)
    own = [path for path in means if path.count("/") == depth and path.startswith(f"{above}/" if above else "")]
    own.sort(key=lambda path: (order.index(n) if (n := path.rpartition("/")[2]) in order else last - 0.5, path))
    found: list[Part] = []
    at = start
    for path in own:
        found.append(Part(path, means[path], at, means[path] / whole, *_rates(path, curves)))
        found += _parts(path, means, at, whole, curves)
        at += means[path]
    rest = means[above] - (at - start) if above and own else 0.0
    if rest > 1e-9:
        found.append(Part(f"{above}/{REST}", rest, at, rest / whole))
    return found


def _rates(path: str, curves: Curves) -> tuple[float | None, float | None]:
    """Tokens a second and share of the peak."""
    name = next((name for name, rated in RATED.items() if rated == path), path)
    tokens = _weighted(curves, f"rate/{name}_tokens_per_second", f"time/{path}")
    return tokens, _weighted(curves, f"rate/{name}_share_of_peak", f"time/{path}")


def _total(points: Points) -> float:
    return sum(value for _, value in finite(points))


def _weighted(curves: Curves, name: str, by: str) -> float | None:
    """The mean of a curve by the weights of another, over the steps that have both."""
    values, weights = dict(finite(curves.get(name, []))), dict(finite(curves.get(by, [])))
    both = [step for step in values if weights.get(step)]
    return statistics.fmean([values[s] for s in both], [weights[s] for s in both]) if both else None
