"""A run in a paragraph: what was trained, how far it came, what was measured, and what that shows."""

from __future__ import annotations

from maieutic.config import Config
from maieutic.report.curves import number, percent
from maieutic.report.measured import Change, Measured, by_name, shown
from maieutic.report.reading import RunView, StageView, State
from maieutic.report.waterfall import SMALL, Waterfall

#: What the summary tells of an evaluation, where it is there.
HEADLINES = ("greedy", "pass@1", "pass", "vote", "strict")

ENDINGS = {
    State.COMPLETE: "The run is complete.",
    State.RUNNING: "The run is still going, at {at}.",
    State.INTERRUPTED: "The run was interrupted at {at}; go on with: {resume}",
    State.NOT_BEGUN: "The run has not done anything yet.",
}


def summary(view: RunView, changes: list[Change]) -> list[str]:
    """Sentences, in order."""
    at = f"{view.at.progress} of stage {view.at.name}"
    told = [f"{view.config.name} trains {model(view.config)}: {', then '.join(map(stage, view.stages))}."]
    told.append(ENDINGS[view.state].format(at=at, resume=view.resume))
    for name, made in by_name(view.measured).items():
        told += _told(name, made, [change for change in changes if change.name == name])
    return told


def model(config: Config) -> str:
    """The model that a run starts from, in words."""
    if config.model.small is None:
        lora = config.model.lora
        return f"{config.model.path}" + ("" if lora is None else f" with a LoRA adapter of rank {lora.rank}")
    small = config.model.small
    return f"a small {small.architecture} model built from scratch ({small.layers} layers, width {small.width})"


def stage(view: StageView) -> str:
    """`grpo on train (step 40 of 100; 10,240 rollouts; 12 min 5 s)`."""
    name, *algorithm = dict.fromkeys([view.name, view.algorithm])
    named = name + "".join(f" ({each})" for each in algorithm)
    parts = [view.progress if view.done else "not begun"]
    parts += [f"{view.rollouts:,} rollouts"] if view.rollouts else []
    parts += [duration(view.seconds)] if view.seconds else []
    return f"{named} on {view.tasks} ({'; '.join(parts)})"


def duration(seconds: float) -> str:
    """`41.2 s`, `12 min 5 s`, `3 h 20 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def place(stage: str) -> str:
    """`after grpo`; `at the start` for what was measured before the first stage."""
    return "at the start" if stage == "start" else f"after {stage}"


def beside(found: Waterfall) -> list[str]:
    """What the parts of a step do not say: a sentence each."""
    told = [f"Means over {found.steps:,} step{'' if found.steps == 1 else 's'}."]
    if found.small:
        told.append(f"Below {percent(SMALL)} each: {', '.join(part.title for part in found.small)}.")
    if found.rewards is not None and found.rewards[0] >= SMALL * found.seconds:
        busy, hidden = found.rewards
        told.append(f"Rewards were at work for {number(busy)} s, {percent(hidden)} of it hidden behind sampling.")
    if found.flops_per_second and found.share_of_peak is not None:
        rate = found.flops_per_second / 1e9
        told.append(f"{number(rate)} GFLOP/s over the whole step; the machine's matrix products run at "
                    f"{number(rate / found.share_of_peak)}.")  # fmt: skip
    if found.evaluation:
        told.append(f"The evaluation after the stage took {duration(found.evaluation)} more.")
    return told


def headlines(metrics: list[str]) -> list[str]:
    """The metrics that the summary tells, in order."""
    return [m for wanted in HEADLINES for m in metrics if m == wanted or (m.startswith(f"{wanted}@") and m != "pass@1")]


def _told(name: str, made: list[Measured], changes: list[Change]) -> list[str]:
    first, last = made[0], made[-1]
    size = f"{len(last.evaluation.problems):,} problems of {name}"
    size += f", {last.evaluation.n} samples each" if last.evaluation.n else ""
    told = [m for m in headlines(list(last.intervals)) if m in first.intervals]
    if first is last:
        values = ", ".join(f"{metric} {shown(metric, last.intervals[metric])}" for metric in told)
        return [f"Measured {place(last.stage)} on {size}: {values}."]
    across = {c.metric: c.difference.verdict for c in changes if (c.old, c.new) == (first.stage, last.stage)}
    values = "; ".join(
        f"{metric} {percent(first.intervals[metric].value)} → {percent(last.intervals[metric].value)}"
        + (f", {across[metric]}" if metric in across else "")
        for metric in told
    )
    return [f"Measured on {size}, {place(first.stage)} and {place(last.stage)}: {values}."]
