"""Advantages from values, the losses of a critic, and the KL penalty that adapts: numbers worked by hand."""

from __future__ import annotations

import math

import pytest
import torch

from maieutic.algorithms import ppo
from maieutic.annotate import values
from maieutic.backends.toy import ToyChat, ToyCritic, ToyLearner, ToyModel
from maieutic.core import credit, losses
from maieutic.core.adaptive import KLController, adaptive_kl_in_reward
from maieutic.core.critic import entropy_bonus, gae, value_loss, warmed_up, whitened_rewards
from maieutic.core.measures import batch_measures, memory_measures
from maieutic.core.parts import Algorithm
from maieutic.core.select import everything
from maieutic.core.update import sgd
from maieutic.core.weights import token_mean
from maieutic.errors import ConfigError, MissingColumn
from maieutic.pack import pack
from maieutic.types import Batch, Example, Finish, Outputs, Rollout

F64 = torch.float64


def rows(mask, *, rewards=None, terminated=None, **columns):
    """Rows `[B, T]`, a prompt token each in column 0; token rewards, values, … are given in full."""
    mask = torch.tensor(mask, dtype=torch.bool)
    size, width = mask.shape
    made = {name: torch.tensor(value, dtype=F64) for name, value in columns.items()}
    token_rewards = made.pop("token_rewards", torch.zeros(size, width, dtype=F64))
    return Batch(
        torch.ones(size, width, dtype=torch.long), mask, torch.full((size,), width),
        torch.zeros(size, width, dtype=F64),
        token_rewards.sum(1) if rewards is None else torch.tensor(rewards, dtype=F64), token_rewards,
        torch.tensor([True] * size if terminated is None else terminated), torch.zeros(size, dtype=torch.long),
        torch.arange(size),
    ).with_(**made)  # fmt: skip


def chain(**options):
    """r = [0, 0, 1], V = [.2, .5, .6]: the row on which everything below is worked out."""
    made = {"token_rewards": [[0, 0, 0, 1.0]], "old_values": [[0, 0.2, 0.5, 0.6]], "final_values": [0.0], **options}
    return rows([[False, True, True, True]], **made)


@pytest.mark.parametrize(
    ("lam", "wanted"),
    [
        # γ = 1: δ = (0 + .5 − .2, 0 + .6 − .5, 1 + 0 − .6) = (.3, .1, .4)
        (0.0, [0.3, 0.1, 0.4]),
        # A₂ = .4;  A₁ = .1 + .5·.4 = .3;  A₀ = .3 + .5·.3 = .45
        (0.5, [0.45, 0.3, 0.4]),
        # A₁ = .1 + .95·.4 = .48;  A₀ = .3 + .95·.48 = .756
        (0.95, [0.756, 0.48, 0.4]),
        # A₁ = .1 + .4 = .5;  A₀ = .3 + .5 = .8
        (1.0, [0.8, 0.5, 0.4]),
    ],
)
def test_gae_by_hand(lam, wanted):
    given = gae(lam=lam)(chain())
    assert given.advantages[0, 1:].tolist() == pytest.approx(wanted)
    assert given.returns[0, 1:].tolist() == pytest.approx([a + v for a, v in zip(wanted, [0.2, 0.5, 0.6], strict=True)])
    assert not given.advantages[0, 0]


def test_lambda_one_is_the_return_minus_the_value_and_lambda_zero_one_step_of_the_critic():
    """For any rewards, values, masks and γ: A = G − V, with G as `discounted` has it."""
    draw = torch.Generator().manual_seed(3)
    mask = torch.rand(6, 9, generator=draw) < 0.6
    mask[:, 0] = False
    batch = rows(
        mask.tolist(),
        token_rewards=torch.randn(6, 9, generator=draw).tolist(),
        old_values=torch.where(mask, torch.randn(6, 9, generator=draw), 0.0).tolist(),
    )
    for gamma in (1.0, 0.8):
        returns = credit.discounted(gamma)(batch).returns
        whole = gae(gamma, lam=1.0, bootstrap=False)(batch)
        torch.testing.assert_close(whole.advantages, torch.where(mask, returns - batch.old_values, 0.0))
        torch.testing.assert_close(whole.returns, returns)
    # one step, γ = .8, on one row: choices at 1 and 3, the token between them is a tool's
    short = rows([[False, True, False, True]], token_rewards=[[0, 0.5, 0, 1.0]], old_values=[[0, 0.3, 0, 0.7]])
    # .5 + .8·.7 − .3 = .76;  1 − .7 = .3
    assert gae(0.8, 0.0, bootstrap=False)(short).advantages[0].tolist() == pytest.approx([0, 0.76, 0, 0.3])


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 3])
def test_inserted_tokens_leave_the_advantages_of_chosen_ones_unchanged(at, count):
    """A25: an observation carries the next choice's value and advantage back, and nothing of its own."""

    def widened(row, fill):
        return [row[:at] + [fill] * count + row[at:]]

    wide = rows(
        widened([False, True, True, True], False),
        token_rewards=widened([0, 0, 0, 1.0], 0.0),
        old_values=widened([0, 0.2, 0.5, 0.6], 9.0),  # whatever stands there is not read
        final_values=[0.7],
        terminated=[False],
    )
    plain = chain(final_values=[0.7], terminated=[False])
    for given in (gae(0.9, 0.95), gae(1.0, 0.5), gae(0.9, 0.95, value_lam=1.0)):
        found, wanted = given(wide), given(plain)
        assert found.advantages[wide.mask].tolist() == pytest.approx(wanted.advantages[plain.mask].tolist())
        assert found.returns[wide.mask].tolist() == pytest.approx(wanted.returns[plain.mask].tolist())
        assert not found.advantages[~wide.mask].any()
        assert not found.returns[~wide.mask].any()


def test_a_reward_on_an_inserted_token_goes_to_the_choice_before_it():
    # a tool's token at 2 brings 1: choice 1 gets 0 + (1 + .6) − .2 = 1.4 at λ = 0, and choice 3 keeps 0 − .6
    batch = rows([[False, True, False, True]], token_rewards=[[0, 0, 1.0, 0]], old_values=[[0, 0.2, 0, 0.6]])
    assert gae(lam=0.0, bootstrap=False)(batch).advantages[0].tolist() == pytest.approx([0, 1.4, 0, -0.6])


def test_a_cut_row_goes_on_with_the_value_of_its_last_state():
    """A25: V after the end is 0; after the length limit it is what the critic still expects."""
    # as in the chain, with .7 after the last token: δ₂ = 1 + .7 − .6 = 1.1
    cut = chain(final_values=[0.7], terminated=[False])
    assert gae(lam=0.0)(cut).advantages[0, 1:].tolist() == pytest.approx([0.3, 0.1, 1.1])
    assert gae(lam=1.0)(cut).returns[0, 1:].tolist() == pytest.approx([1.7, 1.7, 1.7])
    # a row that ended, and one that is not to be continued, get nothing more whatever the critic says
    for other in (gae(lam=0.0)(chain(final_values=[0.7])), gae(lam=0.0, bootstrap=False)(cut)):
        assert other.advantages[0, 1:].tolist() == pytest.approx([0.3, 0.1, 0.4])
    assert "final_values" in gae().needs
    assert gae(bootstrap=False).needs == {"old_values"}


def test_the_outcome_stands_on_the_last_chosen_token_however_wide_the_batch_is():
    """A27: the stop token bears the outcome, padding and what a tool wrote after it nothing."""
    short = Rollout("a", (5, 6, 0), (False, True, True), (0.0, -1.0, -1.0), Finish.STOP)
    long = Rollout("b", (5, *[6] * 7, 8, 8), (False, *[True] * 7, False, False), (0.0,) * 10, Finish.ENVIRONMENT)
    batch = pack([Example(short, 1.0, 0, 0), Example(long, 0.5, 1, 1)])
    assert batch.token_rewards.nonzero().tolist() == [[0, 2], [1, 7]]  # not the padded column 9
    given = gae(lam=0.0, bootstrap=False)(batch.with_(old_values=torch.zeros_like(batch.token_rewards)))
    assert given.advantages.nonzero().tolist() == [[0, 2], [1, 7]]


def test_the_critic_may_learn_from_another_lambda():
    # advantages at λ = 0 as above, targets at λ = 1: G = 1 everywhere
    given = gae(lam=0.0, value_lam=1.0)(chain())
    assert given.advantages[0, 1:].tolist() == pytest.approx([0.3, 0.1, 0.4])
    assert given.returns[0, 1:].tolist() == pytest.approx([1, 1, 1])


def test_lambda_may_follow_the_length():
    # α = .5: 3 chosen tokens → λ = 1 − 1/1.5 = 1/3; a single one → 1 − 1/.5 < 0, that is 0
    # δ as above: A₁ = .1 + .4/3 = .23333, A₀ = .3 + .23333/3 = .37778
    given = gae(length_alpha=0.5)(chain())
    assert given.advantages[0, 1:].tolist() == pytest.approx([0.3 + 0.7 / 9, 0.1 + 0.4 / 3, 0.4])


def test_a_long_chain_at_lambda_095_leaves_the_first_token_nothing():
    # V = 0 and the outcome 1 a thousand tokens later: A₀ = .95¹⁰⁰⁰ = exp(−1000 · .0512933) = exp(−51.2933) = 5.29e-23
    mask = [[False] + [True] * 1001]
    batch = rows(mask, token_rewards=[[0.0] * 1001 + [1.0]], old_values=[[0.0] * 1002])
    assert float(gae(bootstrap=False)(batch).advantages[0, 1]) == pytest.approx(5.29e-23, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"gamma": 1.1}, {"lam": -0.1}, {"value_lam": 2.0}, {"length_alpha": 0.0}])
def test_impossible_settings_of_gae_are_refused(wrong):
    with pytest.raises(ValueError, match="gae: got"):
        gae(**wrong)


def test_gae_without_a_critic_says_what_is_missing():
    with pytest.raises(MissingColumn, match=r"gae\(\) reads 'final_values'.*critic"):
        gae()(rows([[False, True]]))


def test_whitening_comes_after_the_returns():
    """A26: advantages are whitened over the batch's chosen tokens; the critic's targets keep the reward's unit."""
    batch = rows(
        [[False, True, True, True], [False, True, False, False]],
        token_rewards=[[0, 0, 0, 1.0], [0, 0, 0, 0]],
        old_values=[[0, 0.2, 0.5, 0.6], [0, 0.1, 7.0, 7.0]],
        final_values=[0.0, 0.0],
    )
    plain, white = gae()(batch), (gae() | credit.whitened())(batch)
    assert torch.equal(plain.returns, white.returns)
    chosen = white.advantages[batch.mask]
    assert float(chosen.mean()) == pytest.approx(0, abs=1e-12)
    assert float((chosen**2).mean()) == pytest.approx(1)
    # (.756, .48, .4, −.1): mean .384, variance (.372² + .096² + .016² + .484²)/4 = .095528
    assert chosen.tolist() == pytest.approx([x / math.sqrt(0.095528) for x in (0.372, 0.096, 0.016, -0.484)], rel=1e-6)
    assert not white.advantages[~batch.mask].any()


# ---- losses


def value_and_gradient(loss, values, batch):
    now = torch.tensor([[0.0, *values]], dtype=F64, requires_grad=True)
    made, seen = loss.terms(Outputs(torch.zeros_like(now), values=now), batch)
    (slope,) = torch.autograd.grad(made.sum(), now)
    return made[0, 1:].tolist(), slope[0, 1:].tolist(), {name: x[0, 1:].tolist() for name, x in seen.items()}


def test_the_value_clip_by_hand():
    # V = .9, V_old = .5, R = 1, clip .2: V_clip = .7, ½ max(.1², .3²) = .045, and no gradient: it came far enough
    batch = rows([[False, True]], old_values=[[0, 0.5]], returns=[[0, 1.0]])
    value, slope, seen = value_and_gradient(value_loss(0.2), [0.9], batch)
    assert (value, slope) == (pytest.approx([0.045]), [0.0])
    assert seen["critic/clip_fraction"] == [1.0]
    assert seen["critic/error"] == pytest.approx([0.01])
    # V = .1 went the wrong way: V_clip = .3, ½ max(.9², .7²) = .405, gradient V − R = −.9
    value, slope, seen = value_and_gradient(value_loss(0.2), [0.1], batch)
    assert (value, slope) == (pytest.approx([0.405]), pytest.approx([-0.9]))
    assert seen["critic/clip_fraction"] == [0.0]
    # V = .6 is within: ½ · .4² = .08, gradient −.4
    value, slope, seen = value_and_gradient(value_loss(0.2), [0.6], batch)
    assert (value, slope) == (pytest.approx([0.08]), pytest.approx([-0.4]))
    assert (seen["critic/value"], seen["critic/return"]) == ([0.6], [1.0])


def test_without_a_clip_the_value_loss_is_half_the_square():
    batch = rows([[False, True, True]], returns=[[0, 1.0, -1.0]])
    loss = value_loss(None)
    value, slope, seen = value_and_gradient(loss, [0.9, 1.0], batch)
    assert (value, slope) == (pytest.approx([0.005, 2.0]), pytest.approx([-0.1, 2.0]))
    assert loss.needs == {"returns"}
    assert loss.requires == {"values"}
    assert "critic/clip_fraction" not in seen


def test_a_value_loss_without_a_critic_and_impossible_clips():
    with pytest.raises(ConfigError, match="give the policy a critic"):
        value_loss(None)(Outputs(torch.zeros(1, 2)), rows([[False, True]], returns=[[0, 1.0]]))
    with pytest.raises(ValueError, match="clip=0"):
        value_loss(0.0)


def test_the_entropy_bonus_raises_entropy():
    # Σ −H with weights 1: a step down the gradient of −.01 · H goes up in H
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=F64, requires_grad=True)
    logprobs = torch.log_softmax(logits, 0)
    entropy = -(logprobs.exp() * logprobs).sum()
    made = (0.01 * entropy_bonus())(Outputs(torch.zeros(1, 1), entropy.view(1, 1)), rows([[False]]))
    assert made.item() == pytest.approx(-0.01 * entropy.item())
    (slope,) = torch.autograd.grad(made.sum(), logits)
    after = torch.log_softmax(logits.detach() - 10 * slope, 0)
    assert float(-(after.exp() * after).sum()) > entropy.item()
    with pytest.raises(ConfigError, match="without entropy"):
        entropy_bonus()(Outputs(torch.zeros(1, 1)), rows([[False]]))
    assert (0 * entropy_bonus()).absent


# ---- rewards and KL


def test_whitened_rewards_keep_their_mean():
    # chosen token rewards 0, 0, 1, −1, 2 (the padded column does not count): mean .4, variance (.16·2 + .36 + 1.96 +
    # 2.56)/5 = 1.04; r → (r − .4)/√1.04 + .4
    batch = rows([[False, True, True, True], [False, True, True, False]], token_rewards=[[0, 0, 0, 1], [0, -1, 2, 0]])
    given = whitened_rewards(eps=0.0)(batch)
    white = [(r - 0.4) / math.sqrt(1.04) + 0.4 for r in (0, 0, 1, -1, 2)]
    assert given.token_rewards[batch.mask].tolist() == pytest.approx(white)
    assert float(given.token_rewards[batch.mask].mean()) == pytest.approx(0.4)
    assert given.rewards.tolist() == pytest.approx([sum(white[:3]), sum(white[3:])])
    assert not given.token_rewards[~batch.mask].any()
    shifted = whitened_rewards(shift_mean=True, eps=0.0)(batch)
    assert float(shifted.token_rewards[batch.mask].mean()) == pytest.approx(0, abs=1e-12)
    equal = rows([[False, True], [False, True]], token_rewards=[[0, 0.1], [0, 0.1]])
    assert whitened_rewards()(equal) is equal


def test_the_controller_by_hand():
    # KL .12 at target .06: 1 beyond it, clamped to .2; 256 rows of 10 000: β = .2 · (1 + .2 · .0256) = .201024
    controller = KLController(0.2, 0.06, 1e4)
    controller.follow(0.12, 256)
    assert controller.beta == pytest.approx(0.201024)
    # KL 0: −1, clamped to −.2: β falls by the same share;  KL 5 % above: 1 + .05 · .0256
    controller = KLController(0.2, 0.06, 1e4)
    controller.follow(0.0, 256)
    assert controller.beta == pytest.approx(0.198976)
    controller = KLController(0.2, 0.06, 1e4)
    controller.follow(0.063, 256)
    assert controller.beta == pytest.approx(0.2 * (1 + 0.05 * 0.0256))
    with pytest.raises(ValueError, match="target=0"):
        adaptive_kl_in_reward(0.1, target=0.0)


def drifted(gap):
    """Two rows of 2 and 1 tokens at log-ratio `gap` each: KL of a completion (2 gap + gap) / 2 = 1.5 gap."""
    mask = [[False, True, True], [False, True, False]]
    old = [[0, gap, gap], [0, gap, 5.0]]
    return rows(mask, token_rewards=[[0, 0, 1.0], [0, 0, 0]], old_logprobs=old, ref_logprobs=[[0.0] * 3] * 2)


def test_a_batch_is_charged_the_coefficient_that_was_there_before_it():
    adaptive = adaptive_kl_in_reward(beta=0.1, target=0.3, horizon=10)
    first = adaptive(drifted(0.4))  # KL .6 = twice the target: β ← .1 · (1 + .2 · 2/10) = .104
    assert first.token_rewards[0].tolist() == pytest.approx([0, -0.04, 0.96])
    assert first.rewards.tolist() == pytest.approx([0.92, -0.04])
    second = adaptive(drifted(0.4))
    assert second.token_rewards[1].tolist() == pytest.approx([0, -0.0416, 0])
    (memory,) = adaptive.memory
    assert memory.state() == {"beta": pytest.approx(0.1 * 1.04**2)}
    assert memory_measures(adaptive_algorithm()) == {"kl/beta": 0.1}


def adaptive_algorithm():
    given = adaptive_kl_in_reward(beta=0.1, target=0.3, horizon=10) | credit.discounted()
    return Algorithm("a", everything(), given, losses.policy_gradient(), token_mean(), sgd())


def test_a_resumed_coefficient_goes_on_where_it_was():
    whole, first, second = adaptive_algorithm(), adaptive_algorithm(), adaptive_algorithm()
    for gap in (0.4, 0.1, 0.05):
        wanted = whole.credit(drifted(gap)).advantages
    for gap in (0.4, 0.1):
        first.credit(drifted(gap))
    assert first.state() != second.state()
    second.restore(first.state())
    assert torch.equal(second.credit(drifted(0.05)).advantages, wanted)
    assert second.state() == whole.state()


def test_explained_variance_by_hand():
    # returns 1, 0, 1, 0: variance ¼. Values .75, .25, .75, .25 leave ±.25: variance 1/16, so 1 − ¼ = ¾
    mask = [[False, True, True, True, True, False]]
    batch = rows(mask, returns=[[9, 1.0, 0, 1, 0, 9]], old_values=[[9, 0.75, 0.25, 0.75, 0.25, 9]])
    assert batch_measures(batch) == pytest.approx({"critic/explained_variance": 0.75})
    constant = batch.with_(old_values=torch.full_like(batch.returns, 0.5))
    assert batch_measures(constant)["critic/explained_variance"] == pytest.approx(0.0)
    assert batch_measures(batch.with_(returns=torch.ones_like(batch.returns))) == {}  # nothing to explain
    # k3 at log-ratio .4: e^−.4 + .4 − 1 = .070320
    assert batch_measures(drifted(0.4)) == pytest.approx({"kl/reference": math.exp(-0.4) - 0.6})


# ---- a warm-up


def actor_and_critic(batches):
    """A toy policy of two tokens with a critic, and PPO that warms it up for so many batches."""
    chat = ToyChat(["a", "b"])
    model = ToyModel(len(chat.words), 2, seed=1)
    learner = ToyLearner(model, critic=ToyCritic(model))
    return learner, ppo(beta=0.0, epochs=2, critic_warmup=batches)


def written(learner):
    """Two completions of two tokens, of which the second was right; credited as the critic sees them now."""
    rollouts = [Rollout("t", (1, *c), (False, True, True), (0.0, -1.0, -1.0), Finish.STOP) for c in ((1, 0), (2, 0))]
    batch = pack([Example(rollout, float(i), 0, i) for i, rollout in enumerate(rollouts)])
    return batch.with_(old_logprobs=learner.logprobs(batch), **values(learner, batch))


def test_in_a_warm_up_only_the_critic_learns():
    learner, algorithm = actor_and_critic(2)
    policy, critic = (learner.weights()[name] for name in ("table", "critic.table"))
    moved = []
    for _ in range(4):
        before = policy.detach().clone(), critic.detach().clone()
        metrics = algorithm.update(learner, algorithm.credit(written(learner)), algorithm)
        moved.append([not torch.equal(a, b) for a, b in zip(before, (policy, critic), strict=True)])
        assert ("policy/ratio" in metrics) is moved[-1][0]
        assert "critic/error" in metrics
    assert moved == [[False, True], [False, True], [True, True], [True, True]]
    assert learner.version == 8  # two epochs a batch, as ever


def test_a_warm_up_is_remembered():
    learner, algorithm = actor_and_critic(2)
    algorithm.update(learner, algorithm.credit(written(learner)), algorithm)
    assert algorithm.state() == [{"batches": 1}]
    _, resumed = actor_and_critic(2)
    resumed.restore(algorithm.state())
    policy = learner.weights()["table"].detach().clone()
    for still in (True, False):
        resumed.update(learner, resumed.credit(written(learner)), resumed)
        assert torch.equal(learner.weights()["table"], policy) is still


def test_no_warm_up_is_the_update_itself():
    update = sgd(2)
    assert warmed_up(update, value_loss(), 0) is update
    assert warmed_up(update, 0 * value_loss(), 3) is update
    assert warmed_up(update, value_loss(), 3).steps == update.steps
    with pytest.raises(ValueError, match="batches=-1"):
        warmed_up(update, value_loss(), -1)
