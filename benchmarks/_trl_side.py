"""The other side of `benchmarks.trl_parity`: TRL's trainers on a batch that was written down. Needs trl, not maieutic.

    python _trl_side.py FOLDER

FOLDER has model/ (a Hugging Face folder), batch.pt (tensors by name), cases.json (a list of {name, trainer, settings}).
For each case the trainer's `compute_loss` is asked and differentiated; losses.json and gradients/NAME.safetensors are
written beside them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
import trl
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

ROWS = 8


def common(out):
    """Arguments that every trainer takes: one step without a device, a log or a file."""
    return {
        "output_dir": out, "report_to": "none", "use_cpu": True, "bf16": False, "save_strategy": "no",
        "disable_tqdm": True, "gradient_checkpointing": False, "per_device_train_batch_size": ROWS,
    }  # fmt: skip


def grpo(model, tokenizer, settings, batch, out, kind=(GRPOTrainer, GRPOConfig)):
    """GRPO's or RLOO's trainer and the inputs of its loss."""
    made, config = kind
    trainer = made(
        model=model, reward_funcs=lambda completions, **_: [0.0] * len(completions), processing_class=tokenizer,
        train_dataset=Dataset.from_list([{"prompt": "what is 1"}] * ROWS),
        args=config(**common(out), num_generations=4, max_completion_length=16, **settings),
    )  # fmt: skip
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages", "ref_per_token_logps")
    inputs = {name: batch[name] for name in (*names, "old_per_token_logps", "old_logps", "num_items_in_batch")}
    return trainer, inputs


def rloo(model, tokenizer, settings, batch, out):
    """RLOO's trainer and inputs."""
    return grpo(model, tokenizer, settings, batch, out, (RLOOTrainer, RLOOConfig))


def sft(model, tokenizer, settings, batch, out):
    """SFT's trainer and inputs: labels on completion tokens only."""
    rows = Dataset.from_list([{"prompt": "what is", "completion": " 1"}] * ROWS)
    trainer = SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=rows, args=SFTConfig(**common(out), **settings)
    )
    labels = batch["input_ids"].masked_fill(~batch["chosen_tokens"], -100)
    return trainer, {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "labels": labels}


def pair_rows():
    """A preference data set that the constructors want to see; the loss gets its batch from the file."""
    return Dataset.from_list([{"prompt": "what is", "chosen": " 1", "rejected": " 2"}] * ROWS)


def dpo(model, tokenizer, settings, batch, out):
    """DPO's trainer and inputs: chosen rows first, then rejected ones, the reference's log-probs given."""
    trainer = DPOTrainer(
        model=model, ref_model=None, processing_class=tokenizer, train_dataset=pair_rows(),
        args=DPOConfig(**common(out), **settings),
    )  # fmt: skip
    trainer.precompute_ref_logps = True
    order = torch.cat([batch["pairs"][:, 0], batch["pairs"][:, 1]])
    sums = (batch["ref_logprobs"] * batch["chosen_tokens"]).sum(1)
    return trainer, {
        "input_ids": batch["input_ids"][order], "attention_mask": batch["attention_mask"][order],
        "completion_mask": batch["chosen_tokens"][order].long(),
        "ref_chosen_logps": sums[batch["pairs"][:, 0]], "ref_rejected_logps": sums[batch["pairs"][:, 1]],
    }  # fmt: skip


def orpo(model, tokenizer, settings, batch, out):
    """ORPO's trainer and inputs."""
    trainer = ORPOTrainer(
        model=model, processing_class=tokenizer, train_dataset=pair_rows(),
        args=ORPOConfig(**common(out), max_length=64, **settings),
    )  # fmt: skip
    inputs = {}
    for column, side in enumerate(("chosen", "rejected")):
        rows = batch["pairs"][:, column]
        inputs[f"{side}_input_ids"] = batch["input_ids"][rows]
        inputs[f"{side}_attention_mask"] = batch["attention_mask"][rows]
        inputs[f"{side}_labels"] = batch["input_ids"][rows].masked_fill(~batch["chosen_tokens"][rows], -100)
    return trainer, inputs


TRAINERS = {"grpo": grpo, "rloo": rloo, "sft": sft, "dpo": dpo, "orpo": orpo}


def main(folder):
    """Ask every case and write what was answered."""
    batch = torch.load(folder / "batch.pt", weights_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    (folder / "gradients").mkdir(exist_ok=True)
    losses = {"versions": {"trl": trl.__version__, "torch": torch.__version__}}
    for case in json.loads((folder / "cases.json").read_text()):
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        given = {**batch, **{name: batch[other] for name, other in case["inputs"].items()}}
        with tempfile.TemporaryDirectory() as out:
            trainer, inputs = TRAINERS[case["trainer"]](model, tokenizer, case["settings"], given, out)
            trainer.current_gradient_accumulation_steps = 1
            trainer.model.train()
            loss = trainer.compute_loss(trainer.model, dict(inputs))
            loss.backward()
        gradients = {n: p.grad.contiguous() for n, p in trainer.model.named_parameters() if p.grad is not None}
        save_file(gradients, folder / "gradients" / f"{case['name']}.safetensors")
        losses[case["name"]] = float(loss.detach())
    (folder / "losses.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
