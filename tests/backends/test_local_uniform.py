"""The counter-based generator: exact, uniform, and independent across rows and positions."""

import numpy as np

from maieutic.backends.local.uniform import row_key, uniforms


def keys(count: int, name: str = "step/1") -> np.ndarray:
    return np.array([row_key(name, sibling) for sibling in range(count)], dtype=np.uint64)


def test_is_splitmix64() -> None:
    # SplitMix64 seeded with 0 is known to begin 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F;
    # the number is the top 24 bits over 2^24.
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = uniforms(np.zeros(3, np.uint64), np.arange(3))
    assert found.tolist() == [(number >> 40) / 2**24 for number in known]


def test_never_reaches_one_and_float32_holds_it_exactly() -> None:
    found = uniforms(keys(200).repeat(500), np.tile(np.arange(500), 200))
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1 - 2**-24
    assert (found.astype(np.float64) * 2**24 % 1 == 0).all()


def test_uniform_along_positions_and_along_rows() -> None:
    # 100 bins, 100,000 numbers: the statistic has mean 99 and standard deviation sqrt(198) = 14.1; 160 is 4.3 away.
    grid = uniforms(keys(1000).repeat(100), np.tile(np.arange(100), 1000)).reshape(1000, 100)
    for numbers in (grid.ravel(), uniforms(np.full(100_000, keys(1)[0]), np.arange(100_000))):
        counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 160


def test_rows_positions_and_keys_are_uncorrelated() -> None:
    # Correlations of 100,000 independent pairs have standard deviation 1 / sqrt(100,000) = 0.0032; 0.014 is 4.4 away.
    grid = uniforms(keys(1000).repeat(101), np.tile(np.arange(101), 1000)).reshape(1000, 101)
    other = uniforms(keys(1000, "step/2").repeat(101), np.tile(np.arange(101), 1000)).reshape(1000, 101)
    pairs = {
        "next position": (grid[:, :-1], grid[:, 1:]),
        "next sibling": (grid[:-1, :-1], grid[1:, :-1]),
        "another key": (grid[:, :-1], other[:, :-1]),
    }
    for name, (left, right) in pairs.items():
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.014, name


def test_keys_differ_by_name_and_sibling() -> None:
    made = {row_key(name, sibling) for name in ("a", "a/1", "1/a", "") for sibling in range(50)}
    assert len(made) == 200
