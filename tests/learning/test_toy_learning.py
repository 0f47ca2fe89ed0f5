"""Every row of the table learns the toy sums: from chance (about 1 %) to a stated share, in seconds."""

from __future__ import annotations

import pytest

from maieutic.algorithms import (
    ALGORITHMS,
    cispo,
    dapo,
    distil,
    dpo,
    dr_grpo,
    expert_iteration,
    gdpo,
    gkd,
    grpo,
    gspo,
    gspo_token,
    ipo,
    lite_ppo,
    on_policy_distillation,
    orpo,
    ppo,
    rcrl,
    reinforce,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rejection_sampling,
    rest_em,
    rloo,
    rpo,
    sapo,
    sft,
    simpo,
    star,
    trpo,
)
from maieutic.backends.toy import ToyChat, ToyScorer, ToySums, toy_policy
from maieutic.core.corrections import truncated
from maieutic.core.distillation import reverse_kl
from maieutic.core.kl import corrected_k3, k2
from maieutic.core.select import sampled_share
from maieutic.environments.conditioned import asked_with
from maieutic.rollout import Roller
from maieutic.sources import Mixed, Recorded, Sampled
from maieutic.train import train
from maieutic.types import Score

ROWS = {
    "sft": (sft(), 0.95),
    "rejection_sampling": (rejection_sampling(), 0.9),
    "star": (star(steps=10, growth=1.05), 0.9),
    "rest_em": (rest_em(epochs=20), 0.9),
    "expert_iteration": (expert_iteration(epochs=20), 0.9),
    "rcrl": (rcrl(epochs=5), 0.9),
    "rcrl, as many good as bad": (rcrl(ratio=(1, 1), epochs=20), 0.9),
    "reinforce": (reinforce(), 0.9),
    "rloo": (rloo(), 0.9),
    "rloo with KL": (rloo(beta=0.01), 0.9),
    "trpo": (trpo(max_kl=0.05, damping=1e-3), 0.9),
    "grpo": (grpo(), 0.9),
    "grpo with KL": (grpo(beta=0.02), 0.9),
    "grpo with reverse KL, 2 epochs": (grpo(beta=0.02, kl=k2, epochs=2, minibatches=2), 0.9),
    "grpo, all its options": (grpo(0.02, kl=corrected_k3, scale="batch", correction=truncated(), entropy=1e-3), 0.9),
    "grpo with the ratio to the reference": (grpo(ratio_anchor="ref"), 0.05),  # the clip keeps it near the reference
    "reinforce_plus_plus": (reinforce_plus_plus(), 0.9),
    "reinforce_plus_plus_baseline": (reinforce_plus_plus_baseline(), 0.5),  # see its docstring: lengths differ here
    "lite_ppo": (lite_ppo(), 0.9),
    "gdpo": (gdpo(), 0.9),
    "gspo_token": (gspo_token(minibatches=4), 0.9),
    "sapo": (sapo(epochs=2), 0.9),
    "dr_grpo": (dr_grpo(max_completion_length=3), 0.9),
    "dapo": (dapo(), 0.9),
    "gspo": (gspo(minibatches=4), 0.9),
    "cispo": (cispo(epochs=2), 0.9),
    "ppo": (ppo(), 0.9),
    "ppo with an adaptive KL, a warm-up and returns as targets": (
        ppo(beta=0.01, kl_target=3.0, critic_warmup=2, lam=1.0, value_lam=1.0, entropy=0.01, minibatches=2),
        0.9,
    ),
    "orpo": (orpo(), 0.9),
    "dpo": (dpo(), 0.9),
    "dpo of every pair, 2 epochs": (dpo(pairs="all", epochs=2, minibatches=2), 0.9),
    "ipo": (ipo(), 0.6),  # it stops at a margin of 1/(2β) = 5 nats
    "simpo": (simpo(), 0.75),  # and this one slows down beyond γ/β
    "rpo": (rpo(), 0.9),
    "distil": (distil(), 0.95),
    "distil, reverse KL and likelihood": (distil(reverse_kl, nll_coef=0.1), 0.95),
    "gkd": (gkd(), 0.9),
    "gkd on its own samples": (gkd(lmbda=1.0, beta=0.9, scaled=True), 0.9),
    "gkd on what is shown": (gkd(lmbda=0.0, beta=0.1), 0.9),
    "on_policy_distillation": (on_policy_distillation(), 0.85),
    "on_policy_distillation with the task": (on_policy_distillation(0.5, discount=1.0, task_reward=True), 0.9),
}


#: Words that only rows with labels have in their vocabulary.
LABELS = ("\n", "[GOOD]", "[BAD]")


async def exact(task, rollouts):
    """1 for the right digits, 0 otherwise."""
    right = [r.text == task.answer for r in rollouts]
    return [Score(float(found), correct=found, parts={"digits": float(found)}) for found in right]


def taught(chat, tasks):
    """A teacher that was shown the sums until it knew them, and keeps 4 of 12 words."""
    master = toy_policy(chat, length=3, buckets=64, seed=2)
    list(train(Recorded(tasks, chat, batch=16), master, sft(), steps=20))
    return ToyScorer(master.learner.model, top_k=4)


@pytest.mark.parametrize("name", ROWS)
def test_every_row_learns_the_toy_sums(name):
    algorithm, threshold = ROWS[name]
    tasks = ToySums(limit=4)
    chat = ToyChat([*tasks.vocabulary, *(LABELS if algorithm.select.labels else ())])
    critic = "values" in algorithm.requires
    rate = 0.1 if critic else 0.3  # with a critic each batch makes several steps
    policy = toy_policy(chat, length=3, buckets=64, learning_rate=rate, seed=1, critic=critic)
    reference = ToyScorer(policy.learner.model) if "ref_logprobs" in algorithm.asks else None
    if algorithm.select.labels:  # asked for good answers from the first step on, and in the end
        algorithm, policy = algorithm.bind(chat), asked_with(policy, algorithm.select.labels)
    roller = Roller(policy.sampler, policy.chat, exact, max_completion_length=3, seed=7)
    teacher = taught(chat, tasks) if any(column.startswith("teacher") for column in algorithm.asks) else None
    shown, share = Recorded(tasks, chat, batch=16), sampled_share(algorithm.select)
    sampled = Sampled(tasks, roller, prompts=16, num_generations=16, until=algorithm.select.keeps, max_refill=1)
    source, steps = (sampled if share else shown), (40 if share else 20)
    if 0 < share < 1:
        source = Mixed(sampled, shown, share)
    mismatches = [0.0]
    for step in train(source, policy, algorithm, steps=steps, reference=reference, teacher=teacher):
        if source.samples:
            mismatches.append(step.metrics.get("policy/sampler_mismatch_nats", 0.0))
    final = Sampled(tasks, roller, prompts=16, num_generations=16, seed=99).next()
    correct = [s.correct for g in final for s in g.scores]
    assert sum(correct) / len(correct) >= threshold
    assert max(mismatches) < 1e-5
    assert (len(mismatches) > 1) is algorithm.samples


def test_the_table_has_no_row_without_a_learning_test():
    assert {algorithm.name for algorithm, _ in ROWS.values()} == set(ALGORITHMS)
