"""The parts of the study `search`: a start that plays the game of 24, its solutions with labels of steps, judges, arms.

Every part writes to a temporary name and is renamed when it is whole, and is found there when it is asked for again:
the study may be stopped anywhere.

A judge of steps says whether the target can still be made. It learns from the start's own solutions of practice
problems, whose steps are labelled in two ways:

    exact          1 while every step was a legal move and brute force finds a way from what is left, else 0
    continuations  the share of continuations from there that end right (Math-Shepherd); of the last step its verdict

Both learn from the same solutions. Exact labels cost no tokens, so a third judge, `exact, many`, learns from more.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._results import made_once
from maieutic.backends.local import LocalBackend
from maieutic.backends.local.judging import quick
from maieutic.config import parse_config
from maieutic.config.reward_training import RewardTrainConfig
from maieutic.core.judging import auc, pair_accuracy
from maieutic.evaluate import evaluate_sync
from maieutic.loops import run_async
from maieutic.models.causal import load_causal
from maieutic.models.reward_model import RewardModel, load_reward_model
from maieutic.protocols import Chat
from maieutic.reward_models.labelling import Labeller
from maieutic.run.durable import write_text
from maieutic.run.reward_training import train_reward_model
from maieutic.run.runner import resume_or_begin
from maieutic.run.searching import Asking, Method, search_all
from maieutic.search.judges import Judge, of_model
from maieutic.search.results import Solved
from maieutic.step_rewards import MonteCarlo
from maieutic.steps import Steps
from maieutic.tasks.countdown import Rules, after, finished, solvable, state
from maieutic.tasks.number_games import game_of_24
from maieutic.tasks.taskset import take
from maieutic.types import Finish

GAME: Mapping[str, Any] = {"whole": True, "largest_result": 100}
RULES = Rules(every=True, whole=True, limit=100)
DELIMITER = " ;"
#: Tokens of a solution (moves of 10, 9 and 8, and the end), of the longest move, and of a completion at most.
SOLUTION, STEP, MOST = 28, 10, 32
#: Times that a judge sees its solutions.
EPOCHS: Mapping[str, float] = {"continuations": 4.0, "exact": 4.0, "exact, many": 2.0}
#: Tasks that are sampled from at once.
CHUNK = 64
#: Judge → the file of labels that it learns from.
LABELS: Mapping[str, str] = {
    "continuations": "labels/continuations.jsonl", "exact": "labels/exact.jsonl", "exact, many": "practice.jsonl",
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much of everything: `demonstrations` for the start; `problems` with `solutions` each, and `continuations` of
    every prefix, for two judges; `practice` problems with `samples` each for the third; `held_out` problems to examine
    them, at `budgets` (in solutions). Numbers go up to `largest`."""

    demonstrations: int = 48_000
    problems: int = 1500
    solutions: int = 4
    continuations: int = 8
    practice: int = 4000
    samples: int = 6
    held_out: int = 200
    budgets: tuple[int, ...] = (1, 4, 8, 16)
    largest: int = 20


#: For a look: seconds, and an easier game, of which something is learned in these.
QUICK = Sizes(4800, 60, 4, 4, 200, 4, 12, (1, 4), 10)


@dataclass(frozen=True)
class Seed:
    """One seed's folder, in which everything lies."""

    folder: Path
    seed: int
    sizes: Sizes

    def part(self, name: str, make: Callable[[Path], Any]) -> float:
        """The part of that name, made if it is not there yet; the processor seconds that it has taken."""
        return made_once(self.folder, name, make)

    @property
    def game(self) -> dict[str, Any]:
        """What the taskset is told."""
        return {**GAME, "largest": self.sizes.largest}

    def asking(self, split: str = "test", limit: int | None = None) -> Asking:
        """The problems of a split, and the start to be asked; test problems are the same for all seeds."""
        model = load_causal(self.folder / "start", dtype="float32", device="cpu")
        tasks = game_of_24(split, **self.game, seed=self.seed if split == "train" else 0)
        sampler = LocalBackend(threads=1).sampler(model)
        return Asking(tasks, sampler, model.chat, MOST, 1.0, self.seed, limit)

    def model(self, labels: str) -> RewardModel:
        """The judge of steps that learned from these labels."""
        return quick(load_reward_model(self.folder / labels.replace(", ", "-")))


def make_start(seed: Seed, folder: Path) -> None:
    """A decoder of 0.4 M parameters that imitates solutions of practice problems, as `examples/countdown.toml` does."""
    optimiser = {
        "kind": "muon", "learning_rate": 5e-3, "muon_learning_rate": 0.02, "schedule": "cosine", "final_fraction": 0.05,
    }  # fmt: skip
    stage = {"name": "sft", "algorithm": "sft", "tasks": "train", "epochs": 1, "prompts": 64,
             "checkpoint_every": 10_000, "optimiser": optimiser}  # fmt: skip
    config = {
        "name": "start", "threads": 1, "seed": seed.seed,
        "model": {"small": {"layers": 2, "width": 128, "context": 96}},
        "tasks": {"train": {"taskset": "game_of_24", **seed.game, "size": seed.sizes.demonstrations}},
        "stages": [stage],
    }  # fmt: skip
    run = folder.with_name(f"{folder.name}-run")
    if run.exists():
        shutil.rmtree(run)
    made = resume_or_begin(parse_config(config), run, resume=False)
    shutil.copytree(made["model"], folder)
    shutil.rmtree(run)


def make_labels(seed: Seed, folder: Path) -> None:
    """Solutions of practice problems with both kinds of labels, and what they have cost."""
    asking, sizes = seed.asking("train"), seed.sizes
    chat, tasks = asking.chat, asking.tasks
    estimate = MonteCarlo(
        asking.sampler, chat, tasks.verifier, sizes.continuations, max_completion_length=MOST, seed=seed.seed
    )
    labeller = Labeller(tasks, estimate, Steps(chat, DELIMITER), samples=sizes.solutions)

    async def chunk(first: int) -> list[list[Any]]:
        return await asyncio.gather(*(labeller(tasks[i]) for i in range(first, min(first + CHUNK, sizes.problems))))

    folder.mkdir()
    with (
        (folder / "continuations.jsonl").open("w", encoding="utf-8") as sampled,
        (folder / "exact.jsonl").open("w", encoding="utf-8") as exact,
    ):
        for first in range(0, sizes.problems, CHUNK):
            for i, solutions in enumerate(run_async(chunk(first)), first):
                for row in (each.to_row(tasks[i], hard=False) for each in solutions):
                    sampled.write(json.dumps(row) + "\n")
                    labels = exact_labels(tasks[i].meta["numbers"], tasks[i].meta["target"], row["steps"])
                    exact.write(json.dumps({**row, "labels": labels}) + "\n")
    write_text(folder / "cost.json", json.dumps(labeller.cost.to_dict()))


def make_practice(seed: Seed, file: Path) -> None:
    """More solutions of practice problems, the different ones of each, with exact labels."""
    asking, sizes = seed.asking("train"), seed.sizes
    tasks = take(asking.tasks, 0, sizes.practice)
    found = evaluate_sync(
        asking.sampler, asking.chat, tasks, max_tokens=MOST, samples=sizes.samples, greedy=False,
        seed=f"{seed.seed}/practice", concurrency=CHUNK,
    )  # fmt: skip
    rows = []
    for task, problem in zip(tasks, found.problems, strict=True):
        asked = [{"role": message.role, "content": message.content} for message in task.prompt]
        for text, sample in {each.text: each for each in problem.samples if each.text}.items():
            finished = sample.finish is not Finish.LENGTH
            steps = written_steps(text) + [""] * (finished and text.endswith(DELIMITER))
            labels = exact_labels(task.meta["numbers"], task.meta["target"], steps, finished)
            rows.append(
                {"prompt": asked, "steps": steps, "labels": labels, "label": sample.correct, "finished": finished}
            )
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def exact_labels(numbers: Sequence[int], target: int, steps: Sequence[str], ended: bool = True) -> list[float]:
    """Of each step 1 where it and those before it are legal moves and the target can still be made, else 0. What says
    nothing is the end: 1 where the target is made (`ended` says so of the last step whatever it says).

    >>> exact_labels([2, 4, 6], 24, ["2 + 4 = 6 left 6 6 ;", " 6 + 6 = 12 left 12 ;", ""])
    [0.0, 0.0, 0.0]
    """
    now, labels = state(numbers), list[float]()
    able = True
    for number, step in enumerate(steps, 1):
        said = step.strip().removesuffix(";").strip()
        if said:
            left = after(said, now, RULES)
            able, now = able and left is not None, left or now
        over = (ended and number == len(steps)) or not said
        able = able and (finished(now, target, RULES) if over else solvable(now, target, RULES))
        labels.append(float(able))
    return labels


def perfect(chat: Chat) -> Judge:
    """A judge of beginnings that is never wrong: exact labels by brute force, at examination. A bound, no method."""

    def judge(prompt: tuple[int, ...], rows: Sequence[tuple[int, ...]]) -> list[float]:
        asked = re.search(r"make (\d+) from((?: \d+)+)", chat.decode(prompt))
        assert asked is not None, "a prompt of the game"
        numbers, target = [int(word) for word in asked[2].split()], int(asked[1])
        found = []
        for row in rows:
            steps = written_steps(chat.decode(row)) or [""]
            found.append(exact_labels(numbers, target, steps, row[-1] in chat.stop_ids)[-1])
        return found

    return judge


def make_judge(seed: Seed, labels: str, folder: Path) -> None:
    """A process model on the start's body, by `maieutic reward train`'s own way."""
    optimiser: Any = {"learning_rate": 1e-3, "warmup_steps": 5, "schedule": "linear"}
    config = RewardTrainConfig(
        kind="process", model=str(seed.folder / "start"), data=[str(seed.folder / LABELS[labels])],
        delimiter=DELIMITER, epochs=EPOCHS[labels], prompts=16, optimiser=optimiser, threads=1, seed=seed.seed,
        checkpoint_every=10_000,
    )  # type: ignore[call-arg]  # fmt: skip
    train_reward_model(config, folder)


#: Arm → (search, its options at a budget of so many solutions, who judges).
ARMS: Mapping[str, tuple[str, Callable[[int], dict[str, Any]], Sequence[str]]] = {
    "beam": ("beam", lambda n: {"beams": max(1, n // 4), "children": min(4, n)}, (*LABELS, "perfect")),
    "beam, product": (
        "beam",
        lambda n: {"beams": max(1, n // 4), "children": min(4, n), "aggregate": "prod"},
        ("exact, many",),
    ),
    "beams apart, vote": (
        "beam",
        lambda n: {"beams": max(1, n // 2), "children": min(2, n), "apart": True, "vote": True},
        ("continuations", "exact, many"),
    ),
    "particles": ("particles", lambda n: {"particles": n}, ("exact, many",)),
    "mcts": (
        "mcts",
        lambda n: {"simulations": 1000, "children": min(n, 4 if n < 16 else 6), "c": 0.1},
        ("exact, many", "perfect"),
    ),
    "mcts, widening": (
        "mcts",
        lambda n: {"simulations": 1000, "children": min(n, 2), "c": 0.1, "widen": 1.0},
        ("exact, many",),
    ),
    "depth first": (
        "thoughts_dfs",
        lambda n: {"generate": "sample", "evaluate": "judge", "children": min(8, n), "threshold": 0.3},
        ("exact, many", "perfect"),
    ),
}


def arms(judges: Mapping[str, Judge], size: int) -> Iterator[Method]:
    """The vote and every tree search by its judges, as they are at a budget of `size` solutions."""
    yield Method("vote", {}, "vote")
    for arm, (name, options, who) in ARMS.items():
        for each in who:
            given = {"delimiter": DELIMITER, "step_tokens": STEP, "values": judges[each], **options(size)}
            yield Method(name, given, f"{arm} by {each}")


def make_found(seed: Seed) -> tuple[dict[tuple[str, int], list[Solved]], float]:
    """Every arm at every budget on the held-out problems, (arm, solutions) → what was found; and processor seconds."""
    asking, noted = seed.asking("test", seed.sizes.held_out), seed.folder / "found.seconds"
    judges = {who: of_model(seed.model(who)) for who in LABELS} | {"perfect": perfect(asking.chat)}
    found = {}
    for size in seed.sizes.budgets:
        begun = time.process_time()
        made = search_all(asking, list(arms(judges, size)), [size * SOLUTION], seed.folder / "searches", {})
        found.update({(label, size): rows for (label, _), rows in made.items()})
        before = json.loads(noted.read_text()) if noted.exists() else {}
        spent = before.get(str(size), 0.0) + time.process_time() - begun  # an arm that is new takes its own time
        write_text(noted, json.dumps({**before, str(size): round(spent, 1)}))
    return found, sum(json.loads(noted.read_text()).values())


def make_scores(seed: Seed, rows: Sequence[Solved], file: Path) -> None:
    """What each judge says of the steps of each sample of the vote at one budget, `[N][n][K]`."""
    asking = seed.asking("test", seed.sizes.held_out)
    cut = Steps(asking.chat, DELIMITER)
    said = {}
    for labels in LABELS:
        model = seed.model(labels)
        said[labels] = [
            model.steps(
                [asking.chat.prompt(asking.tasks[i].prompt)] * len(row.tried),
                [each.tokens for each in row.tried],
                [cut.ends(each.tokens, [digit == "1" for digit in each.mask]) for each in row.tried],
            )
            for i, row in enumerate(rows)
        ]
    write_text(file, json.dumps(said))


def judged(seed: Seed, solved: Sequence[Solved], said: Mapping[str, Any]) -> dict[str, Any]:
    """Of each judge, by step, how well it tells right beginnings from wrong ones in the samples of a vote: the share
    that is right, AUC over all, and pairs within a problem. A beginning that comes up again counts once."""
    tasks = game_of_24("test", **seed.game)
    rows: dict[str, dict[int, dict[tuple[int, str], tuple[float, float]]]] = {labels: {} for labels in LABELS}
    for i, row in enumerate(solved):
        for number, each in enumerate(row.tried):
            steps = written_steps(each.text)
            truth = exact_labels(tasks[i].meta["numbers"], tasks[i].meta["target"], steps, ended=False)
            for labels in LABELS:
                for k, (right, score) in enumerate(zip(truth, said[labels][i][number], strict=False)):
                    rows[labels].setdefault(k, {})[i, "".join(steps[: k + 1])] = (score, right)
    return {
        labels: {str(k + 1): _judged(known) for k, known in sorted(each.items()) if k < 3}
        for labels, each in rows.items()
    }


def _judged(known: Mapping[tuple[int, str], tuple[float, float]]) -> dict[str, float]:
    scores, labels = zip(*known.values(), strict=True)
    problems = [i for i, _ in known]
    return {
        "share": sum(labels) / len(labels),
        "auc": auc(scores, labels),
        "pair_accuracy": pair_accuracy(scores, labels, problems),
    }


def written_steps(text: str) -> list[str]:
    """The moves of a text, each with its `;`, and what is left over."""
    return re.findall(r"[^;]+;?", text)


#: What is tried for the searches on validation problems.
TRIALS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "vote, temperature 1": ("vote", {}),
    "vote, temperature 0.7": ("vote", {"temperature": 0.7}),
    **{f"beam {b} × {c}": ("beam", {"beams": b, "children": c}) for b, c in ((1, 8), (2, 4), (4, 2))},
    **{
        f"mcts, {n} children, c = {c:g}": ("mcts", {"simulations": 1000, "children": n, "c": c})
        for n, c in ((4, 0.1), (4, 0.3), (4, 1.25), (8, 0.1))
    },
    **{
        f"depth first, {n} children, from {threshold:g}": (
            "thoughts_dfs", {"generate": "sample", "evaluate": "judge", "children": n, "threshold": threshold},
        )
        for n, threshold in ((4, 0.3), (8, 0.3), (8, 0.5))
    },
    **{
        f"mcts, widening from {n} children": ("mcts", {"simulations": 1000, "children": n, "c": 0.1, "widen": 1.0})
        for n in (1, 2, 3)
    },
}  # fmt: skip


def against_its_judge(size: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """What is tried of searches that do not keep the highest of all, each with all of a budget of `size` solutions."""
    vote = {"apart": True, "vote": True}
    return {
        **{
            f"beams apart, {size // n} × {n}, vote": ("beam", {"beams": size // n, "children": n, **vote})
            for n in (2, 4)
        },
        **{
            f"particles, uneven {uneven:g}": ("particles", {"particles": size, "uneven": uneven})
            for uneven in (0.0, 0.5, 1.0)
        },
    }


def trial(seed: Seed, size: int) -> str:
    """What the trials come to at a budget of `size` solutions: how many are right, in %, and tokens a problem."""
    tried = {**TRIALS, **against_its_judge(size)}
    asking = seed.asking("validation", seed.sizes.held_out // 2)
    judges = {"exact, many": of_model(seed.model("exact, many")), "perfect": perfect(asking.chat)}
    lines = ["| trial | judge | right, % | tokens |", "|---|---|---|---|"]
    for who, judge in judges.items():
        steps = {"delimiter": DELIMITER, "step_tokens": STEP, "values": judge}
        methods = [Method(n, o if n == "vote" else {**steps, **o}, label) for label, (n, o) in tried.items()]
        made = search_all(asking, methods, [size * SOLUTION])
        for (label, _), rows in made.items():
            right = sum(row.correct for row in rows) / len(rows)
            lines.append(
                f"| {label} | {who} | {100 * right:.1f} | {sum(row.cost.generated for row in rows) / len(rows):.0f} |"
            )
    return "\n".join(lines)
