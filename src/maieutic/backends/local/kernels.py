"""Where the compiled kernels are to be had: with Numba, unless it is switched off; and with whose threads they work.

Nothing here or in what uses it needs Numba: where there is none, torch's operations serve.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

log = logging.getLogger("maieutic.backends.local")

SMALLEST = 100_000
"""Weights below which a model is left alone: its work is done before Numba has been loaded, which takes a second."""

Crew = tuple[int, int]
"""The address of what begins work in several threads, and how many."""


@cache
def decoding() -> ModuleType | None:
    """The functions of a decode step, or None where Numba is not installed or not to be used."""
    if not available():
        return None
    from maieutic.backends.local.compiled import decoding as made

    return made


@cache
def learning() -> ModuleType | None:
    """The functions of an update, or None as `decoding`."""
    if not available():
        return None
    from maieutic.backends.local.compiled import learning as made

    first: Any = made.norm
    folder = first.stats.cache_path
    if folder and not any(Path(folder).glob("*.nbi")):
        log.info("Compiling kernels for this machine, once: some 20 seconds. They are kept in %s", folder)
    return made


@cache
def available() -> bool:
    """Whether Numba is installed, works and is not switched off. What fails is said once."""
    if find_spec("numba") is None:
        return False
    try:
        from maieutic.backends.local.compiled import parts
    except ImportError as error:  # Numba refuses a numpy that it does not know
        log.warning("Numba is installed and cannot be used (%s): work on a CPU takes longer.", error)
        return False
    return not parts.numba.config.DISABLE_JIT


def crew() -> Crew:
    """torch's threads, as many as it is to use now; one where its OpenMP cannot be found."""
    start = _start()
    return start, torch.get_num_threads() if start else 1


@cache
def _start() -> int:
    """The address of `GOMP_parallel` (GCC's name for it) in the OpenMP that torch has loaded; 0 where there is none."""
    for found in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"):
        try:  # looked up in what that library has loaded, not in the first of that name on this machine
            return ctypes.cast(ctypes.CDLL(str(found)).GOMP_parallel, ctypes.c_void_p).value or 0
        except (OSError, AttributeError):
            continue
    return 0
