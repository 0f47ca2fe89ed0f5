"""The page: well formed, complete in itself, safe against what a model writes, and true to the numbers."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from maieutic.errors import RunError
from maieutic.report import write_report
from maieutic.report.curves import Points
from maieutic.report.markup import Html, el, table
from maieutic.report.plots import Series, bars, lines, shapes
from maieutic.run.store import Store
from maieutic.types import Step

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that every element is closed by its own end tag, and keeps elements, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def ids(self) -> set[str | None]:
        return {attributes.get("id") for _, attributes in self.elements}


def page_of(path: Path) -> Page:
    return Page(write_report(path).read_text(encoding="utf-8"))


def test_a_complete_run(make_run):
    path = make_run(10)
    page = page_of(path)
    assert (path / "report.html").is_file()
    # what the summary says: correct of 4 samples (0, 0, 1, 4) -> 5/16 = 31.2 %, then (0, 1, 4, 4) -> 9/16 = 56.2 %
    assert "pass@1 31.2 % → 56.2 %, not separable at n = 4" in page.text
    assert "The run is complete." in page.text
    assert "rl (grpo) on train (step 10 of 10; 21 rollouts; 20.0 s)" in page.text
    assert {"measured", "curves", "before-and-after", "rollouts", "settings"} <= page.ids
    assert "seed of the run 0" in page.text
    assert "learning_rate = " in page.text  # the resolved config
    # the problem that gained most: 1 of 4 correct, then 4 of 4, with both texts and the question itself
    assert "gained : p2 · correct 1 of 4 at the start, 4 of 4 after rl" in page.text
    assert "of 4 problems 2 gained correct samples, 0 lost some" in page.text  # (0, 0, 1, 4) -> (0, 1, 4, 4)
    assert "before 5" in page.text
    assert "after 4" in page.text


def test_the_histogram_holds_the_counts_of_every_stage(make_run):
    page = page_of(make_run(10))
    # (0, 0, 1, 4) -> two problems with none, one with 1, one with 4 correct
    [drawing] = [svg["aria-label"] for svg in page.all("svg") if "how many of 4" in (svg.get("aria-label") or "")]
    assert "at the start: 0: 2, 1: 1, 2: 0, 3: 0, 4: 1" in drawing
    assert "after rl: 0: 1, 1: 1, 2: 0, 3: 0, 4: 2" in drawing


def test_what_a_model_wrote_stays_text(make_run):
    path = make_run(10)
    raw = write_report(path).read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;␛[2J &amp; " in raw
    page = Page(raw)
    assert page.all("script") == []
    assert "\x1b" not in raw


def test_hostile_names_and_texts_stay_text(make_run, write_step, write_evaluation):
    evil = "</pre></title><script>x</script>\" onload='x' \u202e\x00"
    path = make_run(4, name="named", evaluation=None)
    with Store(path / "run.db") as store:
        store.write_step(
            "rl", Step(4, write_step(4, (evil, evil)).groups, (), None, {evil: 1.0, "reward/parts/" + evil: 2.0})
        )
        store.write_step("rl", Step(5, (), (), None, {evil: 2.0, "reward/parts/" + evil: 3.0}))
        store.write_evaluation("rl", 3, evil, write_evaluation([1, 2, 3, 4], evil))
    page = page_of(path)
    assert page.all("script") == []
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert "<script>x</script>" in page.text


def test_what_a_tool_wrote_is_marked(make_run, write_step, write_tokenizer):
    path = make_run(2)
    with Store(path / "run.db") as store:
        store.write_step("rl", write_step(2, ("3 + 4 = 7 apples",)))
    assert "a tool wrote 1 of these tokens" in page_of(path).text  # where there is no tokenizer to say which
    write_tokenizer(path / "start")
    raw = write_report(path).read_text(encoding="utf-8")
    assert '<pre>3 + 4 =<mark title="written by a tool"> 7</mark> apples</pre>' in raw


def test_the_page_needs_nothing_else(make_run):
    raw = write_report(make_run(10)).read_text(encoding="utf-8")
    page = Page(raw)
    links = [(a, v) for _, attributes in page.elements for a, v in attributes.items() if a in ("src", "href", "srcset")]
    assert [link for link in links if not str(link[1]).startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\(", raw)
    assert page.all("link") == page.all("iframe") == page.all("script") == []
    [policy] = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_plots_and_tables_speak_to_those_who_do_not_see_them(make_run):
    page = page_of(make_run(10))
    drawings = [svg for svg in page.all("svg") if svg.get("aria-hidden") != "true"]
    # test: intervals, counts, lengths; sft: loss; rl: reward/mean, lengths of the first and last step
    assert len(drawings) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert all(cell["scope"] in ("row", "col") for cell in page.all("th"))
    assert [html["lang"] for html in page.all("html")] == ["en"]


@pytest.mark.parametrize("steps", [None, 0, 1, 4])
def test_runs_that_are_not_at_their_end(make_run, steps):
    page = page_of(make_run(steps))
    if steps is None:
        assert "The run has not done anything yet." in page.text
        assert "Nothing was measured yet." in page.text
        assert "No step was made yet." in page.text
    else:
        assert (
            f"interrupted at step {steps or 2} of {10 if steps else 2} of stage {'rl' if steps else 'sft'}" in page.text
        )
        assert "--resume" in page.text


def test_only_some_rollouts_are_shown(make_run, write_step):
    path = make_run(4)
    with Store(path / "run.db") as store:
        for i in range(4, 10):
            store.write_step("rl", write_step(i, ("x" * 50_000,) * 8))
    page = page_of(path)
    assert (path / "report.html").stat().st_size < 200_000
    # 3 best and 3 worst rollouts of the one stage, and the evaluations' problem that was never solved
    assert len([a for a in page.all("details") if a.get("class") == "card"]) == 7
    assert "46,000 more characters" in page.text


def test_a_curve_that_never_moves_is_a_line_of_text(make_run):
    assert "The same at every step: constant 3, policy/sampler_mismatch_nats 2.0e-06." in page_of(make_run(4)).text


def test_no_run_no_report(tmp_path):
    with pytest.raises(RunError, match="no run at"):
        write_report(tmp_path / "none")


# ---- the parts


def test_markup_by_hand():
    assert el("td", "a < b", class_="n", hidden=True, title=None) == '<td class="n" hidden>a &lt; b</td>'
    assert el("p", ["x", [Html("<b>y</b>"), "&"]], data_n=1.5) == '<p data-n="1.5">x<b>y</b>&amp;</p>'
    assert el("a", title='"><script>') == '<a title="&quot;&gt;&lt;script&gt;"></a>'
    assert el("br") == "<br>"
    assert table(["", "n"], [["a", "1"]], "c").count("<th scope=") == 3


def coordinates(drawing: str, kind: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'<polyline points="([^"]*)" class="s\d {kind}"', drawing)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in each.split())] for each in found]


def test_a_line_is_drawn_where_its_values_are():
    points: Points = [(0, 0.0), (1, 1.0), (2, 0.5)]
    drawing = lines("c", [Series("c", points)])
    [line] = coordinates(drawing, "strong")
    # across: 52 + step / 2 (340 - 52 - 12) = 52, 190, 328.
    # down: 0 at 180 - 24 = 156; the range ends at 1.05: 156 - y / 1.05 (180 - 24 - 8 = 148): 156, 15.05 and 85.52
    assert line == [(52.0, 156.0), (190.0, 15.0), (328.0, 85.5)]
    assert "c from 0 to 0.5, lowest 0, highest 1" in drawing
    assert "step 1: 1" in drawing  # on hovering


def test_single_points_constant_curves_and_missing_numbers_are_drawn():
    for points in ([(3, 1.0)], [(0, 2.0), (1, 2.0)], [(0, float("nan")), (1, 1.0), (2, 2.0)], [(0, -1e-9), (5, 1e9)]):
        drawing = lines("c", [Series("c", points)])
        assert "nan" not in drawing
        assert "inf" not in drawing
    assert "mean 2, longest 3" in shapes("l", [("a", [1.0, 2.0, 3.0])], unit="tokens")
    assert "mean 5, longest 5" in shapes("l", [("a", [5.0, 5.0])], unit="tokens")


def test_bars_are_as_high_as_their_counts():
    drawing = bars("b", ["0", "1"], [("a", [1, 2])])
    # the range ends at 1.05 x 2 = 2.1 over 148 pixels: 1 -> 70.48, 2 -> 140.95
    assert re.findall(r'height="([\d.]+)" class="s0 bar"', drawing) == ["70.4762", "140.952"]
