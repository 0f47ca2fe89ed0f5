"""Where the seconds of a step went, told from made-up metrics: parts, bars, and the line that names a bottleneck.

`rl` of the made-up run has 32 prompts of 8 generations a step, 512 rows at a time, and 10 steps of which 2 are timed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from maieutic.cli.show import show
from maieutic.report import write_report
from maieutic.report.data import as_data
from maieutic.report.reading import read_run
from maieutic.report.waterfall import waterfall
from maieutic.run.store import Store

app = typer.Typer()
app.command()(show)

#: Two steps of 2 s: 1.2 s of sampling (decoding 0.9, prefill 0.1), 0.1 of reward, 0.5 of update, 0.2 of the rest.
STEP = {
    "time/step": 2.0, "time/sampling": 1.2, "time/sampling/decode": 0.9, "time/sampling/prefill": 0.1,
    "time/reward": 0.1, "time/update": 0.5, "time/update/forward": 0.2, "time/update/backward": 0.3,
    "time/publish": 0.001, "time/other": 0.199,
    "beside/reward": 0.8, "beside/reward_hidden": 0.875,
    "rate/decode_tokens_per_second": 1500.0, "rate/decode_share_of_peak": 0.18,
    "rate/update_tokens_per_second": 9000.0, "rate/update_share_of_peak": 0.3,
    "rate/sampling_tokens_per_second": 1200.0, "rate/flops_per_second": 2e10, "rate/share_of_peak": 0.2,
}  # fmt: skip

Write = Callable[[Mapping[str, float]], Path]


@pytest.fixture
def timed(make_run: Callable[..., Path]) -> Write:
    """`timed(metrics)`: the made-up run, two steps of whose `rl` have these metrics."""

    def write(metrics: Mapping[str, float], **changes: object) -> Path:
        path = make_run(4, **changes)
        with Store(path / "run.db") as store:
            for step in range(2):
                store.write_metrics("rl", step, metrics)
        return path

    return write


def shown(path: Path, width: int = 120) -> str:
    arguments = [str(path), "--no-report", "--best", "0", "--worst", "0"]
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_parts_of_a_mean_step():
    # the second step takes a second more, all of it in decoding, and its tokens come at 900 a second
    more = {"time/step": 3.0, "time/sampling": 2.2, "time/sampling/decode": 1.9, "rate/decode_tokens_per_second": 900.0}
    found = waterfall({name: [(0, value), (1, more.get(name, value))] for name, value in STEP.items()})
    assert found is not None
    assert (found.steps, found.seconds) == (2, 2.5)
    parts = {part.path: part for part in found.parts}
    assert list(parts) == [
        "sampling", "sampling/prefill", "sampling/decode", "sampling/rest", "reward",
        "update", "update/forward", "update/backward", "publish", "other",
    ]  # fmt: skip
    assert sum(part.seconds for part in found.of("")) == pytest.approx(2.5)
    decode = parts["sampling/decode"]
    assert (decode.seconds, decode.share) == (pytest.approx(1.4), pytest.approx(0.56))
    # 0.9 s at 1500 and 1.9 s at 900 are 3060 tokens in 2.8 s
    assert decode.tokens_per_second == pytest.approx(3060 / 2.8)
    assert decode.share_of_peak == pytest.approx(0.18)
    # 1.7 s of sampling, of which 0.1 and 1.4 have a name; it comes after these
    assert parts["sampling/rest"].seconds == pytest.approx(0.2)
    assert parts["sampling/rest"].start == pytest.approx(1.5)
    assert parts["reward"].start == pytest.approx(1.7)
    assert parts["update/backward"].start == pytest.approx(1.7 + 0.1 + 0.2)
    assert found.rewards == (pytest.approx(0.8), pytest.approx(0.875))


def test_a_phase_that_some_steps_lack_is_shared_by_all():
    curves = {"time/step": [(0, 1.0), (1, 1.0)], "time/checkpoint": [(1, 0.5)], "time/other": [(0, 1.0), (1, 0.5)]}
    found = waterfall(curves)
    assert found is not None
    assert [(part.path, part.seconds) for part in found.parts] == [("checkpoint", 0.25), ("other", 0.75)]


def test_a_run_without_times_has_none(make_run):
    path = make_run(10)
    view = read_run(path)
    assert view.waterfalls == {}
    assert as_data(view, None, {})["phases"] == {}
    assert "seconds of a step" not in shown(path)
    assert "Where the time goes" not in write_report(path).read_text(encoding="utf-8")


def test_it_is_shown(timed):
    text = shown(timed(STEP), 400)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()}
    assert "where the seconds of a step of rl go" in text
    assert rows["decode"][-6:] == ["0.9", "45", "%", "1,500", "18", "%"]
    assert rows["step"][-5:] == ["2", "100", "%", "20", "%"]
    assert "publish" not in rows
    assert "Below 0.5 % each: publish." in text
    assert "Rewards were at work for 0.8 s, 87.5 % of it hidden behind sampling." in text
    assert "20 GFLOP/s over the whole step; the machine's matrix products run at 100." in text
    # a bar begins where the one before it ended: prefill is 5 % of 32 characters, decoding begins there
    bars = {line.split()[0]: line.index("█") for line in text.splitlines() if "█" in line}
    assert bars["sampling"] + 1 == bars["decode"] < bars["update"]


@pytest.mark.parametrize("width", [40, 60, 90, 200])
def test_it_is_no_wider_than_the_terminal(timed, width):
    lines = shown(timed({**STEP, "time/annotate": 0.3, "time/annotate/ref_logprobs": 0.3}), width).splitlines()
    assert max(map(len, lines)) <= width


def test_it_is_data(timed):
    [phases] = as_data(read_run(timed(STEP)), None, {})["phases"].values()
    assert json.loads(json.dumps(phases)) == phases
    assert phases["phases"][2] == {
        "path": "sampling/decode", "seconds": 0.9, "share": 0.45, "tokens_per_second": 1500.0, "share_of_peak": 0.18,
    }  # fmt: skip
    assert phases["rewards"] == {"busy_seconds": 0.8, "hidden_share": 0.875}
    assert phases["bottleneck"].startswith("Decoding takes 45 % of a step")


def test_it_is_on_the_page(timed):
    page = write_report(timed(STEP)).read_text(encoding="utf-8")
    assert "<h2>Where the time goes</h2>" in page
    # 1.2 of 2 s are cut into what they are made of, 0.5 are not; 0.001 s of publishing is not drawn on its own
    words = (
        "sampling: prefill 0.1 s, sampling: decode 0.9 s, sampling: rest 0.2 s, reward 0.1 s, update 0.5 s, "
        "other 0.199 s, the rest 0.001 s"
    )
    assert f"rl: a step of 2.0 s. {words}" in page
    assert "<p>Decoding takes 45 % of a step at 18 % of the machine" in page


def test_seconds_are_no_learning_curves(timed):
    told = read_run(timed(STEP)).told["rl"]
    assert "rate/decode_tokens_per_second" in told
    assert not [name for name in told if name.startswith(("time/", "beside/"))]


# ---- the bottleneck

#: Beside what a case says, a step of 1 s.
CASES = {
    "decoding": (
        {"time/sampling": 0.7, "time/sampling/decode": 0.61, "rate/decode_share_of_peak": 0.18},
        "Decoding takes 61 % of a step at 18 % of the machine's matrix rate: more rows at a time (num_generations × "
        "prompts, now 8 × 32) would help",
    ),
    "decoding near the peak": (
        {"time/sampling": 0.7, "time/sampling/decode": 0.61, "rate/decode_share_of_peak": 0.5},
        "Decoding takes 61 % of a step at 50 % of the machine's matrix rate, near what it can do: shorter completions "
        "or a smaller model would help",
    ),
    "decoding at no known rate": (
        {"time/sampling": 0.7, "time/sampling/decode": 0.61},
        "Decoding takes 61 % of a step: more rows at a time (num_generations × prompts, now 8 × 32) would help",
    ),
    "prefill": (
        {"time/sampling": 0.7, "time/sampling/decode": 0.2, "time/sampling/prefill": 0.4,
         "rate/prefill_share_of_peak": 0.4},
        "Reading prompts takes 40 % of a step at 40 % of the machine's matrix rate: more siblings a prompt "
        "(num_generations, now 8), which share its reading, would help",
    ),
    "the rest of sampling": (
        {"time/sampling": 0.7, "time/sampling/decode": 0.2, "time/sampling/prefill": 0.1},
        "What sampling does beside running the model (texts, tools, rows) takes 40 % of a step: more rows at a time "
        "would share it",
    ),
    "sampling elsewhere": (
        {"time/sampling": 0.7},
        "Drawing the rows of a step takes 70 % of a step: what writes or reads them is the limit",
    ),
    "rewards": (
        {"time/sampling": 0.3, "time/sampling/decode": 0.3, "time/reward": 0.5, "beside/reward": 0.625,
         "beside/reward_hidden": 0.2},
        "Waiting for rewards takes 50 % of a step, and 20 % of their time is hidden behind sampling: a faster reward, "
        "or one that waits instead of computing, would help",
    ),
    "a reference": (
        {"time/annotate": 0.6, "time/annotate/ref_logprobs": 0.4, "time/annotate/old_logprobs": 0.2},
        "Scoring the rows before the update takes 60 % of a step: a loss or credit that does not read ref_logprobs "
        "would spare it",
    ),
    "an update of few rows": (
        {"time/update": 0.6, "rate/update_share_of_peak": 0.1, "rate/update_tokens_per_second": 20_000.0},
        "Updating takes 60 % of a step at 10 % of the machine's matrix rate: more rows at a time (prompts, now 32) "
        "would help",  # 12,000 tokens, which fit in one micro-batch
    ),
    "an update in pieces": (
        {"time/update": 0.6, "rate/update_share_of_peak": 0.1, "rate/update_tokens_per_second": 40_000.0},
        "Updating takes 60 % of a step at 10 % of the machine's matrix rate: more tokens at once (micro_batch_tokens, "
        "now 16,384) would help",
    ),
    "an update near the peak": (
        {"time/update": 0.6, "rate/update_share_of_peak": 0.7},
        "Updating takes 60 % of a step at 70 % of the machine's matrix rate, near what it can do: fewer passes over "
        "the rows or a smaller model would help",
    ),
    "an optimiser": (
        {"time/update": 0.6, "time/update/optimiser": 0.4, "rate/update_share_of_peak": 0.1},
        "Updating takes 60 % of a step, most of it in the optimiser: fewer optimiser steps for the same rows (epochs, "
        "minibatches), or more rows in each, would help",
    ),
    "the store": (
        {"time/store": 0.6},
        "Writing the database takes 60 % of a step: a faster disk, or more rollouts a step, would help",
    ),
    "checkpoints": (
        {"time/checkpoint": 0.6},
        "Writing checkpoints takes 60 % of a step: a larger checkpoint_every (now 20) would help",
    ),
    "validation": (
        {"time/validation": 0.6, "time/validation/decode": 0.5},
        "Validation takes 60 % of a step: a larger `every` or a lower `limit` of it would help",
    ),
    "a phase": (
        {"time/pack": 0.6},
        "The phase 'pack' takes 60 % of a step: the models are so small that Python is the limit",
    ),
    "nothing that has a name": (
        {"time/pack": 0.2},
        "What is outside of every phase takes 80 % of a step: the models are so small that Python is the limit",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_bottleneck_is_named(timed, case):
    told, line = CASES[case]
    named = sum(seconds for name, seconds in told.items() if name.startswith("time/") and name.count("/") == 1)
    path = timed({"time/step": 1.0, "time/other": 1.0 - named, **told})
    assert line in " ".join(shown(path, 400).split())
    assert read_run(path).waterfalls["rl"].bottleneck == line


def test_more_rows_than_fit_are_a_matter_of_max_rows(timed):
    told, _ = CASES["decoding"]
    path = timed({"time/step": 1.0, "time/other": 0.3, **told}, max_rows=64)
    assert "more rows at a time (max_rows, now 64) would help" in read_run(path).waterfalls["rl"].bottleneck
