"""`maieutic show`: what stands in the terminal, and the same as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from maieutic.cli.show import show
from maieutic.errors import RunError, UnknownName
from maieutic.run.store import Store
from maieutic.types import Step

app = typer.Typer()
app.command()(show)


def shown(*arguments: str | Path, width: int = 110) -> str:
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def refused(*arguments: str | Path) -> BaseException | None:
    return CliRunner().invoke(app, list(map(str, arguments))).exception


def test_a_complete_run(make_run):
    path = make_run(10)
    text = shown(path)
    assert "demo  complete" in text
    # 21 rollouts: 9 steps of 2 and one of 3; 10 steps of 2 s
    assert ["rl", "grpo", "train", "10", "of", "10", "20.0", "s", "21"] in [line.split() for line in text.splitlines()]
    # pass@1 of (0, 0, 1, 4) of 4 = 5/16 = 31.25 %, after sft the same, after rl (0, 1, 4, 4) = 9/16 = 56.25 %
    [line] = [line for line in text.splitlines() if line.startswith("pass@1")]
    assert [float(part) for part in line.split() if part[0].isdigit() and part[-1].isdigit()] == [31.2, 31.2, 56.2]
    assert "not separable at n = 4" in text
    assert "reward/mean 0.9" in text  # the curve's last value
    assert "reward 2 (answer 2) · correct · stop · 6 tokens · rl step 3 · task t/3" in text
    assert "best rollouts" in text
    assert "worst rollouts" in text
    assert (path / "report.html").is_file()


def test_an_interrupted_run(make_run):
    path = make_run(4)
    text = shown(path, "--no-report", "--best", "0", "--worst", "0", width=200)
    assert "demo  interrupted at step 4 of 10 of stage rl" in text
    assert f"go on with: maieutic train --run {path} --resume" in text
    assert "best rollouts" not in text
    assert not (path / "report.html").exists()


def test_while_it_is_being_written(make_run):
    path = make_run(4)
    with Store(path / "run.db") as store:
        store.write_step("rl", Step(4, (), (), None, {"reward/mean": 0.4}), seconds=2.0)
        assert "at step 5 of 10" in shown(path)


def test_a_run_of_nothing_but_its_config(make_run):
    text = shown(make_run(None))
    assert "demo  not begun" in text
    assert "0 of 10" in text


def test_what_a_model_wrote_cannot_drive_the_terminal(make_run):
    text = shown(make_run(10))
    assert "<script>alert(1)</script>␛[2J" in text
    assert "\x1b" not in text


def test_what_a_tool_wrote_is_marked(make_run, write_step, write_tokenizer):
    path = make_run(2)
    with Store(path / "run.db") as store:
        store.write_step("rl", write_step(2, ("3 + 4 = 7 apples",)))
    write_tokenizer(path / "start")
    assert "3 + 4 =⟦ 7⟧ apples" in shown(path, "--step", "2", "--no-report")


def test_names_are_no_markup(make_run):
    odd = "[/bold] [red]"
    tasks = {odd: {"taskset": "arithmetic"}, "test": {"taskset": "arithmetic", "split": "test"}}
    stages = [{"algorithm": "sft", "steps": 2}, {"name": "rl", "algorithm": "grpo", "tasks": odd, "steps": 10}]
    path = make_run(4, tasks={**tasks, "train": {"taskset": "arithmetic"}}, stages=stages)
    with Store(path / "run.db") as store:
        store.write_evaluation("rl", 3, odd, store.evaluation("sft", "test"))
    text = shown(path, "--no-report")
    assert f"evaluation {odd}: 4 problems" in text
    assert f"grpo       {odd}" in text


@pytest.mark.parametrize("width", [40, 60, 110, 250])
def test_nothing_is_wider_than_the_terminal(make_run, width):
    lines = shown(make_run(10), "--no-report", width=width).splitlines()
    assert max(map(len, lines)) <= width


def test_the_metric_and_the_stage_asked_for(make_run):
    text = shown(make_run(10), "--metric", "constant", "--stage", "rl", "--no-report")
    assert "constant 3" in text
    assert "reward/mean" not in text
    assert "curves of sft" not in text


def test_rollouts_of_one_step(make_run):
    path = make_run(10)
    text = shown(path, "--step", "5", "--no-report")
    assert "question 5?" in text
    assert "question 3?" not in text
    assert "no rollouts" not in text
    done = CliRunner().invoke(app, [str(path), "--step", "77", "--no-report"])
    assert "no rollouts with a reward are stored of step 77" in done.stderr


def test_json(make_run, tmp_path):
    path, file = make_run(10), tmp_path / "out.json"
    with Store(path / "run.db") as store:
        store.write_step("rl", Step(10, (), (), None, {"reward/mean": float("nan")}))
    shown(path, "--json", file, "--best", "1", "--worst", "2")
    data = json.loads(file.read_text(encoding="utf-8"))
    assert (data["name"], data["state"]) == ("demo", "complete")
    assert data["curves"]["rl"]["reward/mean"][-2:] == [[9, 0.9], [10, None]]
    assert [len(data["rollouts"][order]) for order in ("best", "worst")] == [1, 2]
    assert data["evaluations"][2]["metrics"]["pass@1"]["value"] == 9 / 16
    # with - the output is the JSON alone
    assert json.loads(shown(path, "--json", "-", "--no-report"))["name"] == "demo"


def test_names_that_are_not_there(make_run):
    path = make_run(4)
    assert "did you mean 'reward/mean'" in str(refused(path, "--metric", "reward/men"))
    assert isinstance(refused(path, "--metric", "reward/men"), UnknownName)
    assert isinstance(refused(path, "--stage", "nope"), UnknownName)
    missing = refused(path.parent / "dem")
    assert isinstance(missing, RunError)
    assert "did you mean 'demo'" in str(missing)
