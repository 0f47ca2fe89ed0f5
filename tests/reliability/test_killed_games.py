"""A run that calls tools, killed in the middle of its episodes and at a random moment, ends as one that never was."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # the benchmarks are no part of the installed package

from benchmarks.kill_and_resume import Moment, kill_and_resume

#: A call is one word of the small model's: imitation shows it, practice plays on with what the tool says.
CALL = '<tool_call>{{"name":"double","arguments":{{"x":{x}}}}}</tool_call>'
TASKS = "\n".join(
    json.dumps({"prompt": f"double {x}", "answer": str(2 * x), "solution": CALL.format(x=x)}) for x in range(1, 7)
)
TOOL = '''
import random, time

def double(x: int) -> int:
    """Twice as much."""
    time.sleep(random.SystemRandom().random() / 200)    # now quick, now slow: nothing may depend on it
    return 2 * x
'''
REWARD = '''
def high(completion):
    """The largest digit of the last turn: there is something to learn."""
    return float(max((int(c) for c in completion if c.isdigit()), default=0))
'''
CONFIG = """
name = "killed-games"
threads = 1
[model.small]
layers = 1
width = 32
heads = 2
kv_heads = 1
context = 64
extra_words = ["2", "4", "6", "8", "10", "12"]
[tasks.train]
taskset = "file"
path = "tasks.jsonl"
environment = "tools"
environment_options = { tools = ["tool.py:double"], describe = false }
max_turns = 3
[[stages]]
name = "form"
algorithm = "sft"
steps = 20
prompts = 6
checkpoint_every = 20
optimiser = { learning_rate = 1e-2 }
[[stages]]
name = "play"
algorithm = "grpo"
steps = 6
prompts = 3
num_generations = 4
max_completion_length = 40
checkpoint_every = 2
rewards = { "reward.py:high" = 1.0 }
optimiser = { learning_rate = 1e-2 }
evaluate = false
[evaluation]
tasks = "train"
samples = 1
max_completion_length = 40
"""


def test_killed_among_turns_it_ends_the_same(tmp_path: Path) -> None:
    chance = random.SystemRandom()
    later = Moment(after=("play", chance.randrange(2, 4)), phase=chance.choice(["sampling", "update"]))
    moments = (Moment(after=("play", 0), phase="sampling"), later)
    files = {"tasks.jsonl": TASKS, "tool.py": TOOL, "reward.py": REWARD}
    verdict = kill_and_resume(CONFIG, tmp_path, moments, files=files)
    assert "sampling" in [kill.phase for kill in verdict.kills]
    assert list(verdict.differences) == []  # weights, optimiser, rollouts with their turns, metrics, ledger: to the bit
    with closing(sqlite3.connect(tmp_path / "killed" / "run" / "run.db")) as db:
        spans = [json.loads(row) for (row,) in db.execute("SELECT spans FROM rollouts WHERE stage = 'play'")]
        rewards = {reward for (reward,) in db.execute("SELECT reward FROM rollouts WHERE stage = 'play'")}
    heard = [span for row in spans for span in row if span[0] == "environment"]
    assert len(spans) == 6 * 3 * 4
    assert len(heard) > 10
    assert any(span[4][0][0] == "tool" and span[4][0][1].isdecimal() for span in heard)  # the tool was called, and said
    assert len(rewards) > 1  # there was something to learn
