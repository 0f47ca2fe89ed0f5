"""The page of a comparison: whole, escaped, and in need of nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from maieutic.compare.analyse import analyse
from maieutic.compare.data import as_data
from maieutic.compare.drawing import at, band, learning_curves, log_ticks
from maieutic.compare.page import write_page

VOID = {"meta", "br", "hr"}


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(make_results, tmp_path):
    results = make_results({"a": [[4, 2], [3, 1]], "b": [[2, 2], [1, 1]]}, start=[[2, 1], [1, 1]])
    return write_page(results, [analyse(results, "test")], tmp_path).read_text()


def test_the_page_is_whole_and_needs_nothing_else(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    assert reader.fetched == []
    assert not re.search(r"https?://|url\(|@import|<script|<link", page)
    assert "default-src &#x27;none&#x27;" in page


def test_the_page_says_what_was_found(page):
    said = "No difference between b and a could be seen on pass@1"
    headings = ("On test", "Learning curves", "Correct among each step", "All metrics", "FLOPs are estimated")
    for words in (said, *headings, "b − a", "a − start", "b, seed 2"):
        assert words in page


def test_data_has_every_interval_and_curve(make_results):
    results = make_results({"a": [[4, 2], [3, 1]], "b": [[2, 2], [1, 1]]}, start=[[2, 1], [1, 1]])
    data = as_data(results, [analyse(results, "test")])
    assert set(data["tasksets"]["test"]["arms"]["a"]["pass@1"]) == {
        "value", "low", "high", "over_seeds", "bootstrap", "by_seed",
    }  # fmt: skip
    (pair,) = data["tasksets"]["test"]["pairs"]
    assert (pair["new"], pair["old"], pair["claimed"], pair["seeds"]) == ("b", "a", False, 2)
    assert len(data["trials"]) == 4
    assert data["trials"][0]["curve"] == [(4.0, 0.25), (8.0, 0.5)]


def test_a_band_covers_what_all_seeds_cover():
    # seeds at 10, 100 and 1000, and at 100 and 10,000 samples: together from 100 to 1000. Halfway between 100 and
    # 10,000 on a logarithmic axis is 1000: the second curve is at .6 there
    found = band("a", 0, [[(10, 0.1), (100, 0.2), (1000, 0.4)], [(100, 0.4), (10_000, 0.8)]])
    assert found is not None
    assert [at for at, *_ in found.points] == [100, 1000]
    assert [shares for _, *shares in found.points] == [pytest.approx([0.2, 0.3, 0.4]), pytest.approx([0.4, 0.5, 0.6])]
    assert band("a", 0, [[(10, 0.1)], []]) is None  # a seed without a curve
    assert band("a", 0, [[(10, 0.1)], [(20, 0.1)]]) is None  # nothing in common


def test_a_logarithmic_axis():
    assert at([(1, 0.0), (100, 1.0)], 10) == pytest.approx(0.5)
    assert log_ticks(2.0, 3.1) == [100.0, 200.0, 500.0, 1000.0]
    assert log_ticks(0.0, 4.0) == [1.0, 10.0, 100.0, 1000.0, 10000.0]
    one = band("a", 0, [[(100, 0.5)]])
    assert one is not None
    assert "a from 50.0 % at 100" in learning_curves("Correct", [one], "samples")
