"""A teacher behind a server says what it says in this process; what a server cannot say is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from maieutic.backends.local import LocalBackend, LocalLearner, Optimiser
from maieutic.core.distillation import forward_kl
from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.models.small import PAD
from maieutic.teachers import EndpointTeacher


def teacher_of(served, models, top_k=6, **terms):
    student = models(0)
    return EndpointTeacher(served.endpoint(**terms), student.tokenizer, top_k, "models/student")


@pytest.mark.parametrize("top_k", [1, 6, None])
def test_it_says_what_it_says_here(served, models, batch, top_k):
    there, here = teacher_of(served, models, top_k), LocalBackend().teacher(models(1), models(0), top_k)
    for found, expected in zip(there.top(batch), here.top(batch), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(there.logprobs(batch), here.logprobs(batch), rtol=1e-4, atol=1e-5)
    # five rows, two of them equal; once for top and once for the log-probs
    assert served.asked.count("/v1/completions") == 2 * 4
    assert there.asked["teacher/prompt_tokens"] == 2 * (14 + 9 + 12 + 6)
    assert there.asked["teacher/failures"] == 0


def test_another_temperature_is_exact_with_the_whole_vocabulary_and_refused_without(served, models, batch):
    warm = replace(batch, temperature=0.7)
    there, here = teacher_of(served, models, None), LocalBackend().teacher(models(1), models(0), None)
    for found, expected in zip(there.top(warm), here.top(warm), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.logprobs(warm), here.logprobs(warm), rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"temperature 0\.7 and a teacher behind a server.*max-logprobs -1"):
        teacher_of(served, models).top(warm)


def test_distillation_through_a_server_brings_the_student_nearer(served, models, batch):
    student = models(0)
    learner = LocalLearner(student, Optimiser(learning_rate=1e-2))
    ids, logprobs = teacher_of(served, models, 8).top(batch)
    batch = batch.with_(teacher_top_ids=ids, teacher_top_logprobs=logprobs)
    found = [learner.step(batch, forward_kl().terms, needs=forward_kl().needs) for _ in range(20)]
    assert found[-1]["distil/kl"] < 0.5 * found[0]["distil/kl"]
    assert found[-1]["distil/top1_agreement"] > found[0]["distil/top1_agreement"]


def test_a_server_that_fails_now_and_then_is_asked_again_and_counted(served, models, batch):
    served.fail = 3
    there = teacher_of(served, models)
    there.top(batch)
    assert there.asked["teacher/retries"] == 3
    served.fail = 100
    with pytest.raises(ModelError, match=r"could not be asked\. server error.*503.*3 attempts.*--resume"):
        teacher_of(served, models, retries=2).top(batch)


def test_a_server_that_knows_nothing_of_token_ids_is_refused(served, models, batch):
    served.change = lambda answer: {"choices": [{"text": "hello", "finish_reason": "stop"}]}
    with pytest.raises(ModelError, match=r"prompt_logprobs.*this server says nothing of ids"):
        teacher_of(served, models).top(batch)


def others(answer):
    answer["choices"][0]["prompt_token_ids"][-1] = 9
    return answer


def without_the_given(answer):
    tables = answer["choices"][0]["prompt_logprobs"]
    tables[1] = {"31": {"logprob": -0.1, "rank": 1, "decoded_token": "x"}}
    return answer


@pytest.mark.parametrize(("change", "says"), [(others, "others were read"), (without_the_given, "is missing")])
def test_a_server_that_read_something_else_is_not_believed(served, models, batch, change, says):
    served.change = change
    with pytest.raises(ModelError, match=says):
        teacher_of(served, models).top(batch)


@pytest.mark.parametrize("beside", [True, False], ids=["by what ids are written as", "by what was answered"])
def test_another_vocabulary_is_refused_and_both_are_named(served, models, batch, beside):
    """Two words are exchanged: the same size, the same tokens, other ids."""
    served.beside = served.beside if beside else set()
    words = [*"0123456789", *"+-*/=;#?.", "is", "what", "the", "answer", "apples", "buys", "<think>", "</think>"]
    student = models(0, words)
    batch = replace(batch, tokens=torch.where(batch.mask, student.tokenizer.get_vocab()["is"], batch.tokens))
    there = EndpointTeacher(served.endpoint(), student.tokenizer, 6, "models/student")
    with pytest.raises(ModelError, match=r"teacher \(http.* teacher\) and models/student .*'what' .*'is'.*\(sft\)"):
        there.top(batch)


def test_ids_are_compared_all_over_the_vocabulary(served, models, batch):
    teacher_of(served, models).top(batch)
    assert served.asked.count("/detokenize") == 1
    served.beside = set()
    ids, _ = teacher_of(served, models).top(batch)  # no way to ask, so the tokens that came back were compared
    assert ids[batch.mask].any()


def test_rows_longer_than_it_can_read(served, models, batch):
    served.limit = 14  # and one position is for the token that it writes
    with pytest.raises(DataError, match=r"row of 14 tokens; the teacher .* has 13 positions"):
        teacher_of(served, models).top(batch)


def test_a_number_of_candidates_that_cannot_be_meant(served, models):
    with pytest.raises(ConfigError, match="top_k=0"):
        teacher_of(served, models, 0)
    assert models(0).tokenizer.get_vocab()[PAD] == 0
