"""The models and problems of the benchmark `step`: plain Hugging Face folders that both programs load.

    folder = prepare("4M", Path("runs/step/models"))        made once, kept, found again
    write_problems(512, Path("runs/step/problems.jsonl"))   {"prompt", "answer"} a line

A model is random at first, and is then fine-tuned by maieutic on worked solutions of the arithmetic tasks until it ends
its completions itself: what a policy in training does, in lengths that differ. Nothing else is done to it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from benchmarks._shapes import SIZES, Size
from maieutic.algorithms import sft
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.errors import ModelError
from maieutic.models.causal import load_causal, save_causal
from maieutic.models.progress import no_progress_bars
from maieutic.models.small import SmallModel, build_small
from maieutic.sources import Recorded
from maieutic.tasks.arithmetic import arithmetic
from maieutic.train import train
from maieutic.types import Message, Task

#: Problems that the tokenizer is made from.
CORPUS = 500

#: Positions of the models.
CONTEXT = 1024

#: Fewest and most events of a problem: solutions of 14 to about 130 tokens.
EVENTS = (3, 12)


@dataclass(frozen=True)
class Recipe:
    """A decoder of some size, and how it is fine-tuned: `steps` of `rows` demonstrations at `learning_rate`.

    The tokenizer of so small a language has some 430 tokens. The size's vocabulary is larger: the tokens beyond are as
    those of the padded vocabularies of real models, computed each time and hardly ever drawn.
    """

    size: Size
    steps: int
    rows: int
    learning_rate: float
    events: tuple[int, int] = EVENTS


#: Name → recipe.
RECIPES = {
    "4M": Recipe(SIZES["4M"], steps=160, rows=16, learning_rate=2e-3),
    "110M": Recipe(SIZES["110M"], steps=40, rows=8, learning_rate=6e-4),
}


def quick(recipe: Recipe) -> Recipe:
    """A recipe of the same shape that takes seconds: few steps on short solutions."""
    return replace(recipe, steps=20, rows=16, events=(1, 2))


def tasks(count: int, events: tuple[int, int], split: str = "train") -> list[Task]:
    """Problems as both programs ask them: one piece of text that ends with a line break."""
    drawn = arithmetic(split, size=count, difficulty=3, events=events)
    return [replace(drawn[i], prompt=(Message("user", drawn[i].prompt[0].content + "\n"),)) for i in range(count)]


def write_problems(count: int, path: Path, events: tuple[int, int] = EVENTS) -> Path:
    """The first `count` problems of those that no model is fine-tuned on."""
    lines = [
        json.dumps({"prompt": task.prompt[0].content, "answer": task.answer})
        for task in tasks(count, events, "validation")
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prepare(name: str, recipe: Recipe, folder: Path, threads: int | None = None) -> Path:
    """The model `name` in `folder`: found there when it was made by the same recipe, and made with `threads` otherwise
    (None: as many as torch has now)."""
    made = folder / name
    told = json.dumps(asdict(recipe), indent=1)
    note = made / "recipe.json"
    if note.exists() and note.read_text(encoding="utf-8") == told:
        return made
    print(f"step: making the {name} model in {made} ({recipe.steps} steps of fine-tuning)", file=sys.stderr)
    temporary = folder / f".tmp-{name}"
    for old in (made, temporary):
        shutil.rmtree(old, ignore_errors=True)
    _make(recipe, temporary, threads)
    (temporary / "recipe.json").write_text(told, encoding="utf-8")
    os.rename(temporary, made)
    return made


def _make(recipe: Recipe, folder: Path, threads: int | None) -> None:
    shown = tasks(recipe.steps * recipe.rows, recipe.events)
    corpus = [f"{task.prompt[0].content}{task.meta['solution']}" for task in tasks(CORPUS, EVENTS)]
    size = recipe.size
    small = SmallModel(
        size.kind,
        layers=size.layers,
        width=size.width,
        heads=size.heads,
        kv_heads=size.kv_heads,
        mlp=size.mlp,
        context=CONTEXT,
    )
    build_small(folder, small, corpus, tokenizer="bpe", vocabulary_size=size.vocabulary)
    model = load_causal(folder, template="plain", dtype="float32", device="cpu")
    _same_tokens(folder, model.tokenizer, shown)
    torch.manual_seed(0)
    with no_progress_bars():
        model.module.resize_token_embeddings(size.vocabulary, mean_resizing=False)  # type: ignore[operator]
    optimiser = Optimiser(
        learning_rate=recipe.learning_rate, total_steps=recipe.steps, warmup_steps=min(5, recipe.steps // 2)
    )
    policy = LocalBackend(threads=threads).policy(model, optimiser)
    source = Recorded(shown, policy.chat, batch=recipe.rows)
    for step in train(source, policy, sft(), steps=recipe.steps):
        if (step.index + 1) % 10 == 0:
            print(f"  step {step.index + 1} of {recipe.steps}, loss {step.metrics['loss']:.2f}", file=sys.stderr)
    save_causal(model, folder)


def _same_tokens(folder: Path, own: Any, shown: list[Task]) -> None:
    """Raise where transformers would read the folder's tokenizer otherwise than maieutic does."""
    theirs = AutoTokenizer.from_pretrained(folder)
    for task in shown[:50]:
        text = f"{task.prompt[0].content}{task.meta['solution']}"
        if theirs(text)["input_ids"] != own(text)["input_ids"]:
            raise ModelError(f"{folder}: transformers and maieutic cut {text!r} into different tokens")
