"""Wrong combinations are refused where they are put together, before anything is sampled, with the remedy."""

from __future__ import annotations

import pytest

from maieutic.algorithms import dpo, gkd, grpo, ppo, rloo, sft, trpo
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.toy import ToyChat, ToyLearner, ToyModel, ToySampler, ToySums, toy_policy
from maieutic.cli import main
from maieutic.core.kl import k3
from maieutic.errors import ConfigError
from maieutic.models.causal import load_causal
from maieutic.models.small import tiny_folder
from maieutic.protocols import Policy
from maieutic.rollout import Roller
from maieutic.sources import Recorded, Sampled
from maieutic.train import train
from maieutic.types import Score

TASKS = ToySums(limit=3)


async def exact(task, rollouts):
    return [Score(float(r.text == task.answer)) for r in rollouts]


def policy_of():
    return toy_policy(ToyChat(TASKS.vocabulary), length=3, buckets=16)


def source_of(policy, num_generations=4):
    roller = Roller(policy.sampler, policy.chat, exact, max_completion_length=3)
    return Sampled(TASKS, roller, prompts=2, num_generations=num_generations)


def refused(algorithm, said, policy=None, source=None, **models):
    """`train` raises at once, and nothing was sampled."""
    policy = policy or policy_of()
    source = source or source_of(policy)
    with pytest.raises(ConfigError, match=said):
        train(source, policy, algorithm, steps=1, **models)
    assert source.visits == 0


def test_ppo_without_a_critic():
    refused(ppo(beta=0.0), r"critic=ValueHead\(\)")


@pytest.mark.parametrize(
    "algorithm", [grpo(beta=0.04, kl=k3), rloo(beta=0.1), dpo()], ids=lambda algorithm: algorithm.name
)
def test_a_kl_to_a_reference_that_is_not_there(algorithm):
    refused(algorithm, "reads 'ref_logprobs'.*a reference model; give")


def test_distillation_without_a_teacher():
    refused(gkd(lmbda=1.0), "reads 'teacher_top.*a teacher; give")


@pytest.mark.parametrize("algorithm", [grpo(), rloo()], ids=lambda algorithm: algorithm.name)
def test_siblings_are_compared_and_there_is_one(algorithm):
    policy = policy_of()
    refused(algorithm, "got num_generations=1; expected at least 2", policy, source_of(policy, 1))


def test_a_loss_of_rewards_on_rows_that_nobody_sampled():
    policy = policy_of()
    recorded = Recorded(TASKS, policy.chat, batch=4)
    refused(grpo(), "no log-probs of it.*Give it `Sampled", policy, recorded)


def test_imitation_of_rows_that_were_sampled():
    refused(sft(), r"learns from what it is shown.*`Recorded\(…\)`")


class WithoutNeighbourhood(ToyLearner):
    """A learner that has log-probs and steps and nothing else."""

    capabilities = frozenset()


def test_trpo_on_a_learner_without_fisher_products():
    chat = ToyChat(TASKS.vocabulary)
    model = ToyModel(len(chat.words), 3, 16)
    refused(trpo(), "Fisher-vector products", Policy(WithoutNeighbourhood(model), ToySampler(model), chat))


def test_a_round_that_begins_at_the_base_on_a_learner_that_kept_none(tmp_path):
    from maieutic.algorithms import expert_iteration

    model = load_causal(tiny_folder("llama", tmp_path), device="cpu")
    policy = LocalBackend().policy(model, Optimiser())
    roller = Roller(policy.sampler, policy.chat, exact, max_completion_length=3)
    source = Sampled(TASKS, roller, prompts=2, num_generations=2)
    refused(expert_iteration(), "restart=True", policy, source)


STAGE = """
[model.small]
[tasks.train]
taskset = "arithmetic"
[[stages]]
algorithm = "{algorithm}"
steps = 1
{more}
"""


@pytest.mark.parametrize(
    ("algorithm", "more", "said"),
    [
        ("ppo", "", "[stages.critic]"),
        ("grpo", "critic = { kind = 'head' }", "critic"),
        ("grpo", "num_generations = 1", "expected at least 2"),
        ("gkd", "", "[stages.teacher]"),
        ("grpo", "teacher = { path = 'models/tiny' }", "teacher"),
        ("grpo", "reference = { kind = 'following' }", "reference"),
        ("grpo", "top_p = 0.9", "unknown key"),
        ("sft", "num_generations = 4", "does nothing"),
        ("trpo", "optimiser = { learning_rate = 1e-3 }", "learning_rate"),
        ("grpo", "restart_from = 'start'", "restart_from"),
        ("grpo", "hint = '{question} {answer}'", "hint"),
    ],
)
def test_from_a_config_too(algorithm, more, said, tmp_path, capsys):
    file = tmp_path / "wrong.toml"
    file.write_text(STAGE.format(algorithm=algorithm, more=more))
    assert main(["train", str(file), "--dry-run"]) == 2
    assert said in capsys.readouterr().err
