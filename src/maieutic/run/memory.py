"""What memory a step took at its most, as metrics.

    memory/peak_rss_bytes      of this process since it began, Python and all models: it never falls, and one that goes
                               on rising is a leak
    memory/peak_device_bytes   of a GPU, since the step before: what torch had given out at the most

As times, these are no results: a run that was resumed has other ones.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from maieutic.types import Step

if TYPE_CHECKING:
    import torch

PEAK_RSS, PEAK_DEVICE = "memory/peak_rss_bytes", "memory/peak_device_bytes"


def peak_resident() -> int:
    """Bytes of memory that this process has had at the most so far; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # POSIX only
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def with_memory(step: Step, device: torch.device) -> Step:
    """The step with its peaks among its metrics. A GPU's peak is counted anew from here on."""
    found = {PEAK_RSS: float(peak_resident())}
    if device.type == "cuda":
        import torch

        found[PEAK_DEVICE] = float(torch.cuda.max_memory_allocated(device))
        torch.cuda.reset_peak_memory_stats(device)
    return replace(step, metrics={**step.metrics, **found})
