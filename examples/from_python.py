"""GRPO from Python: a small model from scratch learns one-step word problems from demonstrations, then from rewards.

python examples/from_python.py [--steps N]
"""

import argparse
import tempfile

from maieutic import (
    LocalBackend,
    Optimiser,
    Recorded,
    Roller,
    Sampled,
    SmallModel,
    answer_reward,
    arithmetic,
    build_small,
    grpo,
    load_causal,
    sft,
)
from maieutic.tasks import arithmetic_vocabulary
from maieutic.train import train

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=300, help="of fine-tuning; a tenth as many of GRPO")
steps = parser.parse_args().steps

tasks = arithmetic(difficulty=1, demonstrations="imperfect")
folder = build_small(tempfile.mkdtemp() + "/model", SmallModel(), vocabulary=arithmetic_vocabulary(1))
model = load_causal(folder, dtype="float32")
backend = LocalBackend(threads=1)

policy = backend.policy(model, Optimiser("muon", learning_rate=5e-3))
for step in train(Recorded(tasks, policy.chat, batch=32), policy, sft(), steps=steps):
    if step.index % 20 == 0:
        print(f"sft  {step.index:4d}  loss {step.metrics['loss']:.3f}")

policy = backend.policy(model, Optimiser(learning_rate=5e-4))
roller = Roller(policy.sampler, policy.chat, answer_reward(tasks.verifier), max_completion_length=24)
for step in train(Sampled(tasks, roller, prompts=16, num_generations=8), policy, grpo(), steps=max(1, steps // 10)):
    print(f"grpo {step.index:4d}  reward {step.metrics['reward/mean']:.3f}")
