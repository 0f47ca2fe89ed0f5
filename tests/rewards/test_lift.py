"""Plain functions as rewards: what they may take and return, and what happens when they fail, hang or die."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import MappingProxyType

import pytest

from maieutic.errors import ConfigError, DataError, RewardError
from maieutic.rewards.lift import FailureBudget, PlainReward, load_reward, reward
from maieutic.types import Finish, Message, Rollout, Score, Task

TASK = Task(
    "t",
    (Message("system", "Be short."), Message("user", "2 + 2?"), Message("assistant", "4"), Message("user", "Sure?")),
    "4",
    MappingProxyType({"level": 3}),
)
TOLERANT = FailureBudget(max_share=1.0)


def rollouts(*texts: str) -> list[Rollout]:
    return [Rollout("t", (1, 2), (False, True), (0.0, -0.1), Finish.STOP, text) for text in texts]


def judge(judged: PlainReward, *texts: str) -> list[Score]:
    return asyncio.run(judged(TASK, rollouts(*texts)))


@reward
def length(completion: str) -> float:
    return float(len(completion))


def load(folder: Path, source: str, name: str = "f", **settings: float) -> PlainReward:
    path = folder / "mine.py"
    path.write_text(source)
    loaded = load_reward(f"{path}:{name}", budget=FailureBudget(max_share=1.0), **settings)
    assert isinstance(loaded, PlainReward)
    return loaded


def test_a_function_of_a_module_runs_in_a_process_of_its_own() -> None:
    assert length.killable
    assert [score.reward for score in judge(length, "", "abc", "ab")] == [0.0, 3.0, 2.0]
    assert length.function("abcd") == 4.0
    assert (length.budget.calls, length.budget.failures) == (3, 0)


def test_a_loaded_function_runs_in_another_process(tmp_path: Path) -> None:
    where = load(tmp_path, "import os\ndef f():\n    print('noise')\n    return float(os.getpid())\n")
    first, second = judge(where, "", "")
    assert first.reward == second.reward != float(os.getpid())
    assert judge(where, "")[0].reward == first.reward  # the same process again


def test_a_function_that_reads_standard_input_finds_it_empty(tmp_path: Path) -> None:
    reader = load(tmp_path, "import sys\ndef f():\n    return float(len(sys.stdin.read()))\n")
    assert [score.reward for score in judge(reader, "", "")] == [0.0, 0.0]


def test_a_closure_runs_in_this_process() -> None:
    pid = reward(lambda: float(os.getpid()))
    assert not pid.killable
    assert judge(pid, "")[0].reward == float(os.getpid())


def test_functions_get_what_they_ask_for_by_name(tmp_path: Path) -> None:
    seen: list[tuple[str, str, str | None, int]] = []

    @reward
    def f(task: Task, answer: str | None, *, prompt: str, completion: str) -> None:
        seen.append((prompt, completion, answer, task.meta["level"]))

    judge(f, "4!")
    assert seen == [("Sure?", "4!", "4", 3)]
    elsewhere = load(tmp_path, "def f(answer, task):\n    return float(answer) + task.meta['level']\n")
    assert judge(elsewhere, "")[0].reward == 7.0  # 4 + 3


def test_what_a_function_may_return() -> None:
    values = iter([1, 0.5, True, None, {"a": 1.0, "b": -0.25}, {}])
    scores = judge(reward(lambda: next(values)), *[""] * 6)
    assert [score.reward for score in scores] == [1.0, 0.5, 1.0, None, 0.75, 0.0]  # 1 − 0.25
    assert scores[4].parts == {"a": 1.0, "b": -0.25}
    assert "returned None" in scores[3].note


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (math.nan, "nan"),
        (math.inf, "inf"),
        (10**400, "inf"),
        ("1.0", "type str"),
        ([1.0], "type list"),
        ({"a": None}, "part 'a' of a dict of type NoneType"),
        ({"a": math.nan}, "part 'a' of a dict that is nan"),
        ({1: 1.0}, "part 1"),
        ({"a": 1e308, "b": 1e308}, "sum to inf"),
        (1j, "type complex"),
    ],
)
def test_values_that_are_no_reward_leave_the_rollout_unscored(value: object, why: str) -> None:
    broken = PlainReward(lambda: value, name="broken", budget=FailureBudget(max_share=1.0))
    (score,) = judge(broken, "")
    assert score.reward is None
    assert score.note.startswith("broken: ")
    assert why in score.note
    assert (broken.budget.calls, broken.budget.failures) == (1, 1)


@pytest.mark.parametrize("killable", [True, False])
def test_a_function_that_raises(tmp_path: Path, killable: bool, caplog: pytest.LogCaptureFixture) -> None:
    source = "def f(completion):\n    return float(completion)\n"
    broken = load(tmp_path, source)
    if not killable:
        broken = PlainReward(lambda completion: float(completion), name="f", budget=FailureBudget(max_share=1.0))
    assert broken.killable is killable
    with caplog.at_level(logging.WARNING, logger="maieutic.rewards"):
        scores = judge(broken, "1", "x", "2", "y")
        judge(broken, "z")
    assert [score.reward for score in scores] == [1.0, None, 2.0, None]
    assert "ValueError: could not convert string to float: 'x'" in scores[1].note
    assert (broken.budget.calls, broken.budget.failures) == (5, 3)
    (record,) = caplog.records  # shown once, with its traceback
    assert "Traceback" in record.getMessage()
    assert "float(completion)" in record.getMessage()


@pytest.mark.parametrize("stop", ["raise SystemExit(0)", "raise KeyboardInterrupt"])
def test_a_function_that_asks_to_leave_only_fails(tmp_path: Path, stop: str) -> None:
    first, second = judge(
        load(tmp_path, f"def f(completion):\n    if completion:\n        {stop}\n    return 1.0\n"), "x", ""
    )
    assert (first.reward, second.reward) == (None, 1.0)


def test_a_function_that_never_returns_is_killed_and_the_others_are_scored(tmp_path: Path) -> None:
    source = "def f(completion):\n    while completion == 'loop':\n        pass\n    return 1.0\n"
    looping = load(tmp_path, source, timeout_seconds=0.3)
    start = time.monotonic()
    scores = judge(looping, "a", "loop", "b")
    assert time.monotonic() - start < 10
    assert [score.reward for score in scores] == [1.0, None, 1.0]
    assert "timeout: no result within 0.3 s" in scores[1].note


def test_a_closure_that_hangs_is_left_behind() -> None:
    @reward(timeout_seconds=0.1, budget=FailureBudget(max_share=1.0))
    def sleepy(completion: str) -> float:
        time.sleep(0.5 if completion else 0.0)
        return 1.0

    assert [score.reward for score in judge(sleepy, "", "zzz", "")] == [1.0, None, 1.0]


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    source = (
        "import os, signal\n"
        "def f(completion):\n    if completion:\n        os.kill(os.getpid(), signal.SIGKILL)\n    return 1.0\n"
    )
    scores = judge(load(tmp_path, source), "", "die", "", "die")
    assert [score.reward for score in scores] == [1.0, None, 1.0, None]
    assert f"died during the call (exit code {-signal.SIGKILL})" in scores[1].note


def test_what_cannot_travel_to_the_process_fails_alone(tmp_path: Path) -> None:
    f = load(tmp_path, "def f(task):\n    return 1.0\n")
    odd = Task("t", TASK.prompt, "4", {"callback": lambda: None})
    (score,) = asyncio.run(f(odd, rollouts("")))
    assert "cannot be sent to another process" in score.note
    assert judge(f, "")[0].reward == 1.0


def test_failed_rollouts_are_not_shown_to_the_function() -> None:
    failed = Rollout("t", (1,), (False,), (0.0,), Finish.ERROR, "", note="no tokens")
    counting = reward(lambda completion: 1.0)
    scores = asyncio.run(counting(TASK, [*rollouts("a"), failed, *rollouts("b")]))
    assert [score.reward for score in scores] == [1.0, None, 1.0]
    assert "no tokens" in scores[1].note
    assert counting.budget.calls == 2
    assert asyncio.run(counting(TASK, [failed]))[0].reward is None


def test_groups_can_be_judged_at_the_same_time(tmp_path: Path) -> None:
    f = load(tmp_path, "def f(completion):\n    return float(completion)\n")

    async def many() -> list[list[Score]]:
        return await asyncio.gather(*(f(TASK, rollouts(str(i), str(i + 1))) for i in range(20)))

    assert [[s.reward for s in scores] for scores in asyncio.run(many())] == [[i, i + 1] for i in range(20)]


def test_cancelling_ends_a_call_that_hangs(tmp_path: Path) -> None:
    # So that Ctrl-C need not wait out four time limits of a minute.
    source = "def f(completion):\n    while completion:\n        pass\n    return 1.0\n"
    looping = load(tmp_path, source, timeout_seconds=60)
    judge(looping, "")

    async def cancelled() -> None:
        await asyncio.wait_for(looping(TASK, rollouts(*["loop"] * 4)), timeout=0.3)

    start = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(cancelled())
    assert judge(looping, "")[0].reward == 1.0  # queued behind the cancelled calls, in a fresh process
    assert time.monotonic() - start < 20


def test_a_call_that_hangs_ends_when_its_parent_was_killed(tmp_path: Path) -> None:
    # The parent is gone before the limit of 1 s, so nobody kills the worker: it leaves after 2 s more.
    called = tmp_path / "called"
    (tmp_path / "mine.py").write_text(
        f"def f():\n    open({str(called)!r}, 'w').close()\n    while True:\n        pass\n"
    )
    script = (
        "import os, sys, threading, time\n"
        "from maieutic.rewards.serve import Target\nfrom maieutic.rewards.worker import Worker\n"
        f"worker = Worker(Target('f', path={str(tmp_path / 'mine.py')!r}), timeout_seconds=1.0)\n"
        "threading.Thread(target=worker.call, daemon=True).start()\n"
        f"while not os.path.exists({str(called)!r}): time.sleep(0.01)\n"
        "print(worker.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    assert done.returncode == -signal.SIGKILL
    pid, deadline = int(done.stdout), time.monotonic() + 30
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(pid)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # in a container nobody may reap it; a zombie runs no more
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return not Path("/proc").is_dir()


def test_a_warm_call_starts_no_process() -> None:
    texts = [str(n) for n in range(100)]
    judge(length, "")
    taken = []
    for _ in range(10):  # the best of them: other work on the machine is not the reward's
        start = time.perf_counter()
        judge(length, *texts)
        taken.append(time.perf_counter() - start)
    assert min(taken) / len(texts) < 0.02  # half a millisecond on a quiet machine; a process takes forty of these


def test_a_reward_that_never_worked_stops_the_run_at_once() -> None:
    broken = reward(lambda completion: 1.0 / 0.0)
    judge(broken, "a", "b", "c")  # three failures may be a bad row
    with pytest.raises(RewardError, match=r"4 of the last 4 calls failed \(100%\); allowed: 10%.*Remedy") as caught:
        judge(broken, "d")
    assert "ZeroDivisionError" in str(caught.value)


def test_a_reward_that_fails_too_often_stops_the_run() -> None:
    # 2 of 20 is the allowed tenth; the third failure, in the 21st call, is 3 of 21 = 14 %.
    picky = reward(lambda completion: float(completion))
    judge(picky, *["1"] * 18, "x", "y")
    with pytest.raises(RewardError, match=r"3 of the last 21 calls failed \(14%\)"):
        judge(picky, "z")


def test_a_reward_that_breaks_late_stops_the_run_too() -> None:
    # Of the last 50 calls a tenth, 5, may fail, however many went well before.
    late = PlainReward(lambda completion: float(completion), budget=FailureBudget(window=50))
    judge(late, *["1"] * 1000)
    judge(late, *["x"] * 5)
    with pytest.raises(RewardError, match="6 of the last 50 calls failed"):
        judge(late, "x")


def test_none_is_no_failure() -> None:
    silent = reward(lambda: None)
    assert [score.reward for score in judge(silent, *["a"] * 30)] == [None] * 30
    assert silent.budget.failures == 0


@pytest.mark.parametrize("settings", [{"max_share": 1.1}, {"minimum": 0}, {"window": 5}])
def test_impossible_budgets_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="FailureBudget"):
        FailureBudget(**settings)  # type: ignore[arg-type]


async def group_reward(task: Task, rollouts: list[Rollout]) -> list[Score]:
    return [Score(1.0) for _ in rollouts]


@pytest.mark.parametrize(
    "function",
    [
        lambda words: 1.0,
        lambda completion, weight=1.0: 1.0,
        lambda *completion: 1.0,
        group_reward,
        3,
    ],
)
def test_functions_with_other_parameters_are_refused(function: object) -> None:
    with pytest.raises(ConfigError, match=r"Remedy"):
        reward(function)  # type: ignore[call-overload]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_impossible_time_limits_are_refused(seconds: float) -> None:
    with pytest.raises(ConfigError, match="timeout_seconds"):
        reward(timeout_seconds=seconds)(lambda: 1.0)


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "r.py"
    with pytest.raises(ConfigError, match="there is no file"):
        load_reward(f"{path}:f")
    for spec in ("r.py", "r:f", ":f", "r.py:", ""):
        with pytest.raises(ConfigError, match=r"expected 'path/to/file.py:function'"):
            load_reward(spec)
    path.write_text("def f(completion):\n    return 1.0\n")
    with pytest.raises(ConfigError, match=r"has no 'g'; its functions: f"):
        load_reward(f"{path}:g")
    path.write_text("def f(:\n")
    with pytest.raises(DataError, match="SyntaxError"):
        load_reward(f"{path}:f")
    path.write_text("import no_such_module_here\n")
    with pytest.raises(DataError, match="no_such_module_here"):
        load_reward(f"{path}:f")
    path.write_text("def f(x):\n    return 1.0\n")
    with pytest.raises(ConfigError, match="got parameter 'x'"):
        load_reward(f"{path}:f")


def test_loading_what_is_a_reward_already(tmp_path: Path) -> None:
    path = tmp_path / "r.py"
    path.write_text(
        "from maieutic.rewards import reward\nfrom maieutic.types import Score\nimport neighbour\n"
        "@reward(timeout_seconds=3, name='mine')\ndef f(completion):\n    return neighbour.VALUE\n"
        "async def g(task, rollouts):\n    return [Score(2.0) for _ in rollouts]\n"
    )
    (tmp_path / "neighbour.py").write_text("VALUE = 5.0\n")
    lifted = load_reward(f"{path}:f")
    assert isinstance(lifted, PlainReward)
    assert (lifted.name, lifted.timeout_seconds, lifted.killable) == ("mine", 3, True)
    assert judge(lifted, "")[0].reward == 5.0
    grouped = load_reward(f"{path}:g")
    assert asyncio.run(grouped(TASK, rollouts("")))[0].reward == 2.0
