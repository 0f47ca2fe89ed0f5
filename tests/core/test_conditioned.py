"""Return-conditioned rows: labels before steps, what is good, the mix; and what is learned from them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from maieutic.algorithms import make_algorithm, rcrl
from maieutic.backends.toy import ToyChat, ToyLearner, ToyModel, ToySampler
from maieutic.core.conditioned import (
    conditioned_on_reward,
    is_good,
    labelled,
    mixed,
    monte_carlo,
    outcome,
    reward_model,
)
from maieutic.environments.conditioned import Conditioned
from maieutic.errors import ConfigError, ModelError, RewardError, UnknownName
from maieutic.loops import run_async
from maieutic.pack import pack
from maieutic.protocols import Sampling
from maieutic.steps import Labels
from maieutic.types import Finish, Group, Rollout, Score, Span, Task

CHAT = ToyChat(["a", "b", ";", "[GOOD]", "[BAD]", "tool"])
STOP, A, B, SEMI, GOOD, BAD, TOOL = range(7)
LABELS = Labels(delimiter=" ;")
WORDS = LABELS.bind(CHAT)


def written(*tokens, tool=(), task="t", sibling=0):
    """A rollout of these tokens after the prompt (a, a); those at the places `tool` are a tool's."""
    mask = tuple(place not in tool for place in range(len(tokens)))
    logprobs = tuple(-0.1 * (place + 1) if chosen else 0.0 for place, chosen in enumerate(mask))
    return Rollout(
        task, (A, A, *tokens), (False, False, *mask), (0.0, 0.0, *logprobs), Finish.STOP,
        spans=(Span("prompt", 0, 2), Span("assistant", 2, 2 + len(tokens))), sibling=sibling,
    )  # fmt: skip


#: Three steps: a ; | b ; | a <stop>, which end at tokens 3, 5 and 7 of the rollout.
THREE = written(A, SEMI, B, SEMI, A, STOP)


def group(*rows, id=0):
    return Group(Task("t", ()), tuple(r for r, _ in rows), tuple(s for _, s in rows), id=id)


def select(**options):
    return conditioned_on_reward(**{"labels": LABELS, **options}).bind(CHAT)


def bodies(examples):
    return [example.rollout.tokens[2:] for example in examples]


def test_labels_stand_before_their_steps_and_good_includes_the_threshold():
    """T4.1: of four continuations 3, 1 and 2 end correct: 3/4 ≥ 1/2, 1/4 < 1/2, 2/4 ≥ 1/2, so good, bad, good."""
    score = Score(1.0, correct=True, step_rewards=((3, 3 / 4), (5, 1 / 4), (7, 2 / 4)))
    made = select(rule=monte_carlo)([group((THREE, score))])
    assert bodies(made) == [(GOOD, A, SEMI, BAD, B, SEMI, GOOD, A, STOP)]
    strict = select(rule=monte_carlo, threshold=0.5 + 1e-9)([group((THREE, score))])
    assert bodies(strict) == [(GOOD, A, SEMI, BAD, B, SEMI, BAD, A, STOP)]


def test_a_labelled_row_is_whole():
    row = labelled(THREE, WORDS, [True, False, True])
    assert row.mask == (False, False, False, True, True, False, True, True, False, True, True)
    assert row.logprobs == (0.0, 0.0, 0.0, -0.1, -0.2, 0.0, pytest.approx(-0.3), -0.4, 0.0, -0.5, pytest.approx(-0.6))
    roles = ["prompt", "tool", "assistant", "tool", "assistant", "tool", "assistant"]
    places = [0, 2, 3, 5, 6, 8, 9, 11]
    assert row.spans == tuple(Span(r, a, b) for r, a, b in zip(roles, places, places[1:], strict=False))
    assert WORDS.steps.of(row) == ((2, 5), (5, 8), (8, 11))
    assert row.text == THREE.text
    with pytest.raises(ValueError, match="got 2 labels for 3 steps"):
        labelled(THREE, WORDS, [True, False])


def test_labels_may_be_learned_too():
    row = labelled(THREE, WORDS, [True, True, True], loss_on_labels=True)
    assert row.mask == (False,) * 2 + (True,) * 9
    assert row.spans == (Span("prompt", 0, 2), Span("assistant", 2, 11))
    assert pack(select(loss_on_labels=True)([group((THREE, Score(1.0)))])).mask.sum() == 9
    assert pack(select()([group((THREE, Score(1.0)))])).mask.sum() == 6


def test_what_a_tool_wrote_stays_the_tools():
    row = labelled(written(A, TOOL, SEMI, B, STOP, tool=(1,)), WORDS, [True, False])
    assert row.tokens[2:] == (GOOD, A, TOOL, SEMI, BAD, B, STOP)
    assert row.mask[2:] == (False, True, False, True, False, True, True)


def test_labels_that_were_there_are_replaced():
    """A rollout that was asked for good steps and went wrong is learned as what it is."""
    asked = labelled(THREE, WORDS, [True, True, True])
    assert bodies(select()([group((asked, Score(0.0)))])) == [(BAD, A, SEMI, BAD, B, SEMI, BAD, A, STOP)]
    estimates = Score(0.0, step_rewards=((4, 1.0), (7, 0.0), (10, 0.0)))  # at the ends of the steps as they were asked
    found = select(rule=reward_model)([group((asked, estimates))])
    assert bodies(found) == [(GOOD, A, SEMI, BAD, B, SEMI, BAD, A, STOP)]


def test_by_outcome_every_step_is_as_good_as_the_whole():
    assert outcome(Score(1.0), [3, 5], True) == [1.0, 1.0]
    assert outcome(Score(1.0), [3, 5], False) == [0.0, 0.0]
    # the verdict decides where there is one; else the reward, which here is a sum with other things in it
    assert is_good(Score(0.1, correct=True), 0.5)
    assert not is_good(Score(0.9, correct=False), 0.5)
    assert is_good(Score(0.5), 0.5)
    made = select()([group((THREE, Score(0.1, correct=True)), (THREE, Score(0.9, correct=False)))])
    assert [body[0] for body in bodies(made)] == [GOOD, BAD]


def test_estimates_that_are_not_there_are_an_error():
    with pytest.raises(RewardError, match=r"got step rewards at tokens \[3\], expected one where each step ends"):
        select(rule=reward_model)([group((THREE, Score(1.0, step_rewards=((3, 1.0),))))])


def test_rows_are_those_that_have_a_reward_and_said_something():
    silent = replace(THREE, mask=(False,) * 8)
    rows = select()([group((THREE, Score(None)), (silent, Score(1.0)), (THREE, Score(1.0)))])
    assert [(row.group, row.unit, row.reward) for row in rows] == [(0, 0, 1.0)]
    # imitation asks for no sampler: rows of any temperature may be learned together
    warm = replace(THREE, temperature=0.7)
    both = select()([group((THREE, Score(1.0)), (warm, Score(1.0)))])
    assert pack(both).temperature == 1.0
    assert not any(any(row.rollout.logprobs) for row in both)


@pytest.mark.parametrize(
    ("good", "bad", "ratio", "kept"),
    [
        (10, 10, (1, 1), (10, 10)),
        (10, 10, (4, 1), (10, 2)),  # 10/4 = 2.5 bad ones, and a half is rounded to the even number
        (3, 10, (10, 1), (3, 1)),  # 0.3 bad ones: one at least, or the label would mean nothing
        (20, 1, (4, 1), (4, 1)),
        (2, 9, (1, 3), (2, 6)),
        (5, 0, (4, 1), (0, 0)),  # no mix can be made of one kind
        (0, 5, (1, 1), (0, 0)),
    ],
)
def test_the_mix_of_good_and_bad(good, bad, ratio, kept):
    rows = [True] * good + [False] * bad
    random.Random(1).shuffle(rows)
    chosen = mixed(rows, ratio, random.Random(0))
    assert chosen == sorted(set(chosen))
    assert (sum(rows[i] for i in chosen), sum(not rows[i] for i in chosen)) == kept


def test_the_mix_is_seeded_by_what_is_mixed():
    made = [group(*[(written(A, STOP, sibling=i), Score(float(i < 4))) for i in range(12)], id=n) for n in range(2)]

    def siblings(groups, **options):
        return [row.rollout.sibling for row in select(ratio=(4, 2), **options)(groups)]

    first = siblings(made)
    assert len(first) == 12  # all 8 good ones, and 4 of 16 bad ones
    assert first == siblings(made)
    assert first != siblings(made, seed=1)
    assert siblings(made[:1]) != siblings([replace(made[0], id=7)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, "got threshold=1.5; expected a probability"),
        ({"ratio": (1, 0)}, "expected two positive numbers"),
        ({"ratio": (1, 2, 3)}, "expected two positive numbers"),
        ({"continuations": 0}, "got continuations=0 with the rule monte_carlo; expected 1 or more"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        conditioned_on_reward(monte_carlo, **options)
    with pytest.raises(ConfigError, match=message):
        make_algorithm("rcrl", {"labels": "monte_carlo", **options})


def test_continuations_with_a_rule_that_does_not_look_at_them_are_refused():
    with pytest.raises(ConfigError, match=r"got continuations=4 with the rule outcome.* none with another"):
        make_algorithm("rcrl", {"continuations": 4})
    with pytest.raises(UnknownName, match="unknown rule for labels 'monte_karlo'; did you mean 'monte_carlo'"):
        rcrl(labels="monte_karlo")
    assert rcrl().select.continuations == 0
    assert rcrl(labels="monte_carlo").select.continuations == 4
    assert (
        rcrl(labels="monte_carlo", continuations=9).bind(ToyChat(["\n", "[GOOD]", "[BAD]"])).select.continuations == 9
    )


def test_an_algorithm_that_writes_tokens_is_told_how_first():
    with pytest.raises(ConfigError, match=r"give the algorithm the policy's chat first: `algorithm = algorithm.bind"):
        rcrl().select([group((THREE, Score(1.0)))])
    with pytest.raises(ModelError, match=r"extra_words"):
        rcrl(delimiter=" ;").bind(ToyChat(["a", ";"]))
    told = rcrl(delimiter=" ;").bind(CHAT)
    assert told.select.labels == LABELS
    assert told.bind(CHAT).select([group((THREE, Score(1.0)))]) == told.select([group((THREE, Score(1.0)))])
    other = make_algorithm("grpo", {})
    assert other.bind(CHAT) == other


#: Two arms, a and b: the data's policy takes the good one, a, with probability 0.2.
ARMS = group(*[(written(A if i < 2 else B, STOP, sibling=i), Score(float(i < 2), correct=i < 2)) for i in range(10)])


@pytest.fixture(scope="module")
def learned():
    """Logits after maximum likelihood on the ten labelled rows, two of them good."""
    algorithm = rcrl(delimiter=" ;", epochs=400).bind(CHAT)
    model = ToyModel(len(CHAT.words), length=2, buckets=64, seed=0, dtype=torch.float64)
    # one bucket for [GOOD] and another for [BAD] after the prompt, as a model that sees its context has
    assert model.bucket((A, A, GOOD)) != model.bucket((A, A, BAD))
    algorithm.update(ToyLearner(model, learning_rate=0.3), pack(algorithm.select([ARMS])), algorithm)
    return model


def arms(model, label):
    row = model.table.detach()[model.bucket((A, A, label)), 0, label].softmax(-1)
    return float(row[A]), float(row[B])


def test_the_label_decides_the_arm(learned):
    """T4.2: P(a | GOOD) = 1 and P(a | BAD) = 0."""
    assert arms(learned, GOOD) == pytest.approx((1.0, 0.0), abs=1e-3)
    assert arms(learned, BAD) == pytest.approx((0.0, 1.0), abs=1e-3)


def test_forgetting_the_label_gives_the_policy_of_the_data_back(learned):
    # T4.2: P(a) = P(GOOD) P(a | GOOD) + P(BAD) P(a | BAD) = 0.2 * 1 + 0.8 * 0
    prior = sum(row.rollout.tokens[2] == GOOD for row in select()([ARMS])) / 10
    assert prior == 0.2
    assert prior * arms(learned, GOOD)[0] + (1 - prior) * arms(learned, BAD)[0] == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize(("force", "label", "arm"), [("[GOOD]", GOOD, A), ("[BAD]", BAD, B)])
def test_asked_for_a_kind_it_writes_that_kind(learned, force, label, arm):
    sampler = Conditioned(ToySampler(learned), CHAT, LABELS, force)
    made = run_async(sampler.sample((A, A), Sampling(3, stop_ids=frozenset({STOP})), 20))
    assert {completion.tokens for completion in made} == {(label, arm, STOP)}


def test_a_mix_moves_how_often_a_label_stands_and_not_what_it_means():
    rows = select(ratio=(1, 1))([ARMS])
    assert [row.rollout.tokens[2:4] for row in rows] == [(GOOD, A)] * 2 + [(BAD, B)] * 2
