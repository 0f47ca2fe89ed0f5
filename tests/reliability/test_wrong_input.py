"""Wrong input: one message that says what was got, what was expected and what to do; no traceback, nothing lost."""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from maieutic.cli import main
from maieutic.models.small import SmallModel, build_small
from maieutic.run.checkpoints import Checkpoints
from maieutic.run.store import Store

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from benchmarks.kill_and_resume import CONFIG, REWARD, Child, Run

ROWS = [{"question": f"Ann has {n} apples and buys {n}. How many?", "answer": str(2 * n)} for n in range(1, 5)]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def maieutic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """The command line in a folder with `rows.jsonl` in it; what it says must not show a traceback of its own."""
    write_rows(tmp_path / "rows.jsonl", ROWS)

    def run(*arguments: str, traceback: bool = False) -> Said:
        capsys.readouterr()
        with contextlib.chdir(tmp_path):
            code = main(list(arguments))
        said = Said(code, *capsys.readouterr())
        assert traceback == ("Traceback" in said.err), said.err
        assert "fault in maieutic" not in said.err
        assert said.err.count("error:") == (code != 0)
        return said

    return run


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_config(folder: Path, *, top: str = "", stage: str = "", **changed: str) -> None:
    """A run of 6 steps on `rows.jsonl`; keywords replace lines of the stage, `stage` and `top` add some."""
    practice = {"num_generations": "4", "max_completion_length": "8"}
    settings = {
        "algorithm": '"grpo"', "steps": "6", "prompts": "2", "checkpoint_every": "1",
        **({} if changed.get("algorithm") == '"sft"' else practice), **changed,
    }  # fmt: skip
    lines = [f"{key} = {value}" for key, value in settings.items()]
    top = top or "model = { small = { layers = 1, width = 16, heads = 2, kv_heads = 1, context = 64 } }\n"
    tasks = '[tasks.train]\ntaskset = "file"\npath = "rows.jsonl"\n'
    (folder / "run.toml").write_text(f"threads = 1\n{top}{tasks}[[stages]]\n" + "\n".join([*lines, stage]))


def read_metric(folder: Path, name: str) -> list[float]:
    with Store.open_reader(folder / "runs" / "run" / "run.db") as store:
        return [value for _, value in store.metrics("grpo", name)]


# ---- before a run: nothing is made


def test_a_config_that_is_not_there(tmp_path: Path, maieutic: Callable[..., Said]) -> None:
    write_config(tmp_path)
    said = maieutic("train", "rum.toml")
    assert said.code == 2
    assert "no config at rum.toml; expected a TOML file. Did you mean run.toml?" in said.err


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "no file rows.jsonl"),
        ("", "rows.jsonl is empty; expected at least one task"),
        ('{"question": "1 + 1?", "answer": "2"}\n{"question": "2 + 2?"}\n', "rows.jsonl:2: no answer; expected one in"),
        ('{"question": "1 + 1?", "answer": "2"}\n{"question": \n', "rows.jsonl:2"),
    ],
    ids=["missing", "empty", "no answer", "broken"],
)
def test_data_that_cannot_be_used(
    tmp_path: Path, maieutic: Callable[..., Said], rows: str | None, message: str
) -> None:
    write_config(tmp_path)
    if rows is None:
        (tmp_path / "rows.jsonl").unlink()
    else:
        (tmp_path / "rows.jsonl").write_text(rows)
    said = maieutic("train", "run.toml")
    assert said.code == 3
    assert message in said.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_generation": "4"}, "unknown key 'stages.0.num_generation'; did you mean 'num_generations'?"),
        ({"algorithm": '"gpro"'}, "unknown algorithm 'gpro'; did you mean 'grpo'?"),
        ({"options": "{ betta = 0.1 }"}, "did you mean 'beta'?"),
        ({"rewards": '{ "anwser" = 1.0 }'}, "did you mean 'answer'?"),
        ({"rewards": '{ "judge.py:f" = 1.0 }'}, "there is no file"),
        ({"tasks": '"trian"'}, "did you mean 'train'?"),
        ({"num_generations": "1"}, "got num_generations=1; expected at least 2"),
        ({"num_generations": "1", "algorithm": '"rloo"', "options": "{ beta = 0.1 }"}, "Raise num_generations"),
        ({"num_generations": "0"}, "stages.0.num_generations: got 0"),
        ({"steps": "-3"}, "stages.0.steps: got -3"),
        ({"temperature": '"hot"'}, "stages.0.temperature: got 'hot'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be(
    tmp_path: Path, maieutic: Callable[..., Said], changed: dict[str, str], message: str
) -> None:
    write_config(tmp_path, **changed)
    said = maieutic("train", "run.toml")
    assert said.code == 2
    assert message in said.err
    assert not (tmp_path / "runs").exists()


def test_one_rollout_a_task_is_enough_where_none_are_compared(tmp_path: Path, maieutic: Callable[..., Said]) -> None:
    write_config(tmp_path, num_generations="1", algorithm='"reinforce"')
    assert maieutic("train", "run.toml", "--dry-run").code == 0


def test_an_unknown_taskset(tmp_path: Path, maieutic: Callable[..., Said]) -> None:
    write_config(tmp_path)
    said = maieutic("train", "run.toml", "--set", 'tasks.train={ taskset = "arithmatic" }')
    assert said.code == 2
    assert "unknown taskset 'arithmatic'; did you mean 'arithmetic'?" in said.err


def test_a_tokenizer_without_a_chat_template(tmp_path: Path, maieutic: Callable[..., Said]) -> None:
    texts = [row["question"] for row in ROWS]
    build_small(tmp_path / "model", SmallModel(layers=1, width=16, heads=2, kv_heads=1, context=64), texts)
    (tmp_path / "model" / "chat_template.jinja").unlink()
    write_config(tmp_path, top='model = { path = "model" }\n', steps="1")
    said = maieutic("train", "run.toml")
    assert said.code == 4
    assert "has no chat template" in said.err
    assert 'template = "plain"' in said.err
    plain = ("--set", 'model={ path = "model", template = "plain" }')
    assert maieutic("train", "run.toml", *plain, "--run", "plain").code == 0


# ---- rewards

BROKEN = {
    "raises": ("def f(completion):\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
    "not a number": ("def f(completion):\n    return float('nan')\n", "it returned a value that is nan"),
    "hangs": ("def f(completion):\n    while True: pass\n", "no result within 0.5 s"),
    "says nothing": ("def f(completion):\n    return None\n", "no rollout could be scored in 3 steps in a row"),
}
EVEN = "def f(completion):\n    return float(len(completion) % 2)\n"


@pytest.mark.parametrize(("reward", "shown"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_reward_stops_the_run_and_a_repaired_one_goes_on(
    tmp_path: Path, maieutic: Callable[..., Said], reward: str, shown: str
) -> None:
    (tmp_path / "judge.py").write_text(reward)
    write_config(tmp_path, rewards='{ "judge.py:f" = 1.0 }', reward_timeout_seconds="0.5")
    said = maieutic("train", "run.toml", traceback=shown.startswith("Zero"))
    assert said.code == 5
    assert shown in said.err
    assert "Remedy" in said.err
    (tmp_path / "judge.py").write_text(EVEN)
    assert maieutic("train", "--run", "runs/run", "--resume").code == 0
    assert len(read_metric(tmp_path, "rollouts/count")) == 6


def test_a_reward_that_fails_now_and_then_is_counted_and_shown_once(
    tmp_path: Path, maieutic: Callable[..., Said]
) -> None:
    # It fails on the third of each ten calls: 6 steps of 2 * 4 rollouts make 48 calls, of which 5 fail (3, 13, … 43).
    (tmp_path / "judge.py").write_text(
        "calls = 0\ndef f(completion):\n    global calls\n    calls += 1\n    if calls % 10 == 3:\n"
        "        raise ValueError('now and then')\n    return float(calls % 2)\n"
    )
    write_config(tmp_path, rewards='{ "judge.py:f" = 1.0 }', max_reward_failures="0.2")
    said = maieutic("train", "run.toml", traceback=True)
    assert said.code == 0
    assert said.err.count("Traceback") == 1
    assert said.err.count("ValueError: now and then") == 1
    assert sum(read_metric(tmp_path, "rollouts/unscorable")) == 5
    assert sum(read_metric(tmp_path, "rollouts/count")) == 48


# ---- prompts that do not fit

LONG = {"question": "apples " * 100, "answer": "1"}


def test_a_prompt_that_is_too_long_is_counted_and_the_run_goes_on(
    tmp_path: Path, maieutic: Callable[..., Said]
) -> None:
    write_rows(tmp_path / "rows.jsonl", [*ROWS[:3], LONG])
    measured = '[evaluation]\ntasks = "train"\nsamples = 2\nmax_completion_length = 8\n'
    write_config(tmp_path, steps="4", stage=measured)
    assert maieutic("train", "run.toml").code == 0
    # 4 steps of 2 prompts meet each of the 4 tasks twice: 2 of the 8 groups, of 4 rollouts each, could not be made
    assert sum(read_metric(tmp_path, "rollouts/errors")) == 8
    assert sum(read_metric(tmp_path, "rollouts/count")) == 32
    with Store.open_reader(tmp_path / "runs" / "run" / "run.db") as store:
        found = store.evaluation("grpo", "train")
    assert found is not None
    assert [problem["greedy"]["finish"] for problem in found["problems"]].count("error") == 1


def test_prompts_that_are_all_too_long_stop_the_run(tmp_path: Path, maieutic: Callable[..., Said]) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**LONG, "id": str(n)} for n in range(4)])
    write_config(tmp_path)
    said = maieutic("train", "run.toml")
    assert said.code == 3
    assert "no rollout could be made in 3 steps in a row" in said.err
    assert "the model has 64 positions" in said.err
    assert len(read_metric(tmp_path, "rollouts/errors")) == 2
    # resumable: with shorter questions in the file it goes on
    write_rows(tmp_path / "rows.jsonl", ROWS)
    assert maieutic("train", "--run", "runs/run", "--resume").code == 0


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])  # one would run on unseen positions, the other crash
def test_a_demonstration_that_is_too_long_is_counted(
    tmp_path: Path, maieutic: Callable[..., Said], architecture: str
) -> None:
    rows = [{**row, "solution": row["answer"]} for row in ROWS]
    write_rows(tmp_path / "rows.jsonl", [*rows[:3], {**LONG, "solution": "1"}])
    small = f'architecture = "{architecture}", layers = 1, width = 16, heads = 2, context = 64'
    write_config(tmp_path, top=f"model = {{ small = {{ {small} }} }}\n", algorithm='"sft"', name='"grpo"', steps="4")
    assert maieutic("train", "run.toml").code == 0
    assert sum(read_metric(tmp_path, "rollouts/errors")) == 2  # 4 steps of 2 meet each of the 4 tasks twice
    assert sum(read_metric(tmp_path, "rollouts/count")) == 8
    write_rows(tmp_path / "rows.jsonl", [{**LONG, "solution": "1"}])
    said = maieutic("train", "run.toml", "--run", "runs/long")
    assert said.code == 3
    assert "the model has 64 positions" in said.err


# ---- numbers


def test_weights_that_explode_stop_the_run(tmp_path: Path, maieutic: Callable[..., Said]) -> None:
    write_rows(tmp_path / "rows.jsonl", [{**row, "solution": row["answer"]} for row in ROWS])
    write_config(tmp_path, algorithm='"sft"', steps="20", optimiser="{ learning_rate = 1e30 }")
    said = maieutic("train", "run.toml")
    assert said.code == 6
    assert "not finite" in said.err
    assert "ower the learning rate" in said.err


# ---- a full disk


def test_a_full_disk_in_the_middle_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "reward.py").write_text(REWARD)
    run = Run(tmp_path)
    child = Child(tmp_path, run.arguments())
    while ("dapo", 2) not in run.stored():
        assert child.running(), (tmp_path / "err.txt").read_text()
        time.sleep(0.005)
    # no file may grow beyond 20 kB from here on, which the database is already: the system refuses as on a full disk
    limits = resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (20_000, limits[1]))
    assert child.process.wait(60) == 7
    said = (tmp_path / "err.txt").read_text()
    assert said.count("error:") == 1
    assert "--resume" in said
    assert "Traceback" not in said
    assert run.damage() == []
    latest = Checkpoints(run.path / "checkpoints").latest()
    assert latest is not None
    assert (latest.stage, latest.step) >= ("dapo", 2)
    with contextlib.chdir(tmp_path):
        assert main(["--quiet", "train", "--run", "run", "--resume"]) == 0
    assert len(run.stored()) == 20
    with Store.open_reader(run.database) as store:
        visits = [visit for visit, _ in store.ledger("dapo")]
    assert visits == list(range(len(visits)))


def test_a_key_that_would_do_nothing_is_refused(maieutic, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{**row, "solution": "n"} for row in ROWS])
    write_config(tmp_path, algorithm='"sft"', stage="temperature = 0.5")
    said = maieutic("train", "run.toml")
    assert said.code == 2
    assert "temperature = 0.5, which does nothing: sft learns from demonstrations" in said.err


def test_a_misspelt_key_of_a_taskset_names_the_nearest_of_all_that_it_takes(maieutic, tmp_path):
    write_config(tmp_path)
    text = (tmp_path / "run.toml").read_text().replace('path = "rows.jsonl"', 'path = "rows.jsonl"\nlimt = 2')
    (tmp_path / "run.toml").write_text(text)
    said = maieutic("train", "run.toml", "--dry-run")
    assert said.code == 2
    assert "unknown key 'limt'; did you mean 'limit'?" in said.err


def test_a_later_stage_without_demonstrations_is_found_before_the_first_one_trains(maieutic, tmp_path):
    write_config(tmp_path, name='"first"')
    text = (tmp_path / "run.toml").read_text() + '[[stages]]\nname = "second"\nalgorithm = "sft"\nsteps = 2\n'
    (tmp_path / "run.toml").write_text(text)
    said = maieutic("train", "run.toml", "--run", "late")
    assert said.code == 3
    assert "has no worked solution to learn from" in said.err
    assert not (tmp_path / "late").exists()
