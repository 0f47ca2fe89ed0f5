"""Losses of reward models, with numbers worked by hand."""

import math

import pytest
import torch

from maieutic.backends.toy import STOP, ToyChat, toy_policy
from maieutic.core.reward_modelling import (
    as_labels,
    bradley_terry,
    final_scores,
    judged_outcomes,
    judged_pairs,
    judged_steps,
    label_mean,
    outcome_bce,
    outcome_model,
    solution_nll,
    step_bce,
)
from maieutic.core.weights import pair_mean, sequence_mean
from maieutic.errors import DataError, UnknownName
from maieutic.pack import pack
from maieutic.types import Finish, Group, Message, Outputs, Rollout, Score, Task

TASK = Task("t", (Message("user", "?"),))


def rollout(*completion: int, prompt: tuple[int, ...] = (3,)) -> Rollout:
    tokens = (*prompt, *completion)
    mask = (False,) * len(prompt) + (True,) * len(completion)
    return Rollout("t", tokens, mask, (0.0,) * len(tokens), Finish.STOP)


def with_scores(batch, *scores: float, at: int | None = None) -> Outputs:
    """Outputs whose value at each row's last place (or column `at`) is that."""
    values = torch.zeros(batch.mask.shape)
    for row, score in enumerate(scores):
        values[row, int(batch.lengths[row]) - 1 if at is None else at] = score
    values.requires_grad_()
    return Outputs(torch.zeros(batch.mask.shape), None, values)


def a_pair(better_by: float = 1.0):
    group = Group(TASK, (rollout(4, 5), rollout(6, 7, 8)), (Score(better_by), Score(0.0)))
    batch = pack(judged_pairs()([group]))
    return batch.with_(weights=pair_mean()(batch))


def test_bradley_terry_by_hand():
    # s_c − s_r = 1 − 0.2 = 0.8;  −log σ(0.8) = log(1 + e^−0.8) = 0.3711007;  ∂/∂s_c = −σ(−0.8) = −0.3100255
    batch = a_pair()
    outputs = with_scores(batch, 1.0, 0.2)
    loss, seen = bradley_terry().terms(outputs, batch)
    total = (batch.weights * loss).sum()
    assert total.item() == pytest.approx(0.3711007, abs=1e-7)
    total.backward()
    of_rows = outputs.values.grad.sum(1)
    assert of_rows.tolist() == pytest.approx([-0.3100255, 0.3100255], abs=1e-7)
    assert float(seen["pairs/accuracy"]) == 1.0
    assert float(seen["pairs/margin"]) == pytest.approx(0.8)


def test_a_constant_changes_nothing_but_the_centring():
    batch = a_pair()
    for centre, moves in ((0.0, False), (0.01, True)):
        near, far = (
            (batch.weights * bradley_terry(centre=centre)(with_scores(batch, *s), batch)).sum().item()
            for s in ((1.0, 0.2), (11.0, 10.2))
        )
        assert (abs(near - far) > 1e-3) is moves
    # the centring by hand: 0.3711007 + 0.01 · (1 + 0.2)² = 0.3711007 + 0.0144
    centred = float((batch.weights * bradley_terry(centre=0.01)(with_scores(batch, 1.0, 0.2), batch)).sum())
    assert centred == pytest.approx(0.3855007, abs=1e-6)


def test_a_margin_must_be_exceeded():
    # m = 1 · (2 − 0) = 2: −log σ(0.8 − 2) = log(1 + e^1.2) = 1.4632825
    batch = a_pair(better_by=2.0)
    loss = bradley_terry(margins=1.0)(with_scores(batch, 1.0, 0.2), batch)
    assert float((batch.weights * loss).sum()) == pytest.approx(math.log(1 + math.exp(1.2)), abs=1e-6)


def test_labels_of_steps_stand_one_place_after_the_steps_and_nowhere_else():
    # the prompt is token 3; steps (4 5) and (6) end at indices 2 and 3 of the row: labels in columns 3 and 4
    judged = Group(TASK, (rollout(4, 5, 6, 9),), (Score(0.0, step_rewards=((2, 1.0), (3, 0.0))),))
    batch = pack(judged_steps()([judged]))
    assert batch.tokens.tolist() == [[3, 4, 5, 6, 9, 9]]
    assert (~batch.step_rewards.isnan()).nonzero().tolist() == [[0, 3], [0, 4]]
    assert batch.step_rewards[0, 3:5].tolist() == [1.0, 0.0]


def test_cross_entropy_of_steps_by_hand():
    # row 1: soft label 0.25 with score 0: log 2.  row 2: labels 1 and 0 with scores 1 and 1: log(1 + 1/e), log(1 + e)
    groups = [
        Group(TASK, (rollout(4, 5),), (Score(0.0, step_rewards=((2, 0.25),)),)),
        Group(TASK, (rollout(6, 7),), (Score(0.0, step_rewards=((1, 1.0), (2, 0.0))),), id=1),
    ]
    batch = pack(judged_steps()(groups))
    values = torch.tensor([[9.0, 9.0, 9.0, 0.0], [9.0, 9.0, 1.0, 1.0]])
    outputs = Outputs(torch.zeros(2, 4), None, values)
    first, second, third = math.log(2), math.log(1 + math.exp(-1)), math.log(1 + math.e)
    of_steps = (label_mean()(batch) * step_bce()(outputs, batch)).sum()
    assert float(of_steps) == pytest.approx((first + second + third) / 3, abs=1e-6)
    of_rows = (sequence_mean()(batch) * outcome_bce()(outputs, batch)).sum()
    assert float(of_rows) == pytest.approx((first + (second + third) / 2) / 2, abs=1e-6)
    hard = pack(judged_steps(hard=True)(groups))
    assert hard.step_rewards[~hard.step_rewards.isnan()].tolist() == [1.0, 1.0, 0.0]


def test_where_the_label_of_a_whole_stands():
    group = Group(TASK, (rollout(4, 5, 6),), (Score(1.0, step_rewards=((2, 0.5),)),))

    def columns(at: str) -> list[int]:
        batch = pack(judged_outcomes(at)([group]))
        return (~batch.step_rewards[0].isnan()).nonzero().flatten().tolist()

    assert columns("end") == [4]
    assert columns("steps") == [3]
    assert columns("tokens") == [2, 3, 4]
    with pytest.raises(UnknownName, match="tokens"):
        judged_outcomes("token")


def test_the_place_that_is_asked_has_no_likelihood():
    batch = pack(judged_outcomes()([Group(TASK, (rollout(4, 5),), (Score(1.0),))]))
    nll = solution_nll()(Outputs(torch.full((1, 4), -2.0)), batch)
    assert nll.tolist() == [[0.0, 2.0, 2.0, 0.0]]


def test_labels_outside_their_range_are_refused():
    with pytest.raises(DataError, match="got the label 2"):
        judged_outcomes()([Group(TASK, (rollout(4),), (Score(2.0),))])


def test_final_scores_are_read_at_the_last_place_of_each_row():
    group = Group(TASK, (rollout(4), rollout(4, 5, 6)), (Score(1.0), Score(0.0)))
    batch = pack(judged_outcomes()([group]))
    assert final_scores(with_scores(batch, 0.5, -0.25), batch).tolist() == [0.5, -0.25]


def test_a_table_learns_how_often_each_prefix_succeeds():
    # Three prefixes of the prompt: "a" is right in 1 of 4 rows, "a b" in 1 of 2, "a c" in 0 of 2.
    chat = ToyChat(["a", "b", "c"])
    a, b, c = (chat.encode(word)[0] for word in "abc")
    policy = toy_policy(chat, length=4, critic=True, learning_rate=0.1)
    rows = [((a, b, STOP), 1.0), ((a, b, STOP), 0.0), ((a, c, STOP), 0.0), ((a, c, STOP), 0.0)]
    group = Group(TASK, tuple(rollout(*tokens) for tokens, _ in rows), tuple(Score(z) for _, z in rows))
    algorithm = outcome_model(at="tokens")
    batch = as_labels()(pack(algorithm.select([group])))
    for _ in range(300):
        algorithm.update(policy.learner, batch, algorithm)
    said = policy.learner.values(batch).sigmoid()
    # column 2 is the state after "a", column 3 the one after the second word
    assert said[0, 2].item() == pytest.approx(0.25, abs=0.01)
    assert said[0, 3].item() == pytest.approx(0.5, abs=0.01)
    assert said[2, 3].item() == pytest.approx(0.0, abs=0.03)
