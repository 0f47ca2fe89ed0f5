"""What is read of a run: its state, its curves, what was measured, and what the curves say of its health."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tomllib

import pytest

from maieutic.config import parse_config
from maieutic.errors import ConfigError, RunError, UnknownName
from maieutic.report.braille import braille
from maieutic.report.curves import chosen, ends, families, smoothed, thinned
from maieutic.report.data import as_data
from maieutic.report.health import CHECKS, health
from maieutic.report.measured import changes
from maieutic.report.plots import tick_labels, ticks
from maieutic.report.reading import Order, State, only, read_rollouts, read_run
from maieutic.report.sections import _classes
from maieutic.report.transcripts import Piece, credit, find_tokenizer, pieces, visible
from maieutic.run.directory import RunDirectory
from maieutic.run.store import Store
from maieutic.types import Step

# ---- where a run is


def test_a_complete_run(make_run):
    view = read_run(make_run(10))
    assert view.state is State.COMPLETE
    # sft: 2 x 1.5 s; rl: 10 x 2 s, 9 steps with 2 rollouts and one with 3
    assert [(s.name, s.algorithm, s.done, s.total, s.seconds, s.rollouts) for s in view.stages] == [
        ("sft", "sft", 2, 2, 3.0, 0),
        ("rl", "grpo", 10, 10, 20.0, 21),
    ]
    assert [(m.stage, m.name) for m in view.measured] == [("start", "test"), ("sft", "test"), ("rl", "test")]


def test_an_interrupted_run_says_where_and_how_to_go_on(make_run):
    path = make_run(4)
    view = read_run(path)
    assert view.state is State.INTERRUPTED
    assert (view.at.name, view.at.progress) == ("rl", "step 4 of 10")
    assert view.resume == f"maieutic train --run {path} --resume"


def test_a_run_that_is_being_written_is_running(make_run):
    path = make_run(4)
    config = (path / "config.toml").read_text()
    with RunDirectory.create(path, config, resume=True) as held, Store(held.database) as store:
        assert read_run(path).state is State.RUNNING
        store.write_step("rl", Step(4, (), (), None, {"reward/mean": 0.4}), seconds=2.0)
        assert read_run(path).stage("rl").done == 5
    assert read_run(path).state is State.INTERRUPTED


def test_a_run_of_nothing_but_its_config(make_run):
    view = read_run(make_run(None))
    assert (view.state, view.measured, dict(view.curves)) == (State.NOT_BEGUN, (), {})
    assert read_rollouts(view.path, Order.BEST, 3) == []


def test_a_missing_run_names_the_nearest(make_run):
    path = make_run(None)
    with pytest.raises(RunError, match="did you mean 'demo'"):
        read_run(path.parent / "demi")


def test_a_run_of_another_version_is_shown_all_the_same(make_run):
    path = make_run(4)
    config = path / "config.toml"
    written = config.read_text()
    config.write_text(
        written.replace('algorithm = "grpo"', 'algorithm = "grpo"\ngone = 1').replace(
            "seed = 0", "seed = 0\nold = 2", 1
        )
    )
    view = read_run(path)
    assert view.config == parse_config(tomllib.loads(written))
    assert view.warnings == (
        "the config was written for another version of maieutic; keys that this one does not know: old, stages.1.gone",
    )
    config.write_text(written.replace("steps = 10", 'steps = "ten"'))
    with pytest.raises(ConfigError, match="got 'ten'"):
        read_run(path)


def test_one_stage_keeps_what_was_measured_before_it(make_run):
    view = only(read_run(make_run(10)), "rl")
    assert [stage.name for stage in view.stages] == ["rl"]
    assert [m.stage for m in view.measured] == ["sft", "rl"]
    with pytest.raises(UnknownName, match="did you mean 'rl'"):
        only(read_run(view.path), "rll")


def test_epochs_have_no_total_until_the_stage_is_over(make_run):
    stages = [{"algorithm": "sft", "epochs": 1.0}, {"name": "rl", "algorithm": "grpo", "epochs": 1.0}]
    view = read_run(make_run(4, stages=stages))
    assert [(s.done, s.total) for s in view.stages] == [(2, 2), (4, None)]


# ---- curves


def test_curves_are_chosen_in_their_order_and_unknown_ones_refused(make_run):
    curves = read_run(make_run(10)).curves
    assert curves["rl"]["reward/mean"] == [(i, pytest.approx(i / 10)) for i in range(10)]
    assert chosen(curves) == {"sft": ["loss"], "rl": ["reward/mean", "policy/sampler_mismatch_nats"]}
    assert chosen(curves, ["loss", "constant", "loss"]) == {"sft": ["loss"], "rl": ["constant"]}
    with pytest.raises(UnknownName, match="unknown metric 'reward/men'; did you mean 'reward/mean'"):
        chosen(curves, ["reward/men"])


def test_every_metric_comes_under_one_heading():
    names = ["loss", "reward/mean", "reward/odd", "kl", "reward/parts/a", "zzz", "optim/x", "clip_ratio/low"]
    assert families(names) == {
        "Reward": ["reward/mean", "reward/odd"],
        "Policy": ["clip_ratio/low", "kl"],
        "Optimisation": ["loss", "optim/x"],
        "Other": ["zzz"],
    }


def test_long_curves_become_means_of_stretches():
    points = [(i, float(i)) for i in range(5)]
    # 5 points in 2: cuts at 0, round(2.5) = 2, 5: means of (0, 1) and (2, 3, 4)
    assert thinned(points, 2) == [(1, 0.5), (4, 3.0)]
    assert thinned(points, 9) == points
    # width 3: (0 + 1) / 2, then the mean of each with its neighbours, then (3 + 4) / 2
    assert [v for _, v in smoothed(points, 3)] == [0.5, 1.0, 2.0, 3.0, 3.5]
    # 25 points: the first and the last 2
    assert ends([(i, float(i)) for i in range(25)]) == (0.5, 23.5)
    assert ends([(0, 1.0), (1, math.nan)]) is None


def test_braille_by_hand():
    # From the bottom left to the top right of one character: dots (0, 3), (0, 2), (1, 1), (1, 0)
    # = bits 6, 2, 4, 3 = 64 + 4 + 16 + 8 = 92 = 0x5C
    assert braille([(0, 0.0), (1, 1.0)], 1, 1) == [chr(0x285C)]
    # A constant runs through row 4 of 8: the uppermost of the lower line: bits 0 and 3 = 1 + 8
    assert braille([(0, 2.0), (1, 2.0)], 1, 2) == [chr(0x2800), chr(0x2809)]
    assert braille([(0, math.nan)], 3, 1) == ["   "]
    # A single step is one dot: row 2 of 4 at the left = bit 2
    assert braille([(7, 1.0)], 1, 1) == [chr(0x2804)]


def test_ticks_are_round_and_their_labels_differ():
    assert ticks(0.0, 10.0) == [0.0, 2.5, 5.0, 7.5, 10.0]
    assert ticks(3.0, 3.0) == [3.0]
    # 0.0013 / 4 = 0.000325 -> the next of 1, 2, 2.5, 5 times 1e-4 is 0.0005
    assert tick_labels(ticks(0.9994, 1.0007)) == ["0.9995", "1.0000", "1.0005"]
    assert tick_labels(ticks(0.0, 4e-6)) == ["0", "1.0e-06", "2.0e-06", "3.0e-06", "4.0e-06"]


# ---- what was measured


def test_values_and_changes(make_run):
    view = read_run(make_run(10))
    start, _, last = view.measured
    # correct of 4 samples: (0, 0, 1, 4) -> 5/16; (0, 1, 4, 4) -> 9/16;
    # at least one: 2/4 and 3/4; more than two: 1/4 and 2/4
    for each, values in ((start, (5 / 16, 2 / 4, 1 / 4)), (last, (9 / 16, 3 / 4, 2 / 4))):
        assert tuple(each.intervals[m].value for m in ("pass@1", "pass@4", "strict@4")) == pytest.approx(values)
    assert (start.evaluation.histogram(), last.evaluation.histogram()) == ([2, 1, 0, 0, 1], [1, 1, 0, 0, 2])
    found, refused = changes(view.measured)
    assert refused == []
    across = {c.metric: c.difference.value for c in found if (c.old, c.new) == ("start", "rl")}
    assert across["pass@1"] == pytest.approx(4 / 16)
    assert across["pass@4"] == pytest.approx(1 / 4)
    # consecutive stages, and the first against the last
    assert dict.fromkeys((c.old, c.new) for c in found) == dict.fromkeys(
        [("start", "sft"), ("sft", "rl"), ("start", "rl")]
    )


def test_k_of_the_config_is_the_k_that_is_shown(make_run):
    view = read_run(make_run(10, evaluation={"tasks": "test", "samples": 4, "k": 2}))
    # pass@2 of c correct in 4: 1 - C(4 - c, 2) / C(4, 2): c = 0: 0, c = 1: 1 - 3/6 = 1/2, c = 4: 1; mean 1.5 / 4
    assert view.measured[0].intervals["pass@2"].value == pytest.approx(1.5 / 4)
    assert "pass@4" not in view.measured[0].intervals


def test_what_cannot_be_read_or_compared_is_said(make_run, write_evaluation):
    path = make_run(4)
    with Store(path / "run.db") as store:
        store.write_evaluation("rl", 3, "test", write_evaluation([1, 1, 1, 1], ids="other"))
        store.write_evaluation("rl", 3, "odd", {"pass@1": 0.5})
    view = read_run(path)
    assert len(view.warnings) == 1
    assert "'odd' after 'rl' cannot be read" in view.warnings[0]
    refused = changes(view.measured)[1]
    assert len(refused) == 2  # sft against rl, start against rl
    assert "only in 'test'" in refused[0]


def test_problems_that_were_trained_on_are_told(make_run):
    path = make_run(4)
    with Store(path / "run.db") as store:
        store.write_step("rl", Step(4, (), (), None, {}), ledger=[(0, "p1"), (1, "p3"), (2, "elsewhere")])
    assert "2 of the 4 problems of test have the ids of problems that were trained on" in read_run(path).warnings[0]


def test_classes_of_many_samples_never_straddle_the_half():
    assert _classes(3) == [(0, 0), (1, 1), (2, 2), (3, 3)]
    for n in (17, 32, 33, 64, 100):
        classes = _classes(n)
        assert [c for a, b in classes for c in range(a, b + 1)] == list(range(n + 1))
        assert all(2 * b <= n or 2 * a > n for a, b in classes)
        assert len(classes) <= 19


# ---- health

STEPS = range(20)
SICK = {
    "no_reward": {"reward/mean": [0.0] * 20},
    "uniform_groups": {"reward/frac_zero_std": [0.1] * 10 + [0.8] * 10},
    "truncated": {"completions/clipped_ratio": [0.0] * 18 + [0.35] * 2},
    "unscorable": {"rollouts/unscorable": [1.0] * 20, "rollouts/count": [8.0] * 20},
    "failed_rollouts": {"rollouts/errors": [2.0] * 20, "rollouts/count": [8.0] * 20},
    "mismatch": {"policy/sampler_mismatch_nats": [1e-6] * 10 + [0.02] + [1e-6] * 9},
    "skipped": {"train/skipped": [0.0, 1.0] * 10},
    "not_finite": {"optim/skipped": [0.0] * 19 + [1.0], "loss": [math.nan] * 2 + [1.0] * 18},
    "entropy_collapse": {"policy/entropy": [1.0] * 10 + [0.01] * 10},
    "reward_without_correctness": {"reward/mean": [0.2] * 10 + [0.9] * 10, "reward/correct": [0.4] * 10 + [0.1] * 10},
}
SAID = {
    "no_reward": "no rollout of 20 steps",
    "uniform_groups": "from 10.0 % to 80.0 %",
    "truncated": "35.0 % of the last",
    "unscorable": "20 of 160 rollouts (12.5 %)",
    "failed_rollouts": "40 of 160 rollouts (25.0 %)",
    "mismatch": "0.02 nats a token at step 10",
    "skipped": "10 of 20 steps",
    "not_finite": "at 1 steps and the loss at 2",
    "entropy_collapse": "from 1 to 0.01 nats",
    "reward_without_correctness": "from 40.0 % to 10.0 %",
}


def test_every_check_has_a_case():
    assert SICK.keys() == SAID.keys() == CHECKS.keys()


@pytest.mark.parametrize("kind", SICK)
def test_a_sick_curve_is_told_in_words(kind):
    curves = {name: list(zip(STEPS, values)) for name, values in SICK[kind].items()}
    [note] = health({"rl": curves}, ["rl"])
    assert (note.stage, note.kind) == ("rl", kind)
    assert SAID[kind] in note.text


def test_healthy_curves_say_nothing():
    well = {
        "reward/mean": 0.5, "reward/correct": 0.5, "reward/frac_zero_std": 0.6, "completions/clipped_ratio": 0.05,
        "rollouts/unscorable": 0.0, "rollouts/errors": 0.0, "rollouts/count": 8.0, "train/skipped": 0.0,
        "optim/skipped": 0.0, "policy/sampler_mismatch_nats": 1e-6, "policy/entropy": 0.5, "loss": 0.0,
    }  # fmt: skip
    assert (
        health({"rl": {name: [(i, value) for i in STEPS] for name, value in well.items()}, "empty": {}}, ["rl"]) == []
    )


def test_demonstrations_are_not_judged_as_rollouts(make_run):
    # nobody sampled them: their stored log-probs are 0, their reward is 1, and the policy is to become surer
    sick = {
        "policy/sampler_mismatch_nats": [4.6] * 20,
        "policy/entropy": [3.0] * 10 + [0.01] * 10,
        "loss": [math.nan] * 20,
    }
    curves = {"sft": {name: list(zip(STEPS, values)) for name, values in sick.items()}}
    assert [note.kind for note in health(curves, [])] == ["not_finite"]
    path = make_run(4)
    with Store(path / "run.db") as store:
        store.write_step("sft", Step(2, (), (), None, {"reward/mean": 1.0, "policy/entropy": 0.5}))
    view = read_run(path)
    assert set(view.told["sft"]) == {"loss", "policy/entropy"}
    assert set(view.told["rl"]) == set(view.curves["rl"])


# ---- what was written


def test_best_and_worst_are_of_different_tasks(make_run):
    path = make_run(10)
    best = read_rollouts(path, Order.BEST, 3, stage="rl")
    # step 3 has the only reward 2; then the last written of those with reward 1
    assert [(r.score.reward, r.task.id) for r in best] == [(2.0, "t/3"), (1.0, "t/9"), (1.0, "t/8")]
    assert [r.task.id for r in read_rollouts(path, Order.WORST, 2)] == ["t/0", "t/1"]
    # one task only: its siblings follow
    assert [r.score.reward for r in read_rollouts(path, Order.BEST, 5, step=3)] == [2.0, 1.0, 0.0]


def test_what_the_tool_wrote_is_told_apart(make_run, write_step, write_tokenizer):
    path = make_run(2)
    with Store(path / "run.db") as store:
        store.write_step("rl", write_step(2, ("3 + 4 = 7 apples",)))
    [stored] = read_rollouts(path, Order.BEST, 1, step=2)
    assert pieces(stored, find_tokenizer(read_run(path))) == [Piece("3 + 4 = 7 apples")]  # no tokenizer there yet
    write_tokenizer(path / "start")
    tokenizer = find_tokenizer(read_run(path))
    assert pieces(stored, tokenizer) == [Piece("3 + 4 ="), Piece(" 7", inserted=True), Piece(" apples")]
    # a text that is not what these tokens say stays whole
    [other] = read_rollouts(path, Order.BEST, 1, step=1)
    assert pieces(other, tokenizer) == [Piece("right one")]
    assert credit(stored) == ""


def test_nothing_that_a_terminal_obeys_gets_through():
    assert visible("a\tb\n\x1b[2J\x00\u202e\x9b") == "a\tb\n␛[2J␀��"


def test_as_data(make_run):
    path = make_run(4)
    view = read_run(path)
    data = as_data(view, ["reward/mean"], {"best": read_rollouts(path, Order.BEST, 1)})
    assert (data["name"], data["state"], data["checkpoint"]) == ("demo", "interrupted", None)
    assert data["stages"][1] == {
        "name": "rl", "algorithm": "grpo", "tasks": "train", "steps_done": 4, "steps": 10, "seconds": 8.0,
        "rollouts": 9,
    }  # fmt: skip
    assert data["curves"] == {"sft": {}, "rl": {"reward/mean": [(i, pytest.approx(i / 10)) for i in range(4)]}}
    assert data["evaluations"][0]["histogram"] == [2, 1, 0, 0, 1]
    assert data["evaluations"][0]["metrics"]["pass@1"]["value"] == pytest.approx(5 / 16)
    assert {d["metric"] for d in data["differences"]} >= {"greedy", "pass@1", "pass@4", "vote@4", "strict@4", "length"}
    [best] = data["rollouts"]["best"]
    assert (best["reward"], best["parts"], best["prompt"]) == (
        2.0, {"answer": 2.0}, [{"role": "user", "content": "question 3?"}],
    )  # fmt: skip
    assert set(as_data(view, None, {})["curves"]["rl"]) > {"reward/mean", "constant"}


def test_showing_needs_no_torch(make_run):
    code = (
        "import sys\nfrom pathlib import Path\nfrom maieutic.report import write_report\n"
        "import maieutic.report.terminal, maieutic.report.data, maieutic.cli.show\n"
        "write_report(Path(sys.argv[1]))\nprint([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_run(10))], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
