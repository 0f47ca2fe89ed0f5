"""Times of steps as metrics: what a listener heard becomes `time/…`, `beside/…` and `rate/…` of the step.

    time/step                        seconds from the end of the step before to the end of this one
    time/sampling, time/update, …    those of each phase of it; they and time/other add up to time/step
    time/sampling/decode, …          those of the phases within a phase
    time/evaluation/<name>           those of the evaluation after the stage, which is no part of a step
    beside/reward                    seconds in which rewards were being computed, whatever else was done
    beside/reward_hidden             share of those in which something else was done: the rest is time/reward
    rate/sampling_tokens_per_second  tokens written, a second of sampling (not with overlap = true, where time/sampling
                                     is the time for which the other process was waited for: the rest is hidden)
    rate/<phase>_tokens_per_second   tokens through a model, a second of the phase: prefill, decode, annotate, update
    rate/<phase>_share_of_peak       the operations that these take, as a share of the machine's rate of matrix products
    rate/flops_per_second            operations a second of the whole step, and as a share of that rate:
    rate/share_of_peak

What lies between two steps (store, checkpoint, validation) is part of the step that follows, and after the last step of
a stage part of that one. Operations are those of `maieutic.core.cost`, 2·N a token forwards and 6·N with gradients, but
of the tokens that really ran: a prompt that its siblings share counts once. Attention and the language-model head are
left out, so shares are low for small models with large vocabularies and for long contexts.

Times are no results: a run that was resumed has other ones, and all else is the same.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from maieutic.clock import Listener, Reading, within
from maieutic.core.cost import COSTS
from maieutic.run.store import Store
from maieutic.types import Step

if TYPE_CHECKING:
    import torch

#: Beginnings of the names of what is no result: these metrics, those of `memory`, and what judges were asked (a resumed
#: run finds answers on disk).
TIMES = ("time/", "beside/", "rate/", "memory/", "asked/")

#: The phases of which rates are told, by the name under which they are.
RATED = {"prefill": "sampling/prefill", "decode": "sampling/decode", "annotate": "annotate", "update": "update"}

#: The kind of the event that says what the machine can do.
PEAK = "peak"


def time_metrics(heard: Reading, peak: float, written: float = 0.0) -> dict[str, float]:
    """The metrics above. `peak`: operations a second of the machine at most; `written`: tokens that a policy wrote."""
    paths = dict.fromkeys(
        "/".join(parts[: i + 1]) for path in heard.seconds for parts in [path.split("/")] for i in range(len(parts))
    )
    times = {path: within(heard.seconds, path) for path in paths}
    found = {"time/step": heard.total, "time/other": heard.other}
    found |= {f"time/{path}": seconds for path, seconds in times.items()}
    for path, busy in heard.busy.items():
        found[f"beside/{path}"] = busy
        found[f"beside/{path}_hidden"] = 1.0 - times.get(path, 0.0) / busy if busy else 0.0
    if written and times.get("sampling"):
        found["rate/sampling_tokens_per_second"] = written / times["sampling"]
    for name, path in RATED.items():
        tokens, seconds = within(heard.tokens, path), times.get(path, 0.0)
        if tokens and seconds:
            found[f"rate/{name}_tokens_per_second"] = tokens / seconds
            found[f"rate/{name}_share_of_peak"] = within(heard.operations, path) / seconds / peak
    if heard.total:
        found["rate/flops_per_second"] = sum(heard.operations.values()) / heard.total
        found["rate/share_of_peak"] = found["rate/flops_per_second"] / peak
    return found


class Times:
    """Gives the steps of a stage their times."""

    def __init__(self, listener: Listener, peak: float) -> None:
        self.listener, self.peak = listener, peak
        self.heard, self.written = Reading(), 0.0

    def add(self, step: Step) -> Step:
        """The step with what was heard since the one before."""
        ahead = "policy/staleness" in step.metrics  # written elsewhere, while this process did other things
        self.heard = self.listener.read()
        self.written = 0.0 if ahead else step.metrics.get(COSTS["generated_tokens"], 0.0)
        return replace(step, metrics={**step.metrics, **time_metrics(self.heard, self.peak, self.written)})

    def last(self) -> dict[str, float]:
        """The times of the step that was added last, with what was heard after it."""
        self.heard = self.heard.plus(self.listener.read())
        return time_metrics(self.heard, self.peak, self.written)


def machine_peak(store: Store, stage: str, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product here; measured once for a run and its machine.

    Kept in the store as an event of `stage`, the run's first, so that a run that is resumed counts on with the same.
    """
    import torch

    from maieutic.backends.local.peak import peak

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    about: dict[str, Any] = {"device": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    for event in store.events(stage):
        if event.kind == PEAK and about.items() <= event.data.items():
            return float(event.data["flops_per_second"])
    found = round(peak(device=device))
    said = f"a large matrix product runs at {found / 1e9:,.1f} GFLOP/s"
    store.write_event(stage, -1, PEAK, said, {**about, "flops_per_second": found})
    return float(found)


def finisher(device: torch.device, exact: bool) -> Callable[[], object] | None:
    """What waits for the device at the ends of phases, where there is something to wait for and it is asked for."""
    if not exact or device.type != "cuda":
        return None
    import torch

    return lambda: torch.cuda.synchronize(device)
