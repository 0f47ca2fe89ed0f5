"""Options by their likelihood: numbers by hand, batches against single rows, the verdict as an evaluation."""

from __future__ import annotations

import json
import math

import pytest
import torch

from maieutic.backends.local import LocalScorer
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.evaluate import Evaluation, difference
from maieutic.likelihood import Likelihood, Likelihoods, cloze, evaluate_choices, letters
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.tasks import arithmetic, multiple_choice

WORDS = ["iron", "oxygen", "a", "stone", "gas", "which", "is", "Question:", "Answer:", *"ABCD", "A.", "B.", "C.", "D."]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    rows = [
        {"id": n, "question": f"which is {'a ' * n}gas", "options": ["iron", "a stone", "oxygen"], "answer": "oxygen"}
        for n in range(9)
    ]
    path = tmp_path_factory.mktemp("questions") / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return multiple_choice(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    spec = SmallModel(layers=2, width=32, heads=4, kv_heads=2, context=64)
    return load_causal(build_small(tmp_path_factory.mktemp("m") / "tiny", spec, vocabulary=WORDS), device="cpu")


def test_measures_by_hand():
    # sums -3, -4, -5; by token -3, -2, -2.5; by byte -0.75, -0.8, -0.25
    one = Likelihood("t", (-3.0, -4.0, -5.0), (1, 2, 2), (4, 5, 20), ("abcd", "ab de", "x" * 20), key=1)
    assert [one.chosen(measure) for measure in ("sum", "per_token", "per_byte")] == [0, 1, 2]
    assert one.values("per_byte") == [-0.75, -0.8, -0.25]
    other = Likelihood("u", (), (), (), ("a", "b"), key=0)  # longer than the model reads
    assert other.chosen() is None
    made = Likelihoods("two", (one, other))
    values = {name: interval.value for name, interval in made.metrics().items()}
    assert values == {"sum": 0.0, "per_token": 0.5, "per_byte": 0.0, "errors": 0.5}
    # Wilson, 1 of 2, z² = 3.84: .5 ± 1.96 sqrt(.25 / 2 + 3.84 / 16) / (1 + 3.84 / 2) = .5 ± 1.184 / 2.92
    interval = made.metrics()["per_token"]
    assert (interval.low, interval.high) == (pytest.approx(0.0945, abs=1e-3), pytest.approx(0.9055, abs=1e-3))


def test_what_a_model_gives_is_what_torch_computes(model, tasks):
    """The sum over the option's tokens of log softmax, one row at a time, without the library's packing."""
    made = evaluate_choices(LocalScorer(model), model.chat, tasks, limit=3)
    for task, question in zip(tasks, made.questions):
        for option, found in zip(task.meta["options"], question.logprobs):
            prompt = model.chat.prompt(cloze(task).messages)
            tokens = torch.tensor([[*prompt, *model.chat.encode(option)]])
            with torch.no_grad():
                logits = model.module(tokens).logits[0].log_softmax(-1)
            wanted = sum(logits[t - 1, tokens[0, t]].item() for t in range(len(prompt), tokens.shape[1]))
            assert math.isclose(found, wanted, abs_tol=2e-5)


@pytest.mark.parametrize("form", ["cloze", "letters"])
def test_batches_are_single_rows_put_together(model, tasks, form):
    scorer, seen = LocalScorer(model), []
    alone = evaluate_choices(scorer, model.chat, tasks, form=form, rows=1, on_progress=lambda *at: seen.append(at))
    together = evaluate_choices(scorer, model.chat, tasks, form=form, rows=1000)
    some = evaluate_choices(scorer, model.chat, tasks, form=form, rows=7)
    assert seen == [(n, 9) for n in range(1, 10)]
    for a, b, c in zip(alone.questions, together.questions, some.questions):
        assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
        assert a.logprobs == pytest.approx(c.logprobs, abs=1e-5)
        assert (a.tokens, a.bytes, a.texts, a.key) == (b.tokens, b.bytes, b.texts, b.key)


def test_the_forms_of_a_question(tasks):
    task = tasks[1]
    assert cloze(task).messages[0].content == "Question: which is a gas\nAnswer:"
    assert cloze(task).completions == task.meta["options"]
    asked = letters(task)
    assert asked.completions == ("A", "B", "C")
    assert asked.messages[0].content.splitlines()[1] == f"A. {task.meta['options'][0]}"


def test_a_question_that_is_too_long_is_counted_and_wrong(model, tasks):
    made = evaluate_choices(LocalScorer(model), model.chat, tasks, context=12)
    asked = [bool(question.logprobs) for question in made.questions]
    assert asked[0]
    assert not asked[-1]
    assert made.metrics()["errors"].value == pytest.approx(asked.count(False) / 9)
    assert made.evaluation().metrics()["errors"].value == pytest.approx(asked.count(False) / 9)


def test_an_examination_is_an_evaluation(model, tasks):
    made = evaluate_choices(LocalScorer(model), model.chat, tasks)
    for measure in ("sum", "per_token", "per_byte"):
        kept = Evaluation.from_json(made.evaluation(measure).to_json())
        assert kept.metrics()["greedy"].value == pytest.approx(made.metrics()[measure].value)
        assert difference(kept, kept, "greedy").value == 0.0
    for question, problem in zip(made.questions, made.evaluation().problems):
        assert problem.greedy.answer == "ABC"[question.chosen()]
        assert problem.greedy.correct == (question.chosen() == question.key)
    with pytest.raises(UnknownName, match="per_token"):
        made.evaluation("per_tokens")


def test_what_cannot_be_examined_is_refused(model, tasks):
    scorer = LocalScorer(model)
    with pytest.raises(DataError, match="use the tasksets ai2_arc or multiple_choice"):
        evaluate_choices(scorer, model.chat, arithmetic(size=2))
    with pytest.raises(UnknownName, match="cloze"):
        evaluate_choices(scorer, model.chat, tasks, form="close")
    with pytest.raises(ConfigError, match="at least 1"):
        evaluate_choices(scorer, model.chat, tasks, limit=0)
