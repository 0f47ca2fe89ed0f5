"""How sure a number is, and whether two differ: intervals, paired tests, and how many problems would be needed.

Letters: `N` problems, `R` resamples.

* One sample a problem: `wilson`. Anything else: `bootstrap` over *problems*, since samples of one problem are not
  independent of each other.
* Two models: always paired on the same problems (`paired_difference`), with the exact `mcnemar` for right/wrong and
  `sign_flip` for other numbers; many comparisons at once: `holm`.
* Training seeds: `t_interval` over the seeds' results, which is another noise than that of the evaluation set.

Where one value cannot say anything the interval is infinite. Values that are all equal give an interval of width 0
unless `bounds` say what the quantity can be (shares are never given without).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

#: Random numbers drawn at once.
_CHUNK = 2_000_000

#: Two statistics nearer than this, relatively, are the same number: resampled sums differ in their rounding.
_SAME = 1e-9


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where the truth may lie.

    >>> str(wilson(30, 100))
    '30.0 % (21.9 to 39.6)'
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """As JSON: an infinite end is null."""
        return {"value": self.value, "low": _finite(self.low), "high": _finite(self.high)}

    def percent(self, digits: int = 1) -> str:
        """A share as people read it: `30.0 % (21.9 to 39.6)`."""
        return f"{100 * self.value:.{digits}f} %" + _range(100 * self.low, 100 * self.high, digits)

    def plain(self, digits: int = 1) -> str:
        """A number that is not a share: `112.4 (108.0 to 117.1)`."""
        return f"{self.value:.{digits}f}" + _range(self.low, self.high, digits)

    def __str__(self) -> str:
        return self.percent()


@dataclass(frozen=True, slots=True)
class Difference:
    """`new - old` on the same `n` problems, with the verdict in plain words.

    `needed` is about how many problems would separate a difference as large as the one seen: None when it is already
    separated, or when no number would follow from these data (no difference was seen, or one problem only).
    """

    value: float
    low: float
    high: float
    p_value: float
    n: int
    verdict: str
    needed: int | None = None

    def to_dict(self) -> dict[str, float | int | str | None]:
        """As JSON: an infinite end is null."""
        return {
            "value": self.value,
            "low": _finite(self.low),
            "high": _finite(self.high),
            "p_value": self.p_value,
            "n": self.n,
            "verdict": self.verdict,
            "needed": self.needed,
        }

    def percent(self, digits: int = 1) -> str:
        """Between shares: `+2.6 points (-3.6 to +8.8), p = 0.45: not separable at n = 500; ...`."""
        size = f"{100 * self.value:+.{digits}f} points" + _range(100 * self.low, 100 * self.high, digits, sign="+")
        return f"{size}, p = {self.p_value:.2g}: {self.verdict}"

    def plain(self, digits: int = 1) -> str:
        """Between other numbers: `+12.5 (+3.1 to +21.9), p = 0.008: longer`."""
        size = f"{self.value:+.{digits}f}" + _range(self.low, self.high, digits, sign="+")
        return f"{size}, p = {self.p_value:.2g}: {self.verdict}"

    def __str__(self) -> str:
        return self.percent()


class Ends(Enum):
    """How `bootstrap` reads an interval off the resampled statistics."""

    PERCENTILE = "percentile"
    BCA = "bca"
    """Bias-corrected and accelerated (Efron 1987): second-order exact, for skewed statistics."""


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval for a share of `n` independent trials.

    `(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`; unlike `p +- z sqrt(p(1-p)/n)` it has a width at 0 of n
    and n of n. Raises ValueError unless 0 <= successes <= n and n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"wilson: got {successes} successes of {n}; expected 0 <= successes <= n and n >= 1")
    z = _z(confidence)
    p = successes / n
    middle = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    # The ends at 0 and 1 are exact; only their rounding is cut off.
    return Interval(p, max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))


def bootstrap(
    values: ArrayLike,
    statistic: Callable[..., Any] = np.mean,
    *,
    resamples: int = 10_000,
    seed: int = 0,
    confidence: float = 0.95,
    ends: Ends = Ends.PERCENTILE,
    bounds: tuple[float, float] | None = None,
) -> Interval:
    """Bootstrap interval of `statistic` over problems: draw N of the N problems with replacement, `resamples` times.

    `values [N]` holds one number a problem; `statistic(sample, axis=-1)` reduces the last axis. One value gives an
    infinite interval. Equal values have equal resamples, an interval of width 0 that says nothing of problems not
    seen; for a mean of values that cannot leave `bounds` it is widened: a share of at most w = `wilson(0, N).high`
    of all problems differs from what was seen, and those may lie anywhere within the bounds.

    Raises ValueError for no values, for values that are not finite numbers, and for values outside `bounds`.
    """
    x = _values(values)
    value = float(statistic(x, axis=-1))
    if bounds is not None and (x.min() < bounds[0] - _SAME or x.max() > bounds[1] + _SAME):
        raise ValueError(f"bootstrap: got values from {x.min():g} to {x.max():g}; expected them within {bounds}")
    if bounds is not None and x.max() - x.min() <= _SAME:
        share = wilson(0, len(x), confidence).high
        return Interval(value, (1 - share) * value + share * bounds[0], (1 - share) * value + share * bounds[1])
    if len(x) < 2:
        return Interval(value, -math.inf, math.inf)
    drawn = _resampled(x, statistic, resamples, seed)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    if ends is Ends.BCA:
        tails = _bca(x, statistic, value, drawn, tails)
    low, high = np.quantile(drawn, tails)
    return Interval(value, float(low), float(high))


def paired_bootstrap(new: ArrayLike, old: ArrayLike, **settings: Any) -> Interval:
    """`bootstrap` of the mean of `new - old`, both `[N]` on the same problems in the same order; same settings."""
    return bootstrap(_differences(new, old), **settings)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p value of b problems that only one model gets right against c that only the other does.

    `min(1, 2 P(X <= min(b, c)))` with X ~ Binomial(b + c, 1/2), in whole numbers; 1 when no problem is discordant.
    Raises ValueError for negative counts.
    """
    if b < 0 or c < 0:
        raise ValueError(f"mcnemar: got {b} and {c}; expected how many problems only one of the two gets right")
    n, ways, total = b + c, 1, 0
    for i in range(min(b, c) + 1):
        total += ways
        ways = ways * (n - i) // (i + 1)
    return min(1.0, 2 * total / 2**n)


def mcnemar_test(differences: ArrayLike) -> float:
    """`mcnemar` of paired differences `[N]`, each -1, 0 or 1. Raises ValueError for any other."""
    d = _values(differences)
    if not np.isin(d, (-1.0, 0.0, 1.0)).all():
        raise ValueError("mcnemar: got a difference other than -1, 0 and 1; use `sign_flip` for numbers between")
    return mcnemar(int((d > 0).sum()), int((d < 0).sum()))


def sign_flip(differences: ArrayLike, *, resamples: int = 10_000, seed: int = 0) -> float:
    """Permutation p value (two-sided) that paired differences `[N]` are symmetric about 0.

    Were the two models alike, each difference could as well have had the other sign. The p value is the share of
    sign patterns whose absolute sum is at least the one seen: of all `2^M` patterns of the M differences that are not
    0 where those are no more than `resamples`, else `(1 + hits) / (1 + resamples)` of random ones, which is never 0.
    """
    d = np.abs(_values(differences))
    seen = abs(float(np.sum(_values(differences))))
    d = d[d > 0]
    if not len(d):
        return 1.0
    least = seen - _SAME * float(d.sum())
    if len(d) <= 60 and 2 ** len(d) <= resamples:
        patterns = np.arange(2 ** len(d))[:, None] >> np.arange(len(d)) & 1
        return float((np.abs((2 * patterns - 1) @ d) >= least).mean())
    rng, hits = np.random.default_rng(seed), 0
    rows = max(1, _CHUNK // len(d))
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        signs = np.unpackbits(rng.integers(0, 256, (count, -(-len(d) // 8)), dtype=np.uint8), axis=1)[:, : len(d)]
        # sum of +-d = 2 (sum of those with +) - sum of all
        hits += int((np.abs(2 * (signs.astype(np.float64) @ d) - d.sum()) >= least).sum())
    return (1 + hits) / (1 + resamples)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: rejecting those below alpha errs at all with at most alpha.

    The i-th smallest of m (i from 0) becomes `max over j <= i of min(1, (m - j) p_(j))`. Holm 1979.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"holm: got {list(p_values)}; expected p values within 0..1")
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def t_interval(seed_values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Student's interval for the mean of one number a training seed: `mean +- t(n-1) s / sqrt(n)`.

    With one seed the spread is unknown and the interval is infinite.
    """
    x = _values(seed_values)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = student_t(confidence, len(x) - 1) * float(x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(mean, mean - half, mean + half)


def student_t(confidence: float, df: int) -> float:
    """The t with `P(|T| <= t) = confidence` for `df` degrees of freedom (2.776 for .95 and 4)."""
    _z(confidence)
    if df < 1:
        raise ValueError(f"student_t: got {df} degrees of freedom; expected at least 1")
    low, high = 0.0, math.pi / 2  # in theta = atan(t / sqrt(df)), where the distribution is a finite sum
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, df) < confidence else (low, middle)
    return math.tan(low) * math.sqrt(df)


def required_problems(mean: float, sd: float, *, confidence: float = 0.95, power: float = 0.8) -> int | None:
    """About how many problems would separate a mean paired difference of `mean` from 0; None where it is 0.

    `N = ((z_confidence + z_power) sd / mean)^2`, `sd` being the standard deviation of the paired differences: with so
    many problems a true difference of this size is found significant (two-sided, at `confidence`) with probability
    `power`. Never fewer than the smallest N at which N equal signs are significant, `2^(1-N) < 1 - confidence`.
    """
    if mean == 0 or not math.isfinite(sd):
        return None
    z = _z(confidence) + NormalDist().inv_cdf(power)
    fewest = math.floor(1 - math.log2(1 - confidence)) + 1
    return max(fewest, math.ceil((z * sd / mean) ** 2 - _SAME))


def paired_difference(
    new: ArrayLike,
    old: ArrayLike,
    *,
    test: Callable[[ArrayLike], float] = sign_flip,
    words: tuple[str, str] = ("better", "worse"),
    confidence: float = 0.95,
    bounds: tuple[float, float] | None = (-1.0, 1.0),
    **settings: Any,
) -> Difference:
    """Is `new` better than `old`, both `[N]` on the same problems in the same order?

    The interval is the paired bootstrap, the p value is `test(new - old)`; a difference counts as separated when the
    p value is below `1 - confidence` *and* the interval leaves 0 out. `words` say what a positive and what a negative
    difference mean, `bounds` what a single difference can be (None: anything), `settings` go to `bootstrap`.
    """
    d = _differences(new, old)
    interval = bootstrap(d, confidence=confidence, bounds=bounds, **settings)
    p_value = test(d)
    if p_value < 1 - confidence and (interval.low > 0 or interval.high < 0):
        verdict, needed = words[0] if interval.value > 0 else words[1], None
    else:
        needed = required_problems(_mean(d), float(d.std(ddof=1)) if len(d) > 1 else math.nan, confidence=confidence)
        needed = None if needed is None else max(needed, len(d) + 1)
        verdict = f"not separable at n = {len(d):,}; {_remedy(needed, interval.value)}"
    return Difference(interval.value, interval.low, interval.high, p_value, len(d), verdict, needed)


def _remedy(needed: int | None, value: float) -> str:
    if needed is not None:
        return f"about {_round(needed):,} problems would be needed"
    return "no difference was seen" if abs(value) <= _SAME else "one problem cannot say how much problems vary"


def _round(n: int) -> int:
    """To two digits, upwards: a third would claim to be known."""
    unit = 10 ** max(0, len(str(n)) - 2)
    return -(-n // unit) * unit


def _mean(d: Floats) -> float:
    mean = float(d.mean())
    return 0.0 if abs(mean) <= _SAME else mean


def _resampled(x: Floats, statistic: Callable[..., Any], resamples: int, seed: int) -> Floats:
    """The statistic of `resamples` draws, `[R]`."""
    if resamples < 1:
        raise ValueError(f"bootstrap: got {resamples} resamples; expected at least 1, and 10,000 for stable ends")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(x))
    parts = []
    for start in range(0, resamples, rows):
        index = rng.integers(0, len(x), (min(rows, resamples - start), len(x)), dtype=np.int32)
        parts.append(statistic(x[index], axis=-1))
    return np.concatenate(parts)


def _bca(x: Floats, statistic: Callable[..., Any], value: float, drawn: Floats, tails: Floats) -> Floats:
    """The percentiles to read for a BCa interval: Efron 1987, equations 2.3 and 6.6 (jackknife acceleration)."""
    below = float(((drawn < value).sum() + (drawn == value).sum() / 2) / len(drawn))
    below = min(max(below, 0.5 / len(drawn)), 1 - 0.5 / len(drawn))
    normal = NormalDist()
    z0 = normal.inv_cdf(below)
    n = len(x)
    jack = np.array([float(statistic(np.delete(x, i), axis=-1)) for i in range(n)])
    off = jack.mean() - jack
    spread = float((off**2).sum()) ** 1.5
    a = float((off**3).sum()) / (6 * spread) if spread > 0 else 0.0
    moved = [z0 + (z0 + normal.inv_cdf(float(t))) / (1 - a * (z0 + normal.inv_cdf(float(t)))) for t in tails]
    return np.array([normal.cdf(z) for z in moved])


def _student_within(theta: float, df: int) -> float:
    """`P(|T| <= sqrt(df) tan(theta))`: Abramowitz & Stegun 26.7.3 (odd df) and 26.7.4 (even)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for i in range(df // 2):
        total += term
        term *= cosine * cosine * (2 * i + 1 + odd) / (2 * i + 2 + odd)
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"got confidence {confidence}; expected a share between 0 and 1, such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _values(values: ArrayLike) -> Floats:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"got values of shape {x.shape}; expected one finite number a problem, [N] with N >= 1")
    return x


def _differences(new: ArrayLike, old: ArrayLike) -> Floats:
    a, b = _values(new), _values(old)
    if len(a) != len(b):
        raise ValueError(f"got {len(a)} and {len(b)} values; expected both on the same problems in the same order")
    return a - b


def _range(low: float, high: float, digits: int, sign: str = "") -> str:
    if not (math.isfinite(low) and math.isfinite(high)):
        return " (could be anything)"
    return f" ({low:{sign}.{digits}f} to {high:{sign}.{digits}f})"


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None
