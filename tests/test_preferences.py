"""Preferences from end to end: columns of a file, the source of recorded pairs, and runs that learn from pairs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maieutic.algorithms import make_algorithm
from maieutic.backends.toy import ToyChat, ToyScorer, ToySums, toy_policy
from maieutic.cli import main
from maieutic.core.measures import batch_measures
from maieutic.errors import ConfigError, DataError
from maieutic.pack import pack
from maieutic.rollout import Roller
from maieutic.run.store import Store
from maieutic.sources import Recorded, RecordedPairs, Sampled
from maieutic.tasks.files import file, tasks_from_rows
from maieutic.train import train
from maieutic.types import Finish, Message, Score, Task

USER, GOOD, BAD = ({"role": r, "content": c} for r, c in [("user", "2 + 2?"), ("assistant", "4"), ("assistant", "5")])


def task_of(**row):
    """The task of one row of a file called mine.jsonl."""
    (task,) = tasks_from_rows([("mine.jsonl:1", row)], "mine")
    return task


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "2 + 2?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    ],
    ids=["text", "messages", "conversations and their prompt", "conversations alone"],
)
def test_preference_columns_as_other_libraries_have_them(row):
    """C3: `prompt, chosen, rejected` as text, as messages, and as conversations that begin with the prompt."""
    task = task_of(**row, score_chosen=9.0)
    assert task.prompt == (Message("user", "2 + 2?"),)
    assert task.answer is None
    assert task.meta == {"chosen": "4", "rejected": "5", "score_chosen": 9.0}


def test_other_columns_may_hold_the_sides():
    (task,) = tasks_from_rows(
        [("mine.jsonl:1", {"prompt": "2 + 2?", "better": "4", "worse": "5"})], "mine",
        columns={"chosen": "better", "rejected": "worse"},
    )  # fmt: skip
    assert (task.meta["chosen"], task.meta["rejected"]) == ("4", "5")


def test_a_row_with_an_answer_may_have_columns_of_these_names():
    assert task_of(prompt="2 + 2?", answer="4", chosen=True).meta == {"chosen": True}
    assert task_of(prompt="2 + 2?", answer="4", chosen="4", rejected="5").answer == "4"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"chosen": "4"}, "mine.jsonl:1: expected a rejected completion, text or messages, in 'rejected'; got none"),
        ({"chosen": "4", "rejected": ""}, "expected a rejected completion"),
        ({"rejected": "5"}, "expected a chosen completion"),
        ({"chosen": "4", "rejected": []}, "expected a rejected completion"),
        (
            {"chosen": 4, "rejected": "5"},
            "expected a chosen completion, text or messages, in 'chosen'; got one of type int",
        ),
        ({"chosen": [USER], "rejected": [BAD]}, "the chosen conversation ends with 'user'; expected the assistant's"),
        ({"chosen": [USER, GOOD], "rejected": [BAD]}, "differ before their last messages"),
        ({"chosen": [{"role": "assistant"}], "rejected": [BAD]}, "got the message {'role': 'assistant'}"),
    ],
)
def test_half_a_preference_is_said_with_its_place(row, said):
    with pytest.raises(DataError) as error:
        task_of(prompt="2 + 2?", **row)
    assert said in str(error.value)


def words(prompt, chosen=None, rejected=None):
    """A task of the toy's words."""
    meta = {name: text for name, text in (("chosen", chosen), ("rejected", rejected)) if text is not None}
    return Task(f"toy/{prompt}", (Message("user", prompt),), None, meta)


CHAT = ToyChat(ToySums().vocabulary)


def test_recorded_pairs_are_groups_of_two():
    source = RecordedPairs([words("1 + 2", "3", "1 2"), words("1 + 1", "2", "1")], CHAT, batch=2)
    groups = {group.task.id: group for group in source.next()}
    (better, worse), scores = groups["toy/1 + 2"].rollouts, groups["toy/1 + 2"].scores
    assert [score.reward for score in scores] == [1.0, 0.0]
    assert (better.text, worse.text) == ("3", "1 2")
    assert (better.sibling, worse.sibling) == (0, 1)
    prompt = CHAT.encode("1 + 2")
    assert better.tokens == prompt + CHAT.completion("3")
    assert worse.mask == (False, False, False, True, True, True)  # the stop token is chosen too
    assert source.state() == {"visits": 2}


@pytest.mark.parametrize(
    ("sides", "missing"), [(("3", None), "rejected"), ((None, "3"), "chosen"), (("3", " "), "rejected")]
)
def test_a_task_without_both_sides_is_named(sides, missing):
    source = RecordedPairs([words("1 + 2", *sides)], CHAT, batch=1)
    with pytest.raises(DataError, match=rf"task 'toy/1 \+ 2' has no {missing} completion to learn a preference from"):
        source.next()


def test_a_pair_of_which_one_side_is_too_long_is_counted_and_not_learned_from():
    source = RecordedPairs([words("1 + 2", "3", "1 2 3 4 5")], CHAT, batch=1, limit=6)
    (group,) = source.next()
    assert [rollout.finish for rollout in group.rollouts] == [Finish.ERROR] * 2
    assert [score.reward for score in group.scores] == [None] * 2
    assert make_algorithm("dpo", {"pairs": "given"}).select([group]) == []


GIVEN = [words(f"{a} + {b}", str(a + b), str(a + b + 1)) for a in range(3) for b in range(3)]


@pytest.mark.parametrize("name", ["orpo", "dpo", "ipo", "simpo", "rpo"])
def test_given_preferences_are_learned(name):
    """Nine sums, each with a right and a wrong result: afterwards greedy decoding gives what was preferred."""
    algorithm = make_algorithm(name, {"pairs": "given"})
    policy = toy_policy(CHAT, length=2, buckets=64, learning_rate=0.1)
    reference = ToyScorer(policy.learner.model)
    steps = list(train(RecordedPairs(GIVEN, CHAT, batch=9), policy, algorithm, steps=30, reference=reference))
    assert steps[-1].metrics["pairs/accuracy"] == 1.0
    assert steps[-1].metrics["pairs/margin"] > steps[0].metrics["pairs/margin"] + 1
    if "chosen_nll" in algorithm.loss.label:
        assert steps[-1].metrics["pairs/chosen_logprob"] > -0.2  # e^−.2 = 82 % of a whole completion


def test_the_first_step_of_dpo_is_ln_two_with_a_margin_of_nothing():
    """A30: the reference reads the very tokens that the policy reads, at that moment; nothing is computed before."""
    policy = toy_policy(CHAT, length=2, buckets=64)
    reference = ToyScorer(policy.learner.model)
    algorithm = make_algorithm("dpo", {"pairs": "given"})
    (step,) = train(RecordedPairs(GIVEN, CHAT, batch=9), policy, algorithm, steps=1, reference=reference)
    assert step.metrics["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert step.metrics["pairs/margin"] == 0.0
    assert step.batch.ref_logprobs.shape == step.batch.tokens.shape


def test_sources_and_rows_that_do_not_fit_each_other_are_refused():
    policy = toy_policy(CHAT, length=2, buckets=64)
    pairs, shown = RecordedPairs(GIVEN, CHAT, batch=2), Recorded(ToySums(), CHAT, batch=2)
    orpo, given = make_algorithm("orpo", {}), make_algorithm("orpo", {"pairs": "given"})
    for source, algorithm, said in [
        (pairs, make_algorithm("sft", {}), "got a source that shows 2 of a task, one of them rejected"),
        (shown, given, "compares rollouts of one task: got num_generations=1"),
        (pairs, orpo, "learns from what the policy writes"),
    ]:
        with pytest.raises(ConfigError, match=said):
            train(source, policy, algorithm, steps=1)

    async def nothing(task, rollouts):
        return [Score(0.0) for _ in rollouts]

    roller = Roller(policy.sampler, CHAT, nothing, max_completion_length=2)
    for wanted, count, said in [(given, 4, "learns from what it is shown"), (orpo, 1, "got num_generations=1")]:
        with pytest.raises(ConfigError, match=said):
            train(Sampled(ToySums(), roller, prompts=1, num_generations=count), policy, wanted, steps=1)


def test_the_log_says_how_many_pairs_and_which_side_is_longer():
    # with their stop tokens: 1 against 2 words: −1; 3 against 1: +2; (−1 + 2)/2
    tasks = [words("1 + 2", "3", "1 2"), words("1 + 1", "1 1 1", "2")]
    groups = RecordedPairs(tasks, CHAT, batch=2).next()
    measures = batch_measures(pack(make_algorithm("orpo", {"pairs": "given"}).select(groups)))
    assert measures == {"pairs/count": 2.0, "pairs/length_difference": 0.5}


CONFIG = """
name = "preferences"
[model]
small = {{ layers = 1, width = 16, heads = 2, kv_heads = 1, context = 64 }}
[tasks.train]
taskset = "file"
path = "{folder}/rows.jsonl"
[[stages]]
algorithm = "{algorithm}"
prompts = 4
steps = 3
optimiser = {{ learning_rate = 1e-2 }}
{more}
"""
REWARD = "def words(completion: str) -> float:\n    return float(len(completion.split()))\n"
SAMPLED = """
num_generations = 6
max_completion_length = 8
rewards = { "%s/reward.py:words" = 1.0 }
options = { pairs = { mode = "all", cap = 2 } }
"""


def run(folder: Path, algorithm: str, more: str) -> list[dict[str, float]]:
    """The metrics of each step of a run in that folder, or AssertionError where it ends with an error."""
    (folder / "reward.py").write_text(REWARD)
    (folder / "config.toml").write_text(CONFIG.format(folder=folder, algorithm=algorithm, more=more))
    assert main(["train", str(folder / "config.toml"), "--run", str(folder / "run"), "--quiet"]) == 0
    with Store.open_reader(folder / "run" / "run.db") as store:
        return [store.step_metrics(algorithm, step) for step in range(3)]


def write_rows(folder: Path, **changed: object) -> None:
    rows = [
        {"prompt": f"What is {n} + 1 ?", "chosen": f"it is {n + 1}", "rejected": f"it is {n} of course"}
        for n in range(8)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps({**row, **changed}) + "\n" for row in rows))


def test_orpo_of_what_was_sampled_by_config(tmp_path):
    write_rows(tmp_path, answer="7")
    steps = run(tmp_path, "orpo", SAMPLED % tmp_path)
    assert all(step["train/skipped"] == 0.0 for step in steps)
    assert all(1 <= step["pairs/count"] <= 8 for step in steps)  # 4 prompts, at most 2 each
    assert steps[0]["pairs/length_difference"] > 0  # the reward counts words
    assert all(0.0 <= step["pairs/accuracy"] <= 1.0 for step in steps)
    assert "kl/reference" not in steps[0]  # and no reference was run
    assert max(step["policy/sampler_mismatch_nats"] for step in steps) < 1e-5


def test_dpo_of_given_pairs_by_config(tmp_path):
    write_rows(tmp_path)
    steps = run(tmp_path, "dpo", 'options = { pairs = "given" }')
    assert [step["pairs/count"] for step in steps] == [4.0] * 3
    assert steps[0]["pairs/length_difference"] == -2.0
    assert steps[0]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert steps[0]["pairs/margin"] == pytest.approx(0.0, abs=1e-6)
    assert steps[2]["pairs/margin"] > 0.05
    assert steps[2]["loss"] < steps[0]["loss"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('options = { pairs = "givn" }', "unknown pairs 'givn'; did you mean 'given'?"),
        ('options = { pairs = { mode = "all", kap = 2 } }', "has no option 'kap'; did you mean 'cap'?"),
        ('options = { pairs = "given" }\ntemperature = 0.5', "temperature = 0.5, which does nothing"),
        ("num_generations = 1", "pairs() compares the rollouts of a task"),
        ('options = { pairs = "given" }', "has no rejected completion to learn a preference from"),
    ],
)
def test_what_is_wrong_is_found_before_training(tmp_path, capsys, more, said):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "2 + 2?", "answer": "4", "chosen": "4"}) + "\n")
    (tmp_path / "config.toml").write_text(CONFIG.format(folder=tmp_path, algorithm="dpo", more=more))
    assert main(["train", str(tmp_path / "config.toml"), "--run", str(tmp_path / "run"), "--quiet"]) != 0
    assert said.replace("pairs()", "pairs(mode=one)") in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def test_a_file_of_preferences_is_a_taskset(tmp_path):
    write_rows(tmp_path)
    tasks = file(tmp_path / "rows.jsonl")
    assert len(tasks) == 8
    assert tasks[3].meta == {"chosen": "it is 4", "rejected": "it is 3 of course"}
