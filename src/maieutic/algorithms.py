"""The table: every algorithm is a value made of named parts, readable across.

    name                    which rows   credit                         loss                            tokens count
    -------------------------------------------------------------------------------------------------------------------
    sft                     shown        –                              nll                             token_mean
    distil                  shown        –                              forward_kl (to a teacher)       token_mean
    rejection_sampling      correct      –                              nll                             token_mean †
    star                    correct      –                              nll                             token_mean †
    rest_em                 correct      –                              nll                             token_mean †
    expert_iteration        correct      –                              nll                             token_mean †
    rcrl                    conditioned  –                              nll                             token_mean †
    reinforce               everything   discounted | whitened          policy_gradient                 token_mean
    reinforce_plus_plus     everything   KL | discounted | whitened     clipped_surrogate               token_mean
      …_baseline            everything   group_centered | whitened      clipped_surrogate + β·KL        token_mean
    rloo                    everything   KL | leave_one_out             policy_gradient                 sequence_sum
    ppo                     everything   KL | gae | whitened            clipped_surrogate + value_loss  token_mean
    trpo                    everything   group_centered                 surrogate                       token_mean ‡
    grpo                    everything   group_normalized               clipped_surrogate + β·KL        sequence_mean
    dr_grpo                 everything   group_centered                 clipped_surrogate               constant_length
    dapo                    informative  group_normalized               clipped_surrogate (low, high)   token_mean
    lite_ppo                everything   group_centered | batch_scaled  clipped_surrogate               token_mean
    gdpo                    everything   parts_normalized | batch_…     clipped_surrogate               sequence_mean
    gspo                    everything   group_normalized               clipped_sequence_ratio          sequence_mean
    gspo_token              everything   group_normalized               clipped_sequence_token_ratio    sequence_mean
    cispo                   everything   group_normalized               clipped_weight                  token_mean
    sapo                    everything   group_normalized               soft_gate                       sequence_mean
    orpo                    pairs        –                              chosen_nll + β·odds_ratio       pair_mean
    dpo                     pairs        –                              dpo (a reference)               pair_mean
    ipo                     pairs        –                              ipo (a reference)               pair_mean
    simpo                   pairs        –                              simpo                           pair_mean
    rpo                     pairs        –                              dpo + α·chosen_nll              pair_mean
    gkd                     mixed        –                              jensen_shannon (to a teacher)   token_mean
    on_policy_distillation  everything   reverse_kl_advantage           surrogate                       token_mean

shown: `demonstrations`, others `correct_only`, `conditioned_on_reward`; KL: `kl_in_reward`. The step is `sgd` (epochs ×
minibatches), at † `refit` (a round of many tasks, most of them from the base), at ‡ `trust_region`.
`maieutic algorithms` prints it from the values themselves. A new algorithm is one function here; a coefficient of 0
leaves its part out, and a model that only this part would have read is not asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from maieutic.choose import choose, named
from maieutic.core import preference
from maieutic.core.adaptive import adaptive_kl_in_reward
from maieutic.core.conditioned import RULES, conditioned_on_reward
from maieutic.core.corrections import CORRECTIONS, Correction, corrected
from maieutic.core.credit import (
    batch_normalized,
    batch_scaled,
    discounted,
    group_centered,
    group_normalized,
    kl_in_reward,
    leave_one_out,
    none,
    parts_normalized,
    whitened,
)
from maieutic.core.critic import entropy_bonus, gae, value_loss, warmed_up
from maieutic.core.distillation import DIVERGENCES, forward_kl, jensen_shannon, reverse_kl_advantage, watch_teacher
from maieutic.core.kl import ESTIMATORS, k2, k3
from maieutic.core.losses import (
    clipped_sequence_ratio,
    clipped_sequence_token_ratio,
    clipped_surrogate,
    clipped_weight,
    kl_to_reference,
    nll,
    policy_gradient,
    soft_gate,
    surrogate,
)
from maieutic.core.pairs import Pairing, pairing
from maieutic.core.parts import Algorithm, Credit, Loss
from maieutic.core.select import demonstrations, everything, informative, mixed
from maieutic.core.self_training import correct_only
from maieutic.core.stepwise import SUPERVISION
from maieutic.core.trust_region import trust_region
from maieutic.core.turns import kl_by_turn
from maieutic.core.update import refit, sgd
from maieutic.core.weights import constant_length, pair_mean, sequence_mean, sequence_sum, token_mean
from maieutic.errors import ConfigError
from maieutic.own_code import load_function
from maieutic.steps import Labels

Estimator = Callable[..., Tensor]

#: What GRPO's advantage is divided by (TRL's `scale_rewards`): the deviation of a group, of the batch, or nothing.
SCALES: Mapping[str, Credit] = {
    "group": group_normalized(),
    "batch": group_centered() | batch_scaled(),
    "none": group_centered(),
}


def sft() -> Algorithm:
    """Supervised fine-tuning (arXiv 2203.02155): maximum likelihood of demonstrations."""
    return Algorithm("sft", demonstrations(), none(), nll(), token_mean(), sgd())


def rejection_sampling(
    dedup: str = "equations", cap: int | None = None, epochs: int = 3, rows: int = 64, restart: bool = False
) -> Algorithm:
    """RFT (arXiv 2308.01825): fine-tune the policy (`restart`: its base) on its correct samples, one of each path."""
    update = refit(epochs, rows, restart)
    return Algorithm("rejection_sampling", correct_only(dedup, cap), none(), nll(), token_mean(), update)


def star(steps: int = 40, growth: float = 1.2, rows: int = 64, union: bool = False) -> Algorithm:
    """STaR (arXiv 2203.14465): what failed is tried again with the answer as a hint; each round begins at the base.

    A round learns what it sampled and what it rationalised; `union` adds what earlier rounds did."""
    update = refit(rows=rows, steps=steps, growth=growth)
    return Algorithm("star", correct_only(union=union, hints=True), none(), nll(), token_mean(), update)


def rest_em(cap: int = 10, epochs: int = 3, rows: int = 64) -> Algorithm:
    """ReST-EM (arXiv 2312.06585): each round begins at the base, on that round's samples alone, 10 a task at most,
    no text twice."""
    return Algorithm("rest_em", correct_only(cap=cap), none(), nll(), token_mean(), refit(epochs, rows))


def expert_iteration(dedup: str = "text", epochs: int = 3, rows: int = 64) -> Algorithm:
    """Expert iteration (arXiv 2403.04642): each round begins at the base, on all that was found so far (96 samples a
    task and round there). With one gradient step and every duplicate kept it is REINFORCE on rewards 0 and 1."""
    chosen, update = correct_only(dedup, union=True), refit(epochs, rows)
    return Algorithm("expert_iteration", chosen, none(), nll(), token_mean(), update)


def rcrl(
    labels: str = "outcome", threshold: float = 0.5, ratio: Sequence[float] | None = None,
    continuations: int | None = None, loss_on_labels: bool = False, good: str = "[GOOD]", bad: str = "[BAD]",
    delimiter: str = "\n", epochs: int = 3, rows: int = 64,
) -> Algorithm:  # fmt: skip
    """Return-conditioned RL (arXiv 2403.04642): each step is learned after a label that says how good it was, and the
    model is asked for good ones ever after, in later rounds too. There one round, on many samples of the best expert
    iteration policy; here a step is a round, on samples of the policy that it begins with."""
    rule, words = named("rule for labels", RULES, labels), Labels(good, bad, delimiter)
    chosen = conditioned_on_reward(rule, threshold, ratio, loss_on_labels, continuations, words)
    return Algorithm("rcrl", chosen, none(), nll(), token_mean(), refit(epochs, rows, restart=False))


def reinforce(gamma: float = 1.0, entropy: float = 0.0) -> Algorithm:
    """REINFORCE (Williams, 1992) with returns to go, whitened over the batch as the baseline."""
    give, loss = discounted(gamma) | whitened(), policy_gradient() + entropy * entropy_bonus()
    return Algorithm("reinforce", everything(), give, loss, token_mean(), sgd())


def reinforce_plus_plus(
    beta: float = 0.01, gamma: float = 1.0, epsilon: float = 0.2, correction: Correction | None = None,
    epochs: int = 1, minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """REINFORCE++ (arXiv 2501.03262): PPO without a critic, for one completion a task; returns to go of a reward with
    the KL in it, token by token, whitened over the batch. β as in OpenRLHF."""
    give = kl_in_reward(beta) | discounted(gamma) | whitened()
    loss = corrected(clipped_surrogate(epsilon), correction)
    return Algorithm("reinforce_plus_plus", everything(), give, loss, token_mean(), sgd(epochs, minibatches))


def reinforce_plus_plus_baseline(
    beta: float = 0.001, epsilon: float = 0.2, kl: Estimator = k2, correction: Correction | None = None,
    epochs: int = 1, minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """REINFORCE++ with baseline (arXiv 2501.03262): the group's mean taken off, then whitened over the batch; the KL is
    k2 in the loss. Whitened by tokens, as in verl and OpenRLHF: where right completions are longer than wrong ones, the
    mean over tokens is not 0 and moves rows without credit (not so in `lite_ppo`). β as in OpenRLHF's example."""
    loss = corrected(clipped_surrogate(epsilon), correction) + beta * kl_to_reference(kl)
    give, update = group_centered() | whitened(), sgd(epochs, minibatches)
    return Algorithm("reinforce_plus_plus_baseline", everything(), give, loss, token_mean(), update)


def rloo(beta: float = 0.0, correction: Correction | None = None) -> Algorithm:
    """RLOO (arXiv 2402.14740): the other siblings' mean is the baseline; a KL goes into the reward. With rewards that
    are checked β = 0 is our default; the paper, whose rewards are a model's, and TRL have one."""
    give, loss = kl_in_reward(beta) | leave_one_out(), corrected(policy_gradient(), correction)
    return Algorithm("rloo", everything(), give, loss, sequence_sum(), sgd())


def ppo(
    beta: float = 0.05, gamma: float = 1.0, lam: float = 0.95, value_lam: float | None = None,
    length_alpha: float | None = None, bootstrap: bool = True, epsilon: float = 0.2, dual_clip: float | None = None,
    value_clip: float | None = 0.2, value_coefficient: float = 0.1, entropy: float = 0.0,
    kl_target: float | None = None, critic_warmup: int = 0, correction: Correction | None = None, epochs: int = 4,
    minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """PPO (arXiv 1707.06347) with a critic and the KL in the reward (arXiv 1909.08593); defaults as TRL's. TRL and verl
    give a completion that was cut no value of its last state (`bootstrap=False`); verl and OpenRLHF keep the critic
    apart from the policy. For long reasoning: λ = 1 or `length_alpha=0.05`, `value_lam=1`, a `critic_warmup`."""
    penalty = kl_in_reward(beta) if kl_target is None else adaptive_kl_in_reward(beta, kl_target)
    critic = value_coefficient * value_loss(value_clip)
    actor = corrected(clipped_surrogate(epsilon, dual_clip=dual_clip), correction) + entropy * entropy_bonus()
    give = penalty | gae(gamma, lam, value_lam, length_alpha, bootstrap) | whitened()
    update = warmed_up(sgd(epochs, minibatches), critic, critic_warmup)
    return Algorithm("ppo", everything(), give, actor + critic, token_mean(), update)


def trpo(
    max_kl: float = 0.01, damping: float = 0.05, cg_iterations: int = 10, cg_tolerance: float = 1e-10,
    backtracks: int = 10, accept: float = 0.1, kl_slack: float = 1.5, kl_share: float = 0.2,
) -> Algorithm:  # fmt: skip
    """TRPO (arXiv 1502.05477): natural steps within a KL bound, no learning rate. It leaves advantages open: here the
    siblings are the baseline, and no critic needs a step of its own, which could move the policy out of the bound."""
    update = trust_region(max_kl, damping, cg_iterations, cg_tolerance, backtracks, accept, kl_slack, kl_share)
    return Algorithm("trpo", everything(), group_centered(), surrogate(), token_mean(), update)


def grpo(
    beta: float = 0.0, epsilon: float = 0.2, epsilon_high: float | None = None, kl: Estimator = k3,
    scale: str = "group", ratio_anchor: str = "old", correction: Correction | None = None, entropy: float = 0.0,
    epochs: int = 1, minibatches: int = 1, supervision: str = "outcome", beta_first_turn: float = 0.0,
) -> Algorithm:  # fmt: skip
    """GRPO (arXiv 2402.03300): ratio, advantage, clip, KL. The paper has β = 0.04 with k3 in the loss; TRL's default,
    and ours, is β = 0. With `ratio_anchor="ref"`, as in a course, it is not GRPO. `supervision="process"` (§4.1.3)
    compares the rewards of steps, "both" adds them. `beta_first_turn`: a KL in the first turn (arXiv 2409.12917)."""
    surrogate = corrected(clipped_surrogate(epsilon, epsilon_high, anchor=ratio_anchor), correction)
    loss = surrogate + kl_by_turn(kl, beta, beta_first_turn) + entropy * entropy_bonus()
    give = named("supervision", SUPERVISION, supervision)(named("scale", SCALES, scale))
    return Algorithm("grpo", everything(), give, loss, sequence_mean(), sgd(epochs, minibatches))


def dr_grpo(
    max_completion_length: int, epsilon: float = 0.2, correction: Correction | None = None, epochs: int = 1,
    minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """Dr. GRPO (arXiv 2503.20783): no division by the deviation, none by a row's length."""
    loss, weigh = corrected(clipped_surrogate(epsilon), correction), constant_length(max_completion_length)
    return Algorithm("dr_grpo", everything(), group_centered(), loss, weigh, sgd(epochs, minibatches))


def dapo(
    epsilon: float = 0.2, epsilon_high: float = 0.28, skip_truncated: bool = False,
    correction: Correction | None = None, epochs: int = 1, minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """DAPO (arXiv 2503.14476): clip-higher, token mean, only groups whose rewards differ (the source refills them). Its
    two answers to length are the reward `soft_overlong` and `skip_truncated`, which leaves out what the limit cut."""
    loss, select = corrected(clipped_surrogate(epsilon, epsilon_high), correction), informative(skip_truncated)
    return Algorithm("dapo", select, group_normalized(), loss, token_mean(), sgd(epochs, minibatches))


def lite_ppo(
    epsilon: float = 0.2, correction: Correction | None = None, epochs: int = 1, minibatches: int = 1
) -> Algorithm:
    """Lite PPO (arXiv 2508.08221): the group's mean, the batch's deviation, the token mean, and nothing else."""
    loss, give = corrected(clipped_surrogate(epsilon), correction), group_centered() | batch_scaled()
    return Algorithm("lite_ppo", everything(), give, loss, token_mean(), sgd(epochs, minibatches))


def gdpo(
    reward_weights: Mapping[str, float] | None = None, epsilon: float = 0.2, correction: Correction | None = None,
    epochs: int = 1, minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """GDPO (arXiv 2601.05242): GRPO for rewards of several parts, each normalised in its group and only then added."""
    give = parts_normalized(reward_weights) | batch_normalized()
    loss = corrected(clipped_surrogate(epsilon), correction)
    return Algorithm("gdpo", everything(), give, loss, sequence_mean(), sgd(epochs, minibatches))


def gspo(
    epsilon: float = 3e-4, epsilon_high: float = 4e-4, correction: Correction | None = None, epochs: int = 1,
    minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """GSPO (arXiv 2507.18071): one ratio for a whole completion, clipped tightly. The paper has four minibatches."""
    loss = corrected(clipped_sequence_ratio(epsilon, epsilon_high), correction)
    return Algorithm("gspo", everything(), group_normalized(), loss, sequence_mean(), sgd(epochs, minibatches))


def gspo_token(
    epsilon: float = 3e-4, epsilon_high: float = 4e-4, correction: Correction | None = None, epochs: int = 1,
    minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """GSPO-token (arXiv 2507.18071): GSPO's ratio and clip, with a gradient for each token's own advantage."""
    loss = corrected(clipped_sequence_token_ratio(epsilon, epsilon_high), correction)
    return Algorithm("gspo_token", everything(), group_normalized(), loss, sequence_mean(), sgd(epochs, minibatches))


def sapo(
    tau_positive: float = 1.0, tau_negative: float = 1.05, correction: Correction | None = None, epochs: int = 1,
    minibatches: int = 1,
) -> Algorithm:  # fmt: skip
    """SAPO (arXiv 2511.20347): a smooth gate on the ratio in the place of a clip, a little tighter for bad tokens."""
    loss = corrected(soft_gate(tau_positive, tau_negative), correction)
    return Algorithm("sapo", everything(), group_normalized(), loss, sequence_mean(), sgd(epochs, minibatches))


def cispo(cap: float = 5.0, correction: Correction | None = None, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """CISPO (arXiv 2506.13585): the importance weight is capped, and no token's gradient is clipped away."""
    loss = corrected(clipped_weight(cap), correction)
    return Algorithm("cispo", everything(), group_normalized(), loss, token_mean(), sgd(epochs, minibatches))


def orpo(beta: float = 0.1, pairs: Pairing = "one", epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """ORPO (arXiv 2403.07691): likelihood of the chosen side, and the odds ratio times β (the paper's λ); no reference.

    `pairs`, here and below: how they are formed of what was sampled (`core.pairs`), or "given" as data have them."""
    loss = preference.chosen_nll() + beta * preference.odds_ratio()
    return Algorithm("orpo", pairing(pairs), none(), loss, pair_mean(), sgd(epochs, minibatches))


def dpo(
    beta: float = 0.1, label_smoothing: float = 0.0, pairs: Pairing = "one", epochs: int = 1, minibatches: int = 1
) -> Algorithm:
    """DPO (arXiv 2305.18290): a classifier of preferences whose logit is β times the log-ratio to the reference."""
    loss = preference.dpo(beta, label_smoothing)
    return Algorithm("dpo", pairing(pairs), none(), loss, pair_mean(), sgd(epochs, minibatches))


def ipo(
    beta: float = 0.1, average: bool = False, pairs: Pairing = "one", epochs: int = 1, minibatches: int = 1
) -> Algorithm:
    """IPO (arXiv 2310.12036): log-ratios are drawn to a margin of 1/(2β), summed as in the paper; TRL averages them."""
    loss = preference.ipo(beta, average)
    return Algorithm("ipo", pairing(pairs), none(), loss, pair_mean(), sgd(epochs, minibatches))


def simpo(
    beta: float = 2.5, gamma: float = 1.375, pairs: Pairing = "one", epochs: int = 1, minibatches: int = 1
) -> Algorithm:
    """SimPO (arXiv 2405.14734): mean log-probs, a margin γ, no reference."""
    loss = preference.simpo(beta, gamma)
    return Algorithm("simpo", pairing(pairs), none(), loss, pair_mean(), sgd(epochs, minibatches))


def rpo(
    beta: float = 0.1, alpha: float = 1.0, pairs: Pairing = "one", epochs: int = 1, minibatches: int = 1
) -> Algorithm:
    """Iterative RPO (arXiv 2404.19733): DPO, and α times the chosen side's NLL/|y|, which keeps its likelihood up."""
    loss = preference.dpo(beta) + alpha * preference.chosen_nll()
    return Algorithm("rpo", pairing(pairs), none(), loss, pair_mean(), sgd(epochs, minibatches))


def distil(
    divergence: Callable[..., Loss] = forward_kl, temperature: float = 1.0, renormalise: bool = False,
    nll_coef: float = 0.0,
) -> Algorithm:  # fmt: skip
    """Distillation at every token of what is shown (arXiv 1503.02531, which adds `nll_coef` of the likelihood too).
    `temperature` is that of both softmaxes, on top of the rows' own, and asks for `renormalise`."""
    loss = divergence(temperature=temperature, renormalise=renormalise) + nll_coef * nll()
    return Algorithm("distil", demonstrations(), none(), loss, token_mean(), sgd())


def gkd(lmbda: float = 0.5, beta: float = 0.5, scaled: bool = False) -> Algorithm:
    """GKD (arXiv 2306.13649): a step's rows are the student's own with probability λ, else shown ones. λ and β as TRL
    spells and orients them: β = 0 forward KL, 1 reverse KL, with a jump at both ends that `scaled` closes."""
    return Algorithm("gkd", mixed(lmbda), none(), jensen_shannon(beta, scaled), token_mean(), sgd())


def on_policy_distillation(
    coef: float = 1.0, discount: float = 0.0, task_reward: bool = False, epochs: int = 1, minibatches: int = 1
) -> Algorithm:
    """On-policy distillation by policy gradient (Thinking Machines Lab, 2025): the teacher's log-prob of each token the
    student wrote, minus the student's, is its advantage; `task_reward` adds that of the task among its siblings."""
    give = (group_centered() if task_reward else none()) | reverse_kl_advantage(coef, discount, task_reward)
    loss, update = surrogate() + watch_teacher(), sgd(epochs, minibatches)
    return Algorithm("on_policy_distillation", everything(), give, loss, token_mean(), update)


ALGORITHMS: Mapping[str, Callable[..., Algorithm]] = {
    f.__name__: f
    for f in (
        sft, distil, rejection_sampling, star, rest_em, expert_iteration, rcrl, reinforce, reinforce_plus_plus,
        reinforce_plus_plus_baseline, rloo, ppo, trpo, grpo, dr_grpo, dapo, lite_ppo, gdpo, gspo, gspo_token, cispo,
        sapo, orpo, dpo, ipo, simpo, rpo, gkd, on_policy_distillation,
    )
}  # fmt: skip

#: Options that a config gives by name: what they are called, and what the names stand for.
NAMED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "kl": ("KL estimator", ESTIMATORS),
    "correction": ("correction", CORRECTIONS),
    "divergence": ("divergence", DIVERGENCES),
}


def make_algorithm(name: str, options: Mapping[str, Any], **defaults: Any) -> Algorithm:
    """The algorithm of that name: `make_algorithm("grpo", {"beta": 0.04, "kl": "k2"})`.

    `defaults` fill parameters that the options leave open (`max_completion_length`). Options in `NAMED` may be named.
    A name `path/to/file.py:function` is an algorithm of one's own. Raises UnknownName and ConfigError as `choose` does.
    """
    given = {
        option: named(*NAMED[option], value) if option in NAMED and isinstance(value, str) else value
        for option, value in options.items()
    }
    own = {name: load_function("algorithm", name)[0]} if ":" in name else {}
    made = choose("algorithm", {**ALGORITHMS, **own}, name, given, defaults)
    if not isinstance(made, Algorithm):
        raise ConfigError(f"algorithm {name!r}: got {made!r}; expected a function that returns an `Algorithm`")
    return made
