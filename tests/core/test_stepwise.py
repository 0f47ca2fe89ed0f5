"""Rewards of steps, worked by hand: compared among siblings, spent by returns and GAE, and what is made of them before.

The rows of the hand examples, a prompt token `p` and chosen tokens; a step reward stands where its step ends:

    row 0   p  a  b  c          steps end at 2 and 3, rewards 1 and 0
    row 1   p  a  b  c          steps end at 1, 2 and 3, rewards 1, 1 and 1
"""

from __future__ import annotations

import logging
import math

import pytest
import torch

from maieutic.algorithms import grpo, ppo, reinforce, rloo
from maieutic.annotate import annotator
from maieutic.backends.toy import STOP, ToyChat, ToyModel, enumerate_completions, toy_policy
from maieutic.core import credit, losses, select, update, weights
from maieutic.core.critic import gae
from maieutic.core.parts import Algorithm
from maieutic.core.stepwise import spends_steps, steps_normalized
from maieutic.errors import ConfigError, MissingColumn, UnknownName
from maieutic.loops import run_async
from maieutic.pack import pack
from maieutic.rewards.compose import gate, gives_steps, weighted
from maieutic.rewards.stepwise import FORMS, Stepwise, potential
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train
from maieutic.types import Example, Finish, Message, Rollout, Score, Task

F64 = torch.float64
TASK = Task("t", (Message("user", "a"),))


def row(tokens, steps, reward=0.0, mask=None, group=0, finish=Finish.STOP):
    mask = mask or [False] + [True] * (len(tokens) - 1)
    rollout = Rollout("t", tuple(tokens), tuple(mask), (0.0,) * len(tokens), finish)
    return Example(rollout, reward, group, group, step_rewards=tuple(steps))


def double(batch):
    names = ("rewards", "token_rewards", "sampler_logprobs", *(("step_rewards",) if batch.has("step_rewards") else ()))
    return batch.with_(**{name: getattr(batch, name).double() for name in names})


def two(**options):
    first = row([9, 1, 1, 1], [(2, 1.0), (3, 0.0)], 0.5, **options)
    return double(pack([first, row([9, 1, 1, 1], [(1, 1.0), (2, 1.0), (3, 1.0)])]))


def test_steps_of_a_group_are_compared_and_a_token_gets_those_still_to_come():
    # R = (1, 0, 1, 1, 1): mean .8, squared deviations 4·.04 + .64 = .8, over n − 1 = 4: .2, std .4472136
    # a step of 1: .2/.4472136 = .4472136; the step of 0: −.8/.4472136 = −1.7888544
    # row 0: at 3 −1.7888544; at 2 and 1 −1.7888544 + .4472136 = −1.3416408
    # row 1: at 3 .4472136, at 2 .8944272, at 1 1.3416408
    given = steps_normalized(eps=0.0)(two()).advantages
    assert given[0].tolist() == pytest.approx([0, -1.3416408, -1.3416408, -1.7888544])
    assert given[1].tolist() == pytest.approx([0, 1.3416408, 0.8944272, 0.4472136])


def test_on_top_of_the_outcome():
    # outcomes (.5, 0): mean .25, std .3535534, so ±.7071068 for every token of a row
    both = grpo(supervision="both").credit
    assert str(both) == "group_normalized() | steps_normalized(added=True)"
    given = (credit.group_normalized(eps=0.0) | steps_normalized(added=True, eps=0.0))(two()).advantages
    assert given[0].tolist() == pytest.approx(
        [0, 0.7071068 - 1.3416408] + [0.7071068 - x for x in (1.3416408, 1.7888544)]
    )
    assert given[1, 3].item() == pytest.approx(-0.7071068 + 0.4472136)


def test_what_an_environment_wrote_gets_nothing_and_carries_the_credit_back():
    given = steps_normalized(eps=0.0)(two(mask=[False, True, False, False])).advantages
    assert given[0].tolist() == pytest.approx([0, -1.3416408, 0, 0])


def test_equal_steps_give_nothing_and_groups_are_compared_within_themselves():
    rows = [row([9, 1, 1], [(1, 0.1), (2, 0.1)]), row([9, 1], [(1, 0.1)]), row([9, 1], [(1, 5.0)], group=1)]
    assert steps_normalized()(pack(rows)).advantages.abs().max() == 0
    without = pack([*rows[:1], row([9, 1, 1], [(1, 0.5)]), row([9, 1], [])])
    assert steps_normalized()(without).advantages[2].tolist() == [0, 0, 0]  # no steps: nothing to say
    alone = pack([row([9, 1, 1], [(1, 0.0), (2, 1.0)])])
    assert steps_normalized()(alone).advantages.abs().max() == 0  # nobody to be compared with
    with pytest.raises(MissingColumn, match="a reward that scores steps"):
        steps_normalized()(pack([row([9, 1], [], 1.0)]))


def test_a_step_of_reward_zero_is_a_step():
    found = pack([row([9, 1, 1], [(1, 0.0), (2, 0.25), (2, 0.5)])]).step_rewards[0]
    assert found.isnan().tolist() == [True, False, False]
    assert found[1:].tolist() == [0.0, 0.75]  # two rewards may speak of one step
    assert not pack([row([9, 1], [], 1.0)]).has("step_rewards")


def test_returns_and_gae_spend_step_rewards_where_they_are():
    # rewards: .25 at the end of step 1 (token 2), .5 at that of step 2 (token 4), the outcome 1 at token 4 too
    batch = double(pack([row([9, 1, 1, 1, 1], [(2, 0.25), (4, 0.5)], 1.0)]))
    assert credit.discounted()(batch).advantages[0].tolist() == [0, 1.75, 1.75, 1.5, 1.5]
    # V = (.5, .25, 1, 1.25): δ = (.25 − .5, .25 + 1 − .25, 1.25 − 1, 1.5 − 1.25) = (−.25, 1, .25, .25)
    # λ = .5: A₃ = .25, A₂ = .25 + .125 = .375, A₁ = 1 + .1875 = 1.1875, A₀ = −.25 + .59375 = .34375
    valued = batch.with_(
        old_values=torch.tensor([[0, 0.5, 0.25, 1, 1.25]], dtype=F64), final_values=torch.zeros(1, dtype=F64)
    )
    assert gae(lam=0.5)(valued).advantages[0].tolist() == [0, 0.34375, 1.1875, 0.375, 0.25]


@pytest.mark.parametrize(
    ("form", "cut", "outcome", "steps"),
    [
        ("sum", False, 0.0, [0.9, 0.3, 0.6]),
        ("mean", False, 0.0, [0.3, 0.1, 0.2]),
        ("potential", False, 0.0, [0.9, -0.6, -0.3]),  # .9 − 0, .3 − .9, and 0 − .3 at the end
        (potential(start=0.5), False, 0.0, [0.4, -0.6, -0.3]),
        ("potential", True, 0.0, [0.9, -0.6, -0.3]),
        (potential(bootstrap=True), True, 0.0, [0.9, -0.6, 0.3]),  # cut: the last state keeps its potential, .6
        ("min", False, 0.3, []),
        ("last", False, 0.6, []),
        ("prod", False, 0.162, []),
    ],
)
def test_the_forms_of_step_scores(form, cut, outcome, steps):
    made = FORMS[form] if isinstance(form, str) else form
    added, given = made([0.9, 0.3, 0.6], cut)
    assert added == pytest.approx(outcome)
    assert list(given) == pytest.approx(steps)


def test_which_of_two_solutions_a_form_prefers():
    """T2.6 and T2.7: one bad step among good ones against four middling ones; and one more step."""
    one_bad, middling = (0.9, 0.9, 0.3, 0.9), (0.6,) * 4

    def worth(form, scores):
        outcome, steps = FORMS[form](scores, False)
        return outcome + sum(steps)

    assert (worth("min", one_bad), worth("min", middling)) == (0.3, 0.6)
    assert worth("prod", one_bad) == pytest.approx(0.2187)
    assert worth("prod", middling) == pytest.approx(0.1296)
    assert worth("last", one_bad) > worth("last", middling)
    assert worth("mean", one_bad) == pytest.approx(0.75)
    for more in (0.6, 0.95):
        assert worth("sum", (*middling, more)) > worth("sum", middling)
        assert worth("prod", (*middling, more)) < worth("prod", middling)
        assert worth("min", (*middling, more)) == worth("min", middling)
        assert worth("potential", (*middling, more)) == pytest.approx(worth("potential", middling))


def scored(rewards, steps):
    async def judge(task, rollouts):
        return [Score(r, parts={"answer": r} if r is not None else {}, step_rewards=s) for r, s in zip(rewards, steps)]

    return judge


def test_scores_of_steps_become_rewards():
    rollouts = [row([9, 1, 1, 1], []).rollout] * 3
    judge = scored([1.0, 0.0, None], [((1, 0.5), (3, 0.25)), (), ()])
    kept, bare, failed = run_async(Stepwise(judge, "potential", coef=2.0)(TASK, rollouts))
    assert kept == Score(1.0, parts={"answer": 1.0, "steps": 0.0}, step_rewards=((1, 1.0), (3, -1.0)))
    assert (bare.reward, bare.step_rewards, failed.reward) == (0.0, (), None)
    kept, bare, _ = run_async(Stepwise(judge, "min", outcome=0.5)(TASK, rollouts))
    assert (kept.reward, kept.step_rewards, kept.parts["steps"]) == (0.5 + 0.25, (), 0.25)
    assert (bare.reward, bare.note) == (None, "no step was scored")
    with pytest.raises(UnknownName, match="form of step rewards"):
        Stepwise(judge, "potentials")


# On a policy with few completions expectations are sums. Words: stop, `1`, and `;`, which ends a step; up to 3 tokens.
LENGTH, SEMI = 3, 2
COMPLETIONS = list(enumerate_completions(ToyModel(3, LENGTH), LENGTH))


def outcome(completion):
    """No pattern to it, binary fractions."""
    return (sum((t + 2) * 7**i for i, t in enumerate(completion)) % 17 - 8) / 8


def score_of(prefix):
    """Φ of a beginning: any function of it."""
    return (sum((t + 1) * 5**i for i, t in enumerate(prefix)) % 13) / 16


def shaped(form):
    """All completions as rows, the steps that `;` ends scored by `score_of`, in a form."""
    rows = []
    for completion in COMPLETIONS:
        ends = sorted({i + 1 for i, t in enumerate(completion) if t == SEMI} | {len(completion)})
        steps = [(end, score_of(completion[:end])) for end in ends]
        rollout = row([1, *completion], [], finish=Finish.STOP if completion[-1] == STOP else Finish.LENGTH).rollout
        judge = scored([outcome(completion)], [steps])
        (score,) = run_async(judge(TASK, [rollout]) if form is None else Stepwise(judge, form)(TASK, [rollout]))
        rows.append(Example(rollout, score.reward, 0, 0, step_rewards=() if form is None else score.step_rewards))
    return rows


def expected_gradient(form, rate=1.0):
    """Σ_c π(c) ∇ sum(weights · loss) of REINFORCE, `rate` times the outcome's weight."""
    model = ToyModel(3, LENGTH, seed=4, dtype=F64)
    model.table.data *= 8
    algorithm = Algorithm(
        "parts",
        select.everything(),
        credit.discounted(),
        losses.policy_gradient(),
        weights.sequence_sum(),
        update.sgd(),
    )
    batch = double(pack(shaped(form)))
    outputs = model.outputs(batch)
    chances = outputs.logprobs.sum(1).exp().detach()
    batch = algorithm.credit(batch)
    per_row = (algorithm.loss(outputs, batch) * batch.mask).sum(1)
    (found,) = torch.autograd.grad((chances * per_row).sum(), model.table)
    assert float(chances.sum()) == pytest.approx(1.0)
    return rate * found.flatten()


def best(form):
    """The completion whose rewards come to most, and what they come to."""
    totals = {c: e.reward + sum(r for _, r in e.step_rewards) for c, e in zip(COMPLETIONS, shaped(form))}
    return max(totals, key=totals.__getitem__), totals


@pytest.mark.parametrize("form", ["potential", potential(start=0.375)], ids=["potential", "with a start"])
def test_shaping_by_a_potential_leaves_gradient_and_optimum_alone(form):
    """Whatever Φ is, what is still to come changes by −Φ of where the policy stands: a baseline."""
    plain, found = expected_gradient(None), expected_gradient(form)
    assert float(plain.norm()) > 1e-2
    torch.testing.assert_close(found, plain, rtol=1e-10, atol=1e-12)
    first, totals = best(form)
    assert first == best(None)[0]
    shift = totals[first] - outcome(first)  # −Φ of the prompt, for every completion alike
    assert all(total - outcome(c) == pytest.approx(shift) for c, total in totals.items())


@pytest.mark.parametrize("form", ["sum", "mean", "min"])
def test_other_forms_change_what_is_learned(form):
    plain, found = expected_gradient(None), expected_gradient(form)
    assert float((found - plain).norm() / plain.norm()) > 0.05
    totals = best(form)[1]
    ranked = [sorted(COMPLETIONS, key=worth.__getitem__) for worth in (totals, best(None)[1])]
    assert ranked[0] != ranked[1]


def test_gae_of_a_shaped_reward_is_that_of_the_plain_one_where_the_critic_knows_the_potential():
    """δ′ = r + Φ(s′) − Φ(s) + (V − Φ)(s′) − (V − Φ)(s) = δ, so nothing depends on λ; V′(end) = V(end) = 0."""
    draw = torch.Generator().manual_seed(1)
    values, phi = torch.randn(1, 4, generator=draw, dtype=F64), torch.randn(3, generator=draw).tolist()
    _, steps = potential(start=0.25)([*phi, 9.0], False)
    rows = [row([9, 1, 1, 1, 1], []), row([9, 1, 1, 1, 1], [(t + 1, r) for t, r in enumerate(steps)])]
    plain, shaped_row = (double(pack([r])) for r in rows)
    before = torch.tensor([[0.25, *phi]], dtype=F64)
    for lam in (0.0, 0.5, 1.0):
        a, b = (
            gae(lam=lam, bootstrap=False)(
                batch.with_(old_values=torch.cat([torch.zeros(1, 1, dtype=F64), v], 1))
            ).advantages
            for batch, v in ((plain, values), (shaped_row, values - before))
        )
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)  # pack holds rewards in float32


class Steps:
    """A reward with a step reward at the last token; `told` whether it says so of itself."""

    def __init__(self, told):
        self.gives_steps = told

    async def __call__(self, task, rollouts):
        """0 or 1 by turns."""
        return [Score(float(i % 2), step_rewards=((len(r.tokens) - 1, 0.5),)) for i, r in enumerate(rollouts)]


def source_of(reward):
    policy = toy_policy(ToyChat(["a", ";"]), length=3, critic=True)
    roller = Roller(policy.sampler, policy.chat, reward, max_completion_length=3)
    return Sampled([TASK], roller, prompts=1, num_generations=4), policy


def test_an_algorithm_that_would_throw_steps_away_is_refused():
    for algorithm in (grpo(), rloo()):
        assert not spends_steps(algorithm.credit)
        source, policy = source_of(weighted({"steps": Steps(True)}, {"steps": 1.0}))
        with pytest.raises(ConfigError, match=r'learns from outcomes alone .*supervision = "process"'):
            train(source, policy, algorithm, steps=1)
    for algorithm in (grpo(supervision="process"), grpo(supervision="both"), reinforce(), ppo(beta=0.0)):
        assert spends_steps(algorithm.credit)
        source, policy = source_of(Steps(True))
        assert len(list(train(source, policy, algorithm, steps=2))) == 2
    assert gives_steps(gate(scored([], []), Steps(True)))
    assert not gives_steps(weighted({"min": Stepwise(Steps(True), "min")}, {"min": 1.0}))
    assert gives_steps(Stepwise(Steps(False), "potential"))
    with pytest.raises(UnknownName, match="supervision"):
        grpo(supervision="steps")


def test_one_that_nobody_knew_of_is_said_once(caplog):
    source, policy = source_of(Steps(False))
    with caplog.at_level(logging.WARNING, "maieutic.annotate"):
        list(train(source, policy, grpo(), steps=3))
    said = [r.getMessage() for r in caplog.records if "rewards of steps" in r.getMessage()]
    assert len(said) == 1
    assert "its credit is group_normalized()" in said[0]
    caplog.clear()
    source, policy = source_of(scored([1.0, 0.0, 0.0, 1.0], [()] * 4))
    fill = annotator(source, policy, grpo(), None, None, "learner")
    fill(pack([row([1, 1], [], 1.0)]))
    assert not [r for r in caplog.records if "rewards of steps" in r.getMessage()]


def test_weights_of_forms_are_finite():
    with pytest.raises(ConfigError, match="expected finite numbers"):
        Stepwise(scored([], []), "sum", coef=math.inf)
    with pytest.raises(ConfigError, match="expected a finite number"):
        potential(start=math.nan)
