"""Curves of every row of the table on the toy sums, kept as text: a change of behaviour has to show itself here.

When a change is meant, write the curves anew and look at the difference before committing it:

    MAIEUTIC_WRITE_GOLDEN=1 python -m pytest tests/golden
    git diff tests/golden

One file a row: its parts in the header, then a line for each of 20 steps, 6 significant digits. A curve may differ by
1e-4 (other processors and versions of torch round otherwise); what was sampled is part of it, so a difference in one
token shows at once.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from maieutic.algorithms import ALGORITHMS, make_algorithm
from maieutic.backends.toy import ToyChat, ToyCritic, ToyLearner, ToyModel, ToySampler, ToyScorer, ToySums
from maieutic.core.select import sampled_share
from maieutic.environments.conditioned import asked_with
from maieutic.protocols import Policy
from maieutic.rollout import Roller
from maieutic.sources import Mixed, Recorded, Sampled
from maieutic.train import train
from maieutic.types import Score

CURVES = Path(__file__).parent / "curves"
STEPS = 20
TOLERANCE = 1e-4
COLUMNS = ("loss", "reward/mean", "policy/entropy", "completions/mean_length")

#: Beside each row with its defaults: variants that run through other parts. Name of the file → row and options.
VARIANTS = {
    "rloo_kl_in_reward": ("rloo", {"beta": 0.05}),
    "grpo_kl_k3": ("grpo", {"beta": 0.04}),
    "grpo_kl_k2_epochs_minibatches": ("grpo", {"beta": 0.04, "kl": "k2", "epochs": 2, "minibatches": 2}),
    "ppo_adaptive_kl_warmup_entropy": (
        "ppo",
        {"kl_target": 1.0, "critic_warmup": 3, "entropy": 0.01, "lam": 0.5, "value_lam": 1.0, "minibatches": 2},
    ),
    "reinforce_discounted": ("reinforce", {"gamma": 0.8}),
    **{name: (name, {"epochs": 15}) for name in ("rejection_sampling", "rest_em", "expert_iteration")},
    "rcrl_mixed": ("rcrl", {"ratio": [2, 1], "threshold": 0.1, "epochs": 15}),
    "trpo": ("trpo", {"max_kl": 0.05, "damping": 1e-3}),  # with its own damping the small table hardly moves
    "gspo": ("gspo", {"epochs": 2}),  # with one optimiser step its ratio is 1, and it is grpo
    "gspo_token": ("gspo_token", {"epochs": 3}),  # with one advantage a row it is gspo, step by step
    "sapo": ("sapo", {"epochs": 2}),
    "grpo_corrected_k3_batch_entropy": (
        "grpo",
        {"beta": 0.04, "kl": "corrected_k3", "scale": "batch", "entropy": 0.01, "epochs": 2},
    ),
    # the mean reward tells more completions apart than right and wrong does, of which few are right at first
    **{name: (name, {"pairs": "best_vs_worst", "epochs": 2}) for name in ("orpo", "dpo", "ipo", "simpo", "rpo")},
    "dpo_of_every_pair": ("dpo", {"pairs": {"mode": "all", "cap": 3}, "minibatches": 2}),
    "distil_reverse_kl_temperature": ("distil", {"divergence": "reverse_kl", "temperature": 2.0, "renormalise": True}),
    "on_policy_distillation_task": ("on_policy_distillation", {"task_reward": True, "discount": 0.5, "coef": 0.1}),
    "grpo_ratio_to_reference": ("grpo", {"ratio_anchor": "ref", "scale": "none", "beta": 0.1}),
}
CASES = {**{name: (name, {}) for name in ALGORITHMS}, **VARIANTS}


#: Words that only rows with labels have in their vocabulary.
LABELS = ("\n", "[GOOD]", "[BAD]")


async def digits(task, rollouts):
    """1 for the right digits, a tenth for the right number of them."""
    scores = []
    for r in rollouts:
        parts = {"digits": float(r.text == task.answer), "length": 0.1 * (len(r.text) == len(task.answer))}
        scores.append(Score(sum(parts.values()), correct=r.text == task.answer, parts=parts))
    return scores


def curve(name):
    """The parts of a row, and its curve: a list of numbers for each step."""
    row, options = CASES[name]
    algorithm = make_algorithm(row, options, max_completion_length=3)
    tasks = ToySums(limit=3)
    chat = ToyChat([*tasks.vocabulary, *(LABELS if algorithm.select.labels else ())])
    # In float64: Adam makes a whole step of a gradient that is 0 up to rounding, and float32 rounds by processor.
    model = ToyModel(len(chat.words), length=3, buckets=32, seed=11, dtype=torch.float64)
    critic = ToyCritic(model) if "values" in algorithm.requires else None
    learner = ToyLearner(model, learning_rate=0.2, critic=critic)
    policy = Policy(learner, ToySampler(model, lambda: learner.version), chat)
    reference = ToyScorer(model)
    guide = ToyModel(len(chat.words), length=3, buckets=32, seed=12, dtype=torch.float64)
    guide.table.data *= 10  # a random teacher, with opinions
    teacher = ToyScorer(guide, top_k=4)
    if algorithm.select.labels:
        algorithm, policy = algorithm.bind(chat), asked_with(policy, algorithm.select.labels)
    if algorithm.samples:
        roller = Roller(policy.sampler, policy.chat, digits, max_completion_length=3, temperature=0.9, seed=11)
        until = algorithm.select.keeps
        source = Sampled(tasks, roller, prompts=6, num_generations=6, seed=11, until=until, max_refill=1)
    if (share := sampled_share(algorithm.select)) < 1:
        shown = Recorded(tasks, chat, batch=6, seed=11)
        source = Mixed(source, shown, share, seed=11) if share else shown
    parts = [algorithm.select, algorithm.credit, algorithm.loss, algorithm.weigh, algorithm.update]
    rows = []
    for step in train(source, policy, algorithm, steps=STEPS, reference=reference, teacher=teacher):
        rows.append([step.metrics.get(column, 0.0) for column in COLUMNS])  # a skipped step has no loss
    return " · ".join(map(str, parts)), rows


def written(parts, rows):
    """The text of a curve's file."""
    lines = [f"# {parts}", "# step " + " ".join(COLUMNS)]
    # A loss that is 0 up to rounding is written as 0: its noise is another one on every processor.
    lines += [f"{step:2d} " + " ".join(f"{round(x, 6) + 0.0:.6g}" for x in row) for step, row in enumerate(rows)]
    return "\n".join(lines) + "\n"


def read(text):
    """A curve from its file."""
    header, names, *lines = text.splitlines()
    assert names == "# step " + " ".join(COLUMNS)
    return header.removeprefix("# "), [[float(value) for value in line.split()[1:]] for line in lines]


@pytest.mark.parametrize("name", CASES)
def test_the_curve_is_the_one_that_was_kept(name):
    path = CURVES / f"{name}.txt"
    parts, rows = curve(name)
    if os.environ.get("MAIEUTIC_WRITE_GOLDEN") == "1":
        path.write_text(written(parts, rows), encoding="utf-8")
        pytest.fail(f"wrote {path.name}; look at the difference, then run the tests without MAIEUTIC_WRITE_GOLDEN")
    assert path.exists(), f"no curve of {name}; write it with MAIEUTIC_WRITE_GOLDEN=1"
    kept_parts, kept_rows = read(path.read_text(encoding="utf-8"))
    assert parts == kept_parts
    assert len(rows) == len(kept_rows) == STEPS
    for step, (found, kept) in enumerate(zip(rows, kept_rows, strict=True)):
        assert found == pytest.approx(kept, rel=TOLERANCE, abs=TOLERANCE), f"step {step}: {COLUMNS}"


def test_every_file_belongs_to_a_row():
    assert {path.stem for path in CURVES.glob("*.txt")} == set(CASES)


def test_curves_tell_the_rows_apart():
    """Two files with the same numbers would mean that a difference between two rows has no effect."""
    numbers = [tuple(map(tuple, read(p.read_text(encoding="utf-8"))[1])) for p in sorted(CURVES.glob("*.txt"))]
    assert len(set(numbers)) == len(CASES)
