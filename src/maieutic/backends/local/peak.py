"""What the machine can do at most, measured: the rates against which rollouts and updates are held.

A matrix product `[M, K] @ [K, N]` takes 2·M·K·N floating-point operations. Its rate depends on `M`: a decode step has
as many rows as completions are written together, and at few of them memory is the limit, not arithmetic.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from maieutic.backends.local.products import available
from maieutic.backends.local.products import laid_out as arrange

#: Rows and sides of the product whose rate is called the peak; and on a GPU, which a smaller one does not fill.
PEAK_ROWS, PEAK_SIDE, ON_GPU = 1024, 1024, 8192

#: Bytes that are copied to measure the memory: far more than a processor's caches hold.
COPIED = 1 << 28


def matrix_rate(
    rows: int,
    inner: int,
    columns: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seconds: float = 0.2,
    laid_out: bool = False,
) -> float:
    """Floating-point operations a second of `[rows, inner] @ [inner, columns]`: the best of repeated products.

    The best, not the mean: what else the machine does can only slow a product down. `laid_out`: with the weight
    arranged beforehand, where there are such products (`products`) and they are the faster ones. Raises ValueError for
    sizes or seconds that are not above 0.
    """
    if min(rows, inner, columns) < 1 or seconds <= 0:
        raise ValueError(
            f"matrix_rate: got a product of [{rows}, {inner}] and [{inner}, {columns}] for {seconds} seconds; expected "
            "sizes of at least 1 and seconds above 0"
        )
    # As a linear layer keeps its weight. A GPU is slower on random numbers than on ones: they take more power.
    fill = torch.ones if torch.device(device).type == "cpu" else torch.randn
    left = fill(rows, inner, dtype=dtype, device=device)
    right = fill(columns, inner, dtype=dtype, device=device)
    operations = 2.0 * rows * inner * columns
    repeats = max(1, int(5e7 / operations))  # so that one timing is far longer than the clock's grain

    def products() -> None:
        for _ in range(repeats):
            torch.nn.functional.linear(left, right)

    def arranged_products() -> None:
        for _ in range(repeats):
            arranged(left)

    ways: list[Callable[[], object]] = [products]
    if laid_out and dtype == torch.float32 and torch.device(device).type == "cpu" and available():
        arranged = arrange(right)
        ways.append(arranged_products)
    return repeats * operations / min(_best(way, torch.device(device), seconds) for way in ways)


def peak(*, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu", seconds: float = 0.2) -> float:
    """Floating-point operations a second of a large matrix product, with the threads that torch uses now."""
    rows, side = (PEAK_ROWS, PEAK_SIDE) if torch.device(device).type == "cpu" else (ON_GPU, ON_GPU)
    return matrix_rate(rows, side, side, dtype=dtype, device=device, seconds=seconds, laid_out=True)


def bandwidth(*, device: str | torch.device = "cpu", seconds: float = 0.2) -> float:
    """Bytes a second between memory and processor: those read and those written of a large copy."""
    if seconds <= 0:
        raise ValueError(f"bandwidth: got {seconds} seconds; expected more than 0")
    source = torch.zeros(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2.0 * COPIED / _best(lambda: target.copy_(source), torch.device(device), seconds)


def _best(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The shortest time that `work` took, in seconds, of as many times as fit (at least three).

    Of one thread on a CPU it is the processor's time, which other programs lengthen less than the wall's.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    with torch.inference_mode():
        work()
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while len(taken) < 3 or time.perf_counter() < end:
            _finish(device)
            start = clock()
            work()
            _finish(device)
            taken.append(clock() - start)
    return min(taken)


def _finish(device: torch.device) -> None:
    """Wait for what was asked of an accelerator: it works on while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
