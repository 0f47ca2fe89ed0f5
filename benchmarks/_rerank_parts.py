"""The parts of the study `rerank`: a start, solutions of it judged in two ways, two reward models, and an examination.

Every part writes to a temporary name and is renamed when it is whole, and is found there when it is asked for again:
the study may be stopped anywhere.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._results import made_once
from maieutic.algorithms import sft
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.local.judging import quick
from maieutic.config.reward_training import RewardTrainConfig
from maieutic.evaluate import Evaluation, evaluate_sync
from maieutic.loops import run_async
from maieutic.models.causal import load_causal, save_causal
from maieutic.models.reward_model import RewardModel, load_reward_model
from maieutic.models.small import SmallModel, build_small
from maieutic.protocols import Chat, Sampler
from maieutic.reward_models.data import written
from maieutic.reward_models.labelling import Labeller
from maieutic.run.durable import write_text
from maieutic.run.reward_training import train_reward_model
from maieutic.sources import Recorded
from maieutic.step_rewards import MonteCarlo
from maieutic.steps import Steps, split_steps
from maieutic.tasks.arithmetic import arithmetic, arithmetic_vocabulary
from maieutic.tasks.taskset import Tasks, take
from maieutic.train import train
from maieutic.types import Finish

DELIMITER = " ;"
#: Tasks that are sampled from at once.
CHUNK = 32


@dataclass(frozen=True)
class Sizes:
    """How much of everything: `demonstrations` for the start, `problems` with `samples` each for the outcome model,
    the first `labelled` of them with `solutions` each and `continuations` of every prefix for the process model, and
    `held_out` with `n` each to examine them."""

    demonstrations: int = 8000
    misreading: float = 0.8
    events: tuple[int, int] = (3, 5)
    problems: int = 1500
    samples: int = 8
    labelled: int = 1000
    solutions: int = 4
    continuations: int = 8
    held_out: int = 400
    n: int = 16
    most: int = 64
    outcome_epochs: float = 3.0
    process_epochs: float = 4.0


#: For a look: seconds.
QUICK = Sizes(
    demonstrations=2400, events=(1, 2), problems=200, samples=4, labelled=100, solutions=3, continuations=4,
    held_out=60, n=8, most=40, outcome_epochs=3.0, process_epochs=3.0,
)  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """One seed's folder, in which everything lies. `template`: of the start's conversations."""

    folder: Path
    seed: int
    sizes: Sizes
    template: str = "plain"

    def tasks(self, split: str, first: int, size: int, imperfect: bool = False) -> Tasks:
        """`size` problems of a split from the one numbered `first` on; those of each seed are others, but for the
        held-out ones."""
        made = arithmetic(
            split, size=first + size, events=self.sizes.events, seed=0 if split == "test" else self.seed,
            demonstrations="imperfect" if imperfect else "perfect", misreading=self.sizes.misreading,
        )  # fmt: skip
        return take(made, first, first + size)

    def policy(self) -> tuple[Sampler, Chat]:
        """The start, to be sampled from."""
        model = load_causal(self.folder / "start", template=self.template, dtype="float32", device="cpu")
        return LocalBackend(threads=1).sampler(model), model.chat

    def part(self, name: str, make: Callable[[Path], Any]) -> float:
        """The part of that name, made if it is not there yet; the processor seconds that it has taken."""
        return made_once(self.folder, name, make)


def make_start(seed: Seed, folder: Path) -> None:
    """A decoder of 0.4 M parameters, fine-tuned on the work of a demonstrator who misreads three kinds of sentence."""
    sizes = seed.sizes
    shown = seed.tasks("train", 0, sizes.demonstrations, imperfect=True)
    small = SmallModel(layers=2, width=128, context=160)
    build_small(folder, small, vocabulary=arithmetic_vocabulary(), seed=seed.seed)
    model = load_causal(folder, template="plain", dtype="float32", device="cpu")
    steps = sizes.demonstrations // 32
    optimiser = Optimiser(
        "muon", learning_rate=5e-3, muon_learning_rate=0.02, schedule="cosine", final_fraction=0.05, total_steps=steps
    )
    policy = LocalBackend(threads=1).policy(model, optimiser)
    for _ in train(Recorded(list(shown), policy.chat, batch=32, seed=seed.seed), policy, sft(), steps=steps):
        pass
    save_causal(model, folder)


def make_solutions(seed: Seed, file: Path) -> None:
    """Solutions of practice problems, each right or wrong by the rule: what the outcome model learns from."""
    sampler, chat = seed.policy()
    sizes = seed.sizes
    tasks = seed.tasks("train", sizes.demonstrations, sizes.problems)
    found = evaluate_sync(
        sampler, chat, tasks, max_tokens=sizes.most, samples=sizes.samples, greedy=False, seed=seed.seed,
        concurrency=CHUNK,
    )  # fmt: skip
    rows = [
        {"prompt": task.prompt[0].content, "completion": sample.text, "label": sample.correct}
        for task, problem in zip(tasks, found.problems, strict=True)
        for sample in problem.samples
        if sample.text and sample.finish is not Finish.LENGTH
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_labels(seed: Seed, folder: Path) -> None:
    """Solutions of the first of the same problems, their steps labelled by continuations; and what that has cost."""
    sampler, chat = seed.policy()
    sizes = seed.sizes
    tasks = seed.tasks("train", sizes.demonstrations, sizes.labelled)
    estimate = MonteCarlo(
        sampler, chat, tasks.verifier, sizes.continuations, max_completion_length=sizes.most, seed=seed.seed
    )
    labeller = Labeller(tasks, estimate, Steps(chat, DELIMITER), samples=sizes.solutions)

    async def chunk(first: int) -> list[list[Any]]:
        return await asyncio.gather(*(labeller(tasks[i]) for i in range(first, min(first + CHUNK, len(tasks)))))

    folder.mkdir()
    with (folder / "steps.jsonl").open("w", encoding="utf-8") as out:
        for first in range(0, len(tasks), CHUNK):
            for task, solutions in zip(tasks[first : first + CHUNK], run_async(chunk(first)), strict=True):
                out.writelines(json.dumps(each.to_row(task, hard=False)) + "\n" for each in solutions)
    write_text(folder / "cost.json", json.dumps(labeller.cost.to_dict()))


def make_model(seed: Seed, kind: str, data: Path, epochs: float, folder: Path) -> None:
    """A reward model on the start's body, by `maieutic reward train`'s own way."""
    optimiser: Any = {"learning_rate": 1e-3, "warmup_steps": 5, "schedule": "linear"}
    config = RewardTrainConfig(
        kind=kind, model=str(seed.folder / "start"), template=seed.template, data=[str(data)], delimiter=DELIMITER,
        epochs=epochs, prompts=16, optimiser=optimiser, threads=1, seed=seed.seed, checkpoint_every=10_000,
    )  # type: ignore[arg-type]  # fmt: skip
    train_reward_model(config, folder)


def make_examination(seed: Seed, file: Path) -> None:
    """n samples of each held-out problem."""
    sampler, chat = seed.policy()
    tasks = seed.tasks("test", 0, seed.sizes.held_out)
    found = evaluate_sync(
        sampler, chat, tasks, max_tokens=seed.sizes.most, samples=seed.sizes.n, seed=seed.seed, concurrency=CHUNK
    )
    file.write_text(found.to_json(), encoding="utf-8")


def make_scores(seed: Seed, file: Path) -> None:
    """Of each sample of the examination what the outcome model says, and what the process model says of its steps."""
    found = Evaluation.from_json((seed.folder / "examination").read_text(encoding="utf-8"))
    tasks = seed.tasks("test", 0, seed.sizes.held_out)
    models = {
        kind: quick(load_reward_model(seed.folder / kind, template=seed.template)) for kind in ("outcome", "process")
    }
    rows: dict[str, list[list[list[float]]]] = {kind: [] for kind in models}
    for task, problem in zip(tasks, found.problems, strict=True):
        texts = [(sample.text, sample.finish is not Finish.LENGTH) for sample in problem.samples]
        for kind, model in models.items():
            rows[kind].append(scored(model, task.prompt, texts))
    file.write_text(json.dumps(rows), encoding="utf-8")


def scored(model: RewardModel, prompt: Any, texts: Sequence[tuple[str, bool]]) -> list[list[float]]:
    """Of each completion its score, or those of its steps; 0 where nothing was written."""
    made = [written(model, prompt, split_steps(text, DELIMITER) or [""], finished) for text, finished in texts]
    asked = [each for each in made if each.completion]
    ends = [each.ends if model.kind == "process" else each.ends[-1:] for each in asked]
    said = iter(model.steps([each.prompt for each in asked], [each.completion for each in asked], ends))
    return [next(said) if each.completion else [0.0] for each in made]
