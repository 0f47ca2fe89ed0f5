"""What both programs of the benchmark `accuracy` start from, and what they are examined by.

    prepare(recipe, folder)                    folder/start, a Hugging Face folder; made once
    write_problems(folder, …)                  folder/practice-SEED.jsonl and folder/held-out.jsonl
    Examiner(folder, …)(weights)               pass@1 of a program's weights on the held-out problems

The start is fine-tuned by maieutic on the work of a demonstrator who misreads three kinds of sentence, so that it is
right about one time in three and reinforcement learning has something to mend (`maieutic.tasks.arithmetic`).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from benchmarks._accuracy_side import judge, tasks_of
from maieutic.algorithms import sft
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.errors import ModelError
from maieutic.evaluate import evaluate_sync
from maieutic.models.causal import load_causal, save_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.sources import Recorded
from maieutic.tasks.arithmetic import arithmetic
from maieutic.tasks.taskset import Tasks
from maieutic.train import train
from maieutic.types import Message, Task

#: Demonstrations that the tokenizer is made from, at most.
CORPUS = 2000


@dataclass(frozen=True)
class Recipe:
    """A Qwen2 of this shape, fine-tuned once through `demonstrations`, misread with probability `misreading`.

    Problems have from the first to the second number of `events`. Muon at `rate` for the hidden matrices, AdamW at a
    quarter of it elsewhere, falling to 5 %.
    """

    layers: int = 3
    width: int = 192
    heads: int = 6
    kv_heads: int = 2
    mlp: int = 512
    context: int = 256
    events: tuple[int, int] = (3, 5)
    demonstrations: int = 8000
    rows: int = 32
    rate: float = 0.02
    misreading: float = 0.8


def tasks(split: str, events: tuple[int, int], indices: range, misreading: float = 0.0) -> list[Task]:
    """Problems as both programs ask them: one piece of text that ends with a line break."""
    drawn = arithmetic(
        split, size=indices.stop, events=events, misreading=misreading,
        demonstrations="imperfect" if misreading else "perfect",
    )  # fmt: skip
    return [replace(drawn[i], prompt=(Message("user", f"{drawn[i].prompt[0].content}\n"),)) for i in indices]


def write_problems(folder: Path, recipe: Recipe, seeds: Sequence[int], practice: int, held_out: int) -> None:
    """`practice` problems for each seed, of which no two share one and none was demonstrated; `held_out` of the test
    split, the same for all."""
    files = {
        f"practice-{seed}": ("train", range(first := recipe.demonstrations + at * practice, first + practice))
        for at, seed in enumerate(seeds)
    }
    for name, (split, indices) in {**files, "held-out": ("test", range(held_out))}.items():
        rows = [{"prompt": t.prompt[0].content, "answer": t.answer} for t in tasks(split, recipe.events, indices)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def prepare(recipe: Recipe, folder: Path, threads: int) -> Path:
    """The start in `folder`: found there where it was made by the same recipe, else made."""
    made = folder / "start"
    told = json.dumps(asdict(recipe), indent=1)
    note = made / "recipe.json"
    if note.exists() and note.read_text(encoding="utf-8") == told:
        return made
    temporary = folder / ".tmp-start"
    for old in (made, temporary):
        shutil.rmtree(old, ignore_errors=True)
    _make(recipe, temporary, threads)
    (temporary / "recipe.json").write_text(told, encoding="utf-8")
    os.rename(temporary, made)
    return made


def _make(recipe: Recipe, folder: Path, threads: int) -> None:
    shown = tasks("train", recipe.events, range(recipe.demonstrations), recipe.misreading)
    corpus = [f"{task.prompt[0].content}{task.meta['solution']}" for task in shown[:CORPUS]]
    small = SmallModel(
        "qwen2",
        layers=recipe.layers,
        width=recipe.width,
        heads=recipe.heads,
        kv_heads=recipe.kv_heads,
        mlp=recipe.mlp,
        context=recipe.context,
    )
    build_small(folder, small, corpus, tokenizer="bpe", vocabulary_size=512)
    model = load_causal(folder, template="plain", dtype="float32", device="cpu")
    theirs = AutoTokenizer.from_pretrained(folder)
    for task in shown[:50]:
        text = task.prompt[0].content
        if tuple(theirs(text)["input_ids"]) != model.chat.prompt(task.prompt):
            raise ModelError(f"{folder}: transformers and maieutic cut {text!r} into different tokens")
    steps = len(shown) // recipe.rows
    optimiser = Optimiser(
        "muon",
        learning_rate=recipe.rate / 4,
        muon_learning_rate=recipe.rate,
        schedule="cosine",
        final_fraction=0.05,
        total_steps=steps,
        warmup_steps=min(5, steps // 2),
    )
    policy = LocalBackend(threads=threads).policy(model, optimiser)
    for step in train(Recorded(shown, policy.chat, batch=recipe.rows), policy, sft(), steps=steps):
        if (step.index + 1) % 25 == 0:
            loss = step.metrics["loss"]
            print(f"accuracy: start, step {step.index + 1} of {steps}, loss {loss:.2f}", file=sys.stderr)
    save_causal(model, folder)


@dataclass(frozen=True)
class Examiner:
    """pass@1 of weights: the share of right ones among `samples` completions of each held-out problem at temperature 1.

    Whatever program the weights are from, they are sampled from by maieutic, with the same random numbers.
    """

    start: Path
    problems: Path
    samples: int
    length: int
    threads: int

    def __call__(self, weights: Path | None = None) -> float:
        """Of the weights in this file; None: of the start's."""
        model = load_causal(self.start, template="plain", dtype="float32", device="cpu")
        if weights is not None:
            given, own = load_file(weights), dict(model.module.named_parameters())
            if given.keys() != own.keys():
                raise ModelError(f"{weights}: got weights {sorted(given)[:3]}…; expected {sorted(own)[:3]}…")
            with torch.no_grad():
                for name, weight in own.items():
                    weight.copy_(given[name])
        sampler = LocalBackend(threads=self.threads).policy(model, Optimiser()).sampler
        asked = Tasks("held out", tasks_of(self.problems), judge, None)
        found = evaluate_sync(sampler, model.chat, asked, max_tokens=self.length, samples=self.samples, greedy=False)
        return float(found.values("pass@1").mean())
