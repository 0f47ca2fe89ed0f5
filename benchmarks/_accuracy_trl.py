"""TRL's side of the benchmark `accuracy`: GRPOTrainer for so many steps, weights kept now and then, one JSON line.

    python _accuracy_trl.py --model DIR --data problems.jsonl --out DIR --learning-rate 5e-4

Needs trl, not maieutic. The algorithm's settings are TRL's defaults (β = 0, one iteration, clip 0.2, "dapo", rewards
divided by the group's deviation, temperature 1, gradients of length 1 at most, no weight decay), but for a constant
rate and problems in the order of the file. Weights are float32; with --precision bfloat16 it computes under autocast,
as is TRL's default. The rest is what makes it fast on a CPU: no gradient checkpointing,
nothing logged or saved by the trainer, all completions of a step generated at once, no second forward for old log-probs
(which goes with one iteration), rows of `--micro` in an update's micro-batches (16, 32, 64 and 128 took the same time).
Completions come from transformers' `generate`: with its continuous batching, which TRL offers too, a step took five
times as long on a CPU.
"""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from _accuracy_both import Record, parse, read_problems, right  # isort: skip  (its clock starts here)

import tempfile
from pathlib import Path
from statistics import fmean

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


class Steps(TrainerCallback):
    """Tells the record of each step; `judge` is the reward function, called once a step."""

    def __init__(self, given):
        self.given, self.record, self.last = given, None, (0.0, 0.0)

    def judge(self, completions, answer, completion_ids, **_):
        """The reward that both programs give."""
        rewards = [float(right(text, expected)) for text, expected in zip(completions, answer)]
        self.last = (fmean(rewards), fmean(len(ids) for ids in completion_ids))
        return rewards

    def on_train_begin(self, *_, model=None, **__):
        """Start the clock."""

        def save(path: Path) -> None:
            save_file({name: weight.detach().contiguous() for name, weight in model.named_parameters()}, path)

        self.record = Record(self.given, save)

    def on_step_end(self, *_, **__):
        """Write the step down."""
        self.record.step(*self.last)


def settings(given, out):
    """GRPOConfig's."""
    batch = given.prompts * given.generations
    micro = min(given.micro, batch)
    return GRPOConfig(
        output_dir=out,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        num_generations=given.generations,
        max_completion_length=given.max_completion,
        max_steps=given.steps,
        shuffle_dataset=False,
        learning_rate=given.learning_rate,
        lr_scheduler_type="constant",
        seed=given.seed,
        gradient_checkpointing=False,
        bf16=given.precision == "bfloat16",
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def main():
    """Run the steps and print the line."""
    given = parse(__doc__, None)
    torch.set_num_threads(given.threads)
    rows = read_problems(given.data)
    steps = Steps(given)
    with tempfile.TemporaryDirectory() as out:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32),
            reward_funcs=steps.judge,
            processing_class=AutoTokenizer.from_pretrained(given.model),
            train_dataset=Dataset.from_list(rows),
            callbacks=[steps],
            args=settings(given, out),
        )
        trainer.train()
    print(steps.record.told())


if __name__ == "__main__":
    main()
