"""Losses and gradients on the same batch, ours against TRL's, per loss type: relative differences.

    python -m venv /tmp/trl && /tmp/trl/bin/pip install trl==1.16.0 transformers torch datasets
    python -m benchmarks.trl_parity --trl-python /tmp/trl/bin/python [--quick] [--json FILE]

A small random Llama in float32 and two groups of four completions, with old and reference log-probs that differ from
the present ones, so that ratios are clipped and KL terms are not 0. TRL's trainers run in their own environment
(`_trl_side.py`), on the same weights, rows, advantages and log-probs; loss and whole gradient are compared.
The advantages are given: how each library makes them from rewards is in docs/trl-parity.md, which holds this table.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks._results import write_json
from benchmarks.step import TRL_PYTHON
from maieutic.backends.local import LocalLearner, Optimiser
from maieutic.core.kl import corrected_k3, k3
from maieutic.core.losses import (
    clipped_sequence_ratio,
    clipped_surrogate,
    clipped_weight,
    kl_to_reference,
    nll,
    policy_gradient,
    soft_gate,
)
from maieutic.core.parts import Loss, Weigh
from maieutic.core.preference import chosen_nll, dpo, ipo, odds_ratio
from maieutic.core.weights import constant_length, pair_mean, sequence_mean, sequence_sum, token_mean
from maieutic.errors import ConfigError
from maieutic.models.causal import load_causal
from maieutic.models.small import tiny_folder
from maieutic.types import Batch

TOLERANCE = 1e-4
"""Of relative differences in float32."""

WIDTH = 16
"""The longest completion that is allowed; rows are shorter."""


@dataclass(frozen=True)
class Case:
    """A loss of ours beside a trainer of TRL's. `same` names what must agree; `why` says what does not, and why."""

    name: str
    loss: Loss
    weigh: Weigh
    trainer: str
    settings: dict[str, Any] = field(default_factory=dict)
    same: tuple[str, ...] = ("loss", "gradient")
    why: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    """Inputs of TRL's that are to be taken from another column."""
    less: str = ""
    """A case of TRL's, not compared itself, whose loss and gradient are subtracted."""


def cases() -> list[Case]:
    """Every loss type that both have."""
    clip = {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0}
    surrogate = clipped_surrogate(0.2, 0.28)
    return [
        Case("sft", nll(), token_mean(), "sft", {"completion_only_loss": True}),
        Case("grpo", surrogate, sequence_mean(), "grpo", {"loss_type": "grpo", **clip}),
        Case(
            "grpo_kl", surrogate + 0.04 * kl_to_reference(k3), sequence_mean(), "grpo",
            {"loss_type": "grpo", **clip, "beta": 0.04, "use_bias_correction_kl": False},
        ),
        Case("dr_grpo", surrogate, constant_length(WIDTH), "grpo", {"loss_type": "dr_grpo", **clip}),
        Case(
            "grpo_corrected_kl", surrogate + 0.04 * kl_to_reference(corrected_k3), sequence_mean(), "grpo",
            {"loss_type": "grpo", **clip, "beta": 0.04, "use_bias_correction_kl": True},
        ),
        Case(
            "grpo_dual_clip", clipped_surrogate(0.2, 0.28, dual_clip=1.3), sequence_mean(), "grpo",
            {"loss_type": "grpo", **clip, "delta": 1.3},
        ),
        Case("sapo", soft_gate(1.0, 1.05), sequence_mean(), "grpo", {"loss_type": "sapo", "beta": 0.0}),
        Case("dapo", surrogate, token_mean(), "grpo", {"loss_type": "dapo", **clip}),
        Case(
            "gspo", clipped_sequence_ratio(0.03, 0.04), sequence_mean(), "grpo",
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04,
             "beta": 0.0},
        ),
        Case("cispo", clipped_weight(1.2), token_mean(), "grpo", {"loss_type": "cispo", **clip, "epsilon_high": 1.2}),
        Case(
            "rloo", policy_gradient(), sequence_sum(), "rloo", {"epsilon": 0.2, "epsilon_high": 0.28, "beta": 0.0},
            same=(),
            why="TRL multiplies by the ratio of whole sequences to an older policy and clips it; ours is the paper's "
            "REINFORCE form, for rows of the present policy, whose gradient is TRL's at ratio 1 (next row)",
        ),
        Case(
            "rloo_at_ratio_one", policy_gradient(), sequence_sum(), "rloo", {"beta": 0.0}, same=("gradient",),
            why="the values differ because TRL's loss is −A·ρ and ours −A·log π; the gradients are the same",
            inputs={"old_logps": "present_logps"},
        ),
        *preference_cases(),
    ]  # fmt: skip


def preference_cases() -> list[Case]:
    """Losses of pairs."""
    orpo = chosen_nll() + 0.1 * odds_ratio()
    return [
        Case("dpo", dpo(0.1), pair_mean(), "dpo", {"beta": 0.1, "loss_type": ["sigmoid"]}),
        Case("ipo", ipo(0.1, average=True), pair_mean(), "dpo", {"beta": 0.1, "loss_type": ["ipo"]}),
        Case(
            "ipo_summed", ipo(0.1), pair_mean(), "dpo", {"beta": 0.1, "loss_type": ["ipo"]}, same=(),
            why="the paper's loss is of summed log-ratios, and so is our default; TRL divides by the completion's "
            "length, as our `average=True` does (row ipo)",
        ),
        Case(
            "orpo", orpo, pair_mean(), "orpo", {"beta": 0.1}, same=(),
            why="TRL's likelihood is a mean over all tokens of the batch, the prompts' too; ours is of completions, a "
            "mean for each row. The odds ratio is the same (next row)",
        ),
        Case(
            "orpo_odds_ratio", odds_ratio(), pair_mean(), "orpo", {"beta": 1.0}, same=("loss", "gradient"),
            less="orpo_likelihood",
            why="beta = 1 less beta = 0 on TRL's side, which leaves the odds ratio's term",
        ),
    ]  # fmt: skip


def batch_of(learner: LocalLearner) -> Batch:
    """Two groups of four rows, prompts of 3 and 6 tokens, completions of 2 to 9, an older policy, a reference."""
    draw = torch.Generator().manual_seed(5)
    prompts = [torch.randint(5, 32, (width,), generator=draw) for width in (3, 6)]
    rows = [torch.cat([p, torch.randint(5, 32, (n,), generator=draw)]) for p in prompts for n in (2, 9, 5, 3)]
    starts = [3] * 4 + [6] * 4
    width = max(map(len, rows))
    tokens = torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    place = torch.arange(width)[None]
    mask = (place >= torch.tensor(starts)[:, None]) & (place < lengths[:, None])
    zeros = torch.zeros(mask.shape)
    batch = Batch(
        tokens, mask, lengths, zeros, torch.tensor([1.0, 0, 0, 0, 0, 1, 1, 0]), zeros,
        torch.ones(8, dtype=torch.bool), torch.tensor([0] * 4 + [1] * 4), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3]),
    )  # fmt: skip
    now = learner.logprobs(batch)
    noise = [0.3 * torch.randn(mask.shape, generator=draw) * mask for _ in range(2)]
    advantages = torch.tensor([1.5, -0.5, -0.5, -0.5, -0.87, 0.87, 0.87, -0.87])[:, None] * mask
    return batch.with_(
        old_logprobs=now + noise[0],
        ref_logprobs=now + noise[1],
        advantages=advantages,
        pairs=torch.tensor([[0, 1], [2, 3], [5, 4], [6, 7]]),
    )


def trl_layout(batch: Batch, now: Tensor) -> dict[str, Tensor]:
    """The same rows as TRL's trainers hold them: prompts padded on the left, completions on the right."""
    starts = [int(row.to(torch.int8).argmax()) for row in batch.mask]
    widest = max(starts)
    completion = int((batch.lengths - torch.tensor(starts)).max())

    def completions(column: Tensor) -> Tensor:
        cut = [column[i, start : int(batch.lengths[i])] for i, start in enumerate(starts)]
        return torch.stack([torch.nn.functional.pad(row, (0, completion - len(row))) for row in cut])

    prompts = [batch.tokens[i, :start] for i, start in enumerate(starts)]
    present = torch.arange(batch.tokens.shape[1])[None] < batch.lengths[:, None]
    return {
        "prompt_ids": torch.stack([torch.nn.functional.pad(row, (widest - len(row), 0)) for row in prompts]),
        "prompt_mask": torch.stack([(torch.arange(widest) >= widest - start).long() for start in starts]),
        "completion_ids": completions(batch.tokens),
        "completion_mask": completions(batch.mask.long()),
        "advantages": (batch.advantages.sum(1) / batch.mask.sum(1)),
        "old_per_token_logps": completions(batch.old_logprobs),
        "ref_per_token_logps": completions(batch.ref_logprobs),
        "old_logps": (batch.old_logprobs * batch.mask).sum(1),
        "present_logps": (now * batch.mask).sum(1),
        "num_items_in_batch": batch.mask.sum(),
        "input_ids": batch.tokens,
        "attention_mask": present.long(),
        "chosen_tokens": batch.mask,
        "ref_logprobs": batch.ref_logprobs,
        "pairs": batch.pairs,
    }


def ours(case: Case, learner: LocalLearner, batch: Batch) -> tuple[float, dict[str, Tensor]]:
    """Our loss and gradient."""
    batch = batch.with_(weights=case.weigh(batch))
    learner.model.module.zero_grad()
    metrics = learner.accumulate(batch, case.loss.terms, needs=case.loss.needs)
    return metrics["loss"], {name: w.grad.clone() for name, w in learner.weights().items() if w.grad is not None}


def compare(trl_python: Path) -> dict[str, Any]:
    """Both sides on one batch: for each case the losses, and the length of the gradients' difference over theirs."""
    made: dict[str, Any] = {"machine": platform.machine(), "torch": torch.__version__, "cases": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = load_causal(tiny_folder("llama", folder), dtype="float32", device="cpu")
        (folder / "llama").rename(folder / "model")
        learner = LocalLearner(model, Optimiser())
        batch = batch_of(learner)
        torch.save(trl_layout(batch, learner.logprobs(batch)), folder / "batch.pt")
        listed = cases()
        asked = [{"name": c.name, "trainer": c.trainer, "settings": c.settings, "inputs": c.inputs} for c in listed]
        asked.append({"name": "orpo_likelihood", "trainer": "orpo", "settings": {"beta": 0.0}, "inputs": {}})
        (folder / "cases.json").write_text(json.dumps(asked))
        side = Path(__file__).with_name("_trl_side.py")
        run = subprocess.run([trl_python, side, folder], capture_output=True, text=True, check=False)
        if run.returncode:
            raise ConfigError(f"TRL's side failed; expected a Python with trl: {trl_python}\n{run.stderr[-3000:]}")
        theirs = json.loads((folder / "losses.json").read_text())
        made |= theirs.pop("versions")
        for case in listed:
            gradients = load_file(folder / "gradients" / f"{case.name}.safetensors")
            said = theirs[case.name]
            if case.less:
                less = load_file(folder / "gradients" / f"{case.less}.safetensors")
                gradients = {name: gradient - less[name] for name, gradient in gradients.items()}
                said -= theirs[case.less]
            loss, own = ours(case, learner, batch)
            made["cases"][case.name] = {
                "ours": loss,
                "trl": said,
                "loss": abs(loss - said) / max(abs(said), 1e-12),
                "gradient": _distance(own, gradients),
                "same": list(case.same),
                "why": case.why,
            }
    return made


def _distance(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    if own.keys() != theirs.keys():
        raise ConfigError(f"the gradients are of different weights: {sorted(own.keys() ^ theirs.keys())}")
    flat = [torch.cat([side[name].flatten().double() for name in sorted(own)]) for side in (own, theirs)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def table(made: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| loss | ours | TRL | relative difference of the loss | of the gradient |", "|---|---|---|---|---|"]
    for name, row in made["cases"].items():
        told = [f"{row[what]:.1e}" + ("" if what in row["same"] else " (meant)") for what in ("loss", "gradient")]
        lines.append(f"| {name} | {row['ours']:.6f} | {row['trl']:.6f} | {' | '.join(told)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; exit with 1 when a loss that should be the same is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", type=Path, default=TRL_PYTHON, help="a Python with trl (.venv-trl/bin/python)")
    parser.add_argument("--quick", action="store_true", help="the same: all of it takes seconds")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    if not given.trl_python.exists():
        raise ConfigError(
            f"got --trl-python {given.trl_python}, which does not exist; expected the Python of an environment with "
            "trl (`make bench-trl` builds .venv-trl)"
        )
    made = compare(given.trl_python)
    if given.json:
        write_json(given.json, made)
    print(f"trl {made['trl']}, torch {made['torch']}, {made['machine']}, float32\n")
    print(table(made))
    wrong = [n for n, row in made["cases"].items() if any(row[what] > TOLERANCE for what in row["same"])]
    for name, row in made["cases"].items():
        if row["why"]:
            print(f"\n{name}: {row['why']}.")
    if wrong:
        print(f"\ndiffer and should not: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
