"""The reward "teaching": a frozen student's log-probs of an explanation and of the solution after it."""

from __future__ import annotations

import pytest
import torch

from maieutic.algorithms import grpo
from maieutic.backends.local import LocalBackend
from maieutic.core.credit import group_normalized
from maieutic.core.kl import k3
from maieutic.core.losses import kl_to_reference, policy_gradient
from maieutic.core.teaching import Terms
from maieutic.core.weights import sequence_mean
from maieutic.errors import ConfigError, UnknownName
from maieutic.loops import run_async
from maieutic.models.causal import load_causal, token_logprobs
from maieutic.models.small import SmallModel, build_small
from maieutic.pack import pack
from maieutic.tasks import arithmetic, arithmetic_vocabulary, teaching
from maieutic.tasks.teaching import TAGS
from maieutic.teaching.reward import Student, TeachingReward
from maieutic.types import Example, Finish, Outputs, Rollout

TAG = TAGS["words"]
TASKS = teaching(arithmetic(), tags="words", solution="# {answer}", explanation="solution", until="#")


def built(folder, *, layers=1, width=16, tokenizer="word", seed=0):
    spec = SmallModel(layers=layers, width=width, heads=2, kv_heads=1, context=256)
    words = [*arithmetic_vocabulary(), *TAG.words]
    given = {"vocabulary": words} if tokenizer == "word" else {"corpus": [" ".join(words)], "vocabulary_size": 420}
    return load_causal(build_small(folder, spec, tokenizer=tokenizer, seed=seed, **given), dtype="float32")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return built(tmp_path_factory.mktemp("teacher") / "model")


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A student with more parameters than its teacher."""
    return built(tmp_path_factory.mktemp("student") / "model", layers=2, width=32, seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A student with other tokens."""
    return built(tmp_path_factory.mktemp("other") / "model", width=32, tokenizer="bpe", seed=2)


def frozen(model, limit=None):
    return Student(LocalBackend().frozen(model), model.chat, limit)


def written(model, task, text, temperature=0.7, stop=True):
    """A rollout that says the text, with the teacher's log-probs of it."""
    prompt = model.chat.prompt(task.prompt)
    said = model.chat.completion(text) if stop else model.chat.encode(text)
    tokens = torch.tensor([[*prompt, *said]])
    with torch.no_grad():
        logprobs = token_logprobs(model.module(tokens).logits, tokens, temperature)[0]
    mask = (False,) * len(prompt) + (True,) * len(said)
    kept = tuple(float(v) if chosen else 0.0 for v, chosen in zip(logprobs, mask))
    return Rollout(task.id, (*prompt, *said), mask, kept, Finish.STOP, model.chat.decode(said), temperature=temperature)


def several(model, task):
    chain = task.meta["reference"].rpartition("#")[0].strip()
    texts = (chain, f"{chain} {chain}", f"# {task.answer}", "")
    return [written(model, task, TAG.taught(text)) for text in texts] + [written(model, task, chain)]


def test_what_the_student_reads_is_what_was_written(teacher, student):
    """By hand, with whole forward passes and indices that are counted here."""
    task = TASKS[0]
    rollout = several(teacher, task)[0]
    (score,) = run_async(TeachingReward(frozen(student), teacher.chat)(task, [rollout]))
    chain = task.meta["reference"].rpartition("#")[0].strip()
    text = f"<think> {chain} </think> <solution> # {task.answer}"
    prompt = student.chat.prompt(task.meta["lesson"].question)
    tokens = torch.tensor([[*prompt, *student.chat.encode(text)]])
    with torch.no_grad():
        said = token_logprobs(student.module(tokens).logits, tokens, 0.7)[0]
    words = len(chain.split())
    start = len(prompt) + 1  # after <think>
    taught = torch.tensor(rollout.logprobs)[rollout.prompt_length :][:words]
    by_hand = Terms()(said[-2:], said[start : start + words], taught, closed=True)
    assert score.reward == pytest.approx(by_hand.reward, abs=1e-5)
    assert score.parts == pytest.approx(by_hand.parts, abs=1e-5)
    assert score.correct is None  # nobody was asked whether it is right


def test_one_by_one_or_together(teacher, student, other):
    task = TASKS[1]
    rollouts = several(teacher, task)
    for each in (student, other):
        reward = TeachingReward(frozen(each), teacher.chat)
        together = [score.reward for score in run_async(reward(task, rollouts))]
        alone = [run_async(reward(task, [rollout]))[0].reward for rollout in rollouts]
        assert together == pytest.approx(alone, abs=1e-5)
        # in a batch with rows of another length in front, too
        assert [s.reward for s in run_async(reward(task, rollouts[::-1]))][::-1] == pytest.approx(together, abs=1e-5)


def test_a_missing_tag_and_an_empty_explanation(teacher, student):
    task = TASKS[2]
    chain, *_, empty, unclosed = run_async(TeachingReward(frozen(student), teacher.chat)(task, several(teacher, task)))
    assert unclosed.reward == pytest.approx(chain.reward - 1.0, abs=1e-5)  # the other terms are there all the same
    assert (unclosed.parts["match"], chain.parts["match"]) == (-1.0, 0.0)
    assert (empty.parts["kl/mean"], empty.parts["kl/max"]) == (1.0, 1.0)


def test_a_teacher_that_is_its_student_and_reads_the_same(teacher):
    """With the teacher's prompt as the student's question there is nothing between them."""
    task = TASKS[3]
    lesson = task.meta["lesson"]
    tags = type(lesson.tags)(("", " "), lesson.tags.solution, lesson.tags.explanation, " ")
    same = type(lesson)(task.prompt, lesson.solution, tags)
    task = type(task)(task.id, task.prompt, task.answer, {**task.meta, "lesson": same})
    scores = run_async(TeachingReward(frozen(teacher), teacher.chat)(task, several(teacher, task)[:2]))
    for score in scores:
        assert score.parts["kl/mean"] == pytest.approx(0.0, abs=1e-5)
        assert score.parts["kl/max"] == pytest.approx(0.0, abs=1e-5)


def test_a_student_with_other_tokens(teacher, other):
    """klⱼ goes over words: each has the sum of the log-probs of the student's tokens that write it."""
    task = TASKS[0]
    rollout = several(teacher, task)[0]
    (score,) = run_async(TeachingReward(frozen(other), teacher.chat)(task, [rollout]))
    chain = task.meta["reference"].rpartition("#")[0].strip()
    head = (*other.chat.prompt(task.meta["lesson"].question), *other.chat.encode("<think> "))
    middle = other.chat.encode(chain)
    tail = other.chat.encode(" </think> <solution> ")
    gold = other.chat.encode(f"# {task.answer}")
    tokens = torch.tensor([[*head, *middle, *tail, *gold]])
    with torch.no_grad():
        said = token_logprobs(other.module(tokens).logits, tokens, 0.7)[0]
    words, sums, at = chain.split(), [], len(head)
    for index, word in enumerate(words):
        size = len(other.chat.encode(word if index == 0 else f" {word}"))
        sums.append(said[at : at + size].sum())
        at += size
    assert at == len(head) + len(middle)
    taught = torch.tensor(rollout.logprobs)[rollout.prompt_length :][: len(words)]
    by_hand = Terms()(said[-len(gold) :], torch.stack(sums), taught, closed=True)
    assert score.parts == pytest.approx(by_hand.parts, abs=1e-4)


def test_spans_that_are_looked_for(teacher, student, other):
    """Of words between spaces the two ways see the same; of byte pairs but for what merged."""
    task = TASKS[4]
    rollouts = several(teacher, task)[:3]
    for each, tolerance in ((student, 1e-5), (other, 1.0)):
        known, found = (
            run_async(TeachingReward(frozen(each), teacher.chat, spans=spans)(task, rollouts))
            for spans in ("pieces", "text")
        )
        for one, two in zip(known, found, strict=True):
            assert two.parts["solution/mean"] == pytest.approx(one.parts["solution/mean"], abs=tolerance)
            assert two.parts["kl/mean"] == pytest.approx(one.parts["kl/mean"], abs=tolerance)


def test_what_cannot_be_judged_is_counted_and_not_guessed(teacher, student):
    task = TASKS[0]
    rollouts = several(teacher, task)
    short, *_ = run_async(TeachingReward(frozen(student, limit=20), teacher.chat)(task, rollouts))
    assert short.reward is None
    assert "the student reads 20" in short.note
    failed = Rollout(task.id, (1, 2), (False, False), (0.0, 0.0), Finish.ERROR, note="too long")
    good, bad = run_async(TeachingReward(frozen(student), teacher.chat)(task, [rollouts[0], failed]))
    assert (good.reward is not None, bad.reward) == (True, None)
    # what a calculator wrote is nobody's: it counts on neither side
    one = rollouts[0]
    mask = list(one.mask)
    mask[one.prompt_length + 4] = False
    given = Rollout(one.task_id, one.tokens, tuple(mask), one.logprobs, one.finish, one.text, temperature=0.7)
    fewer = TeachingReward(frozen(student), teacher.chat).worth(task, [given])[0]
    assert fewer.scores["solution/mean"] == pytest.approx(good.parts["solution/mean"], abs=1e-5)
    assert fewer.scores["kl/mean"] != pytest.approx(good.parts["kl/mean"], abs=1e-3)
    for wrong, error in (({"spans": "words"}, UnknownName), ({"temperature": 0.0}, ConfigError)):
        with pytest.raises(error):
            TeachingReward(frozen(student), teacher.chat, **wrong)


def test_a_reader_in_the_teachers_place(teacher, student):
    """The same model as the one that sampled says what was recorded."""
    task = TASKS[0]
    rollouts = several(teacher, task)[:2]
    own, read = (
        run_async(TeachingReward(frozen(student), teacher.chat, reader=reader)(task, rollouts))
        for reader in (None, LocalBackend().frozen(teacher))
    )
    assert [s.reward for s in own] == pytest.approx([s.reward for s in read], abs=1e-4)


def test_grpo_with_one_update_a_batch_is_the_unclipped_gradient(teacher):
    """exp(lp − sg lp) · A has the gradient of A · lp: the ratio is 1, and no clip is ever met."""
    task = TASKS[0]
    rows = [
        Example(rollout, reward, group=0, unit=i)
        for i, (rollout, reward) in enumerate(zip(several(teacher, task)[:3], (-1.0, -2.5, -0.5)))
    ]
    batch = group_normalized().function(pack(rows))
    # deviation of −1, −2.5, −0.5 with n − 1: mean −4/3, squares 0.1111 + 1.3611 + 0.6944 = 2.1667, √(2.1667/2)
    assert batch.advantages.max() == pytest.approx((0.8333333) / (1.0408330 + 1e-4), abs=1e-5)
    batch = batch.with_(weights=sequence_mean()(batch), ref_logprobs=batch.sampler_logprobs - 0.1)
    plain = policy_gradient() + 0.04 * kl_to_reference(k3)
    gradients = []
    for loss in (grpo(beta=0.04).loss, plain):
        logprobs = batch.sampler_logprobs.clone().requires_grad_()
        terms = loss(Outputs(logprobs), batch.with_(old_logprobs=logprobs.detach()))
        (batch.weights * terms).sum().backward()
        gradients.append(logprobs.grad)
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
