"""The parts of the study `teaching`: models from nothing, teachers, explanations, students, and what they are worth.

Everything is an ordinary job: fine-tuning, `maieutic teach`, `maieutic distil`, `maieutic train`. Each part has a
folder in which it can be stopped and gone on with; what is complete is found there when it is asked for again.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maieutic.backends.local import LocalBackend
from maieutic.config import Config, parse_config, parse_table
from maieutic.config.teaching import DistilConfig, TeachConfig
from maieutic.core.teaching import Terms
from maieutic.evaluate import Evaluation, evaluate_sync
from maieutic.loops import run_async
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.rollout import Roller
from maieutic.run.distil import begin, collect, student_config
from maieutic.run.durable import write_text
from maieutic.run.runner import resume_or_begin
from maieutic.run.teaching import frozen_student, teacher_config
from maieutic.tasks.arithmetic import arithmetic, arithmetic_vocabulary
from maieutic.tasks.taskset import take
from maieutic.tasks.teaching import TAGS, lesson_of, teaching
from maieutic.teaching.reward import TeachingReward
from maieutic.types import Finish, Rollout, Task

TAG = TAGS["words"]
#: Imitation and practice, as small models from nothing learn (docs/results.md).
IMITATION: Mapping[str, Any] = {
    "kind": "muon", "learning_rate": 5e-3, "muon_learning_rate": 0.02, "schedule": "cosine", "final_fraction": 0.05,
    "weight_decay": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `lite`, `judge`, `shown`: demonstrations for the base, for the student that judges and
    for the teachers' warm-up; `practice` steps of the teacher's reinforcement learning and `cold` of the students';
    `explained` problems that are explained for students; `held_out` problems with `n` samples each."""

    misreading: float = 0.7
    events: tuple[int, int] = (2, 4)
    lite: int = 6000
    judge: int = 12000
    shown: int = 9600
    practice: int = 60
    prompts: int = 16
    group: int = 16
    explained: int = 2400
    epochs: float = 2.0
    candidates: int = 4
    cold: int = 30
    held_out: int = 400
    n: int = 8
    most: int = 48
    small: tuple[int, int] = (2, 64)
    rate: float = 5e-4


#: For a look: seconds.
QUICK = Sizes(
    events=(1, 2), lite=1600, judge=2400, shown=1600, practice=4, prompts=8, group=8, explained=320, epochs=2.0,
    candidates=2, cold=3, held_out=40, n=4, most=36, small=(1, 64),
)  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """One seed's folder, in which everything lies."""

    folder: Path
    seed: int
    sizes: Sizes

    def table(self, split: str, first: int, size: int) -> dict[str, Any]:
        """`size` problems of a split from number `first` on, as a table of a config. The held-out ones are the same for
        all seeds."""
        return {
            "taskset": "arithmetic", "split": split, "size": first + size, "start": first,
            "events": list(self.sizes.events), "seed": 0 if split == "test" else self.seed,
            "demonstrations": "imperfect", "misreading": self.sizes.misreading,
        }  # fmt: skip

    def tasks(self, split: str, first: int, size: int) -> Any:
        """The same as a taskset."""
        told = {k: v for k, v in self.table(split, first, size).items() if k not in ("taskset", "start")}
        return take(arithmetic(**told), first, first + size)

    @property
    def places(self) -> dict[str, tuple[int, int]]:
        """Which problems of the training split are whose: nobody practises on what somebody else has been shown."""
        s, found, first = self.sizes, {}, 0
        room = s.practice * s.prompts
        sizes = {"lite": s.lite, "judge": s.judge, "shown": s.shown, "practice": room, "explained": s.explained}
        for name, size in {**sizes, "cold": s.cold * 32}.items():
            found[name] = (first, size)
            first += size
        return found

    def whose(self, name: str) -> dict[str, Any]:
        """The table of these problems."""
        return self.table("train", *self.places[name])

    def path(self, name: str) -> Path:
        """Where a part lies."""
        return self.folder / name

    def run(self, name: str, config: Config) -> str:
        """A run of that name, carried out or gone on with; where its last model is."""
        folder = self.path(name)
        clock = time.process_time()
        summary = resume_or_begin(config, folder, resume=folder.exists())
        self.note(name, time.process_time() - clock)
        return str(summary["model"])

    def note(self, name: str, seconds: float) -> None:
        """Processor seconds of a part, summed over the attempts that it took."""
        file = self.folder / "seconds.json"
        noted = json.loads(file.read_text()) if file.is_file() else {}
        noted[name] = round(noted.get(name, 0.0) + seconds, 1)
        write_text(file, json.dumps(noted))

    def written(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` found, kept as JSON."""
        file = self.path(f"{name}.json")
        if not file.is_file():
            clock = time.process_time()
            write_text(file, json.dumps(make()))
            self.note(name, time.process_time() - clock)
        return json.loads(file.read_text())


def blank(seed: Seed, name: str, layers: int, width: int, number: int) -> str:
    """A model that knows nothing, with the words of problems and tags."""
    folder = seed.path(name)
    if not (folder / "config.json").is_file():
        vocabulary = [*arithmetic_vocabulary(), *TAG.words]
        build_small(folder, SmallModel(layers=layers, width=width, context=192), vocabulary=vocabulary, seed=number)
    return str(folder)


def shown_file(seed: Seed, name: str) -> str:
    """The work of a demonstrator who misreads, in the student's layout: his own answer follows his own chain."""
    file = seed.path(f"{name}.jsonl")
    if not file.is_file():
        rows = []
        for task in seed.tasks("train", *seed.places[name]):
            chain, _, answer = task.meta["solution"].rpartition("#")
            said = TAG.learned(chain, f"# {answer.strip()}")
            rows.append({"id": task.id, "prompt": task.prompt[0].content, "answer": task.answer, "solution": said})
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return str(file.resolve())


def imitation(seed: Seed, name: str, model: str) -> str:
    """A student that has been shown the demonstrator's work once."""
    stage = {"name": "sft", "algorithm": "sft", "epochs": 1.0, "prompts": 32, "optimiser": dict(IMITATION)}
    tasks = {"train": {"taskset": "file", "path": shown_file(seed, name)}}
    return seed.run(f"sft-{name}", parse_config(
        {"name": name, "seed": seed.seed, "threads": 1, "model": {"path": model}, "tasks": tasks,
         "stages": [{**stage, "checkpoint_every": 200}]}
    ))  # fmt: skip


LESSON = {"tags": "words", "solution": "# {answer}", "explanation": "solution", "until": "#"}


def teacher(seed: Seed, name: str, model: str, judge: str) -> tuple[str, str]:
    """A teacher before and after reinforcement learning, by `maieutic teach`'s own way."""
    s = seed.sizes
    told = {
        "name": name, "seed": seed.seed, "threads": 1, "model": {"path": model}, "student": judge, "lesson": LESSON,
        "tasks": {"shown": seed.whose("shown"), "train": seed.whose("practice")},
        "warmup": {"tasks": "shown", "epochs": 1.0, "prompts": 32, "warmup_share": 0.0, "optimiser": dict(IMITATION),
                   "checkpoint_every": 200},
        "rl": {"steps": s.practice, "prompts": s.prompts, "num_generations": s.group, "max_completion_length": s.most,
               "optimiser": {"learning_rate": s.rate, "warmup_steps": min(5, s.practice // 2), "schedule": "linear",
                             "final_fraction": 0.1}},
    }  # fmt: skip
    after = seed.run(name, teacher_config(parse_table(TeachConfig, told, name)))
    before = sorted((seed.path(name) / "checkpoints" / "warmup").iterdir())[-1] / "model"
    return str(before), after


def distilled(seed: Seed, name: str, teacher: str, model: str, judge: str | None = None) -> tuple[str, dict[str, Any]]:
    """A student of that teacher, by `maieutic distil`'s own way, and what it was shown."""
    s = seed.sizes
    ranked: dict[str, Any] = (
        {"rank": "reward", "student": judge, "candidates": s.candidates} if judge is not None else {}
    )
    told = {
        "name": name, "seed": seed.seed, "threads": 1, "teacher": teacher, "lesson": LESSON,
        "tasks": {"train": seed.whose("explained")}, "collect": {"max_completion_length": s.most, **ranked},
        "student": {"model": {"path": model}, "epochs": s.epochs, "prompts": 32, "optimiser": dict(IMITATION),
                    "checkpoint_every": 200},
    }  # fmt: skip
    config = parse_table(DistilConfig, told, name)
    folder = seed.path(name)
    clock = time.process_time()
    begin(config, folder, resume=True)
    found = collect(config, folder)
    seed.note(f"{name}/collect", time.process_time() - clock)
    made = seed.run(f"{name}/student", student_config(config, folder))
    return made, {**found, "right": _right_share(seed, folder / "explanations.jsonl")}


def _right_share(seed: Seed, file: Path) -> float:
    """The share of explanations that are the perfect derivation, word for word."""
    first, size = seed.places["explained"]
    right = {task.id: task.meta["reference"].rpartition("#")[0].strip() for task in seed.tasks("train", first, size)}
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    ids = {"/".join(name.rsplit("/", 1)[-1:]): text for name, text in right.items()}
    return statistics.fmean(row["explanation"] == ids[row["id"].rsplit("/", 1)[-1]] for row in rows)


def demonstrated(seed: Seed, name: str, model: str) -> str:
    """A student of the demonstrator himself: his chains, each before the known solution."""
    tasks = {"explained": seed.whose("explained"),
             "train": {"taskset": "teaching", "tasks": "explained", "role": "student", **LESSON}}  # fmt: skip
    stage = {"name": "sft", "algorithm": "sft", "epochs": seed.sizes.epochs, "prompts": 32,
             "optimiser": dict(IMITATION), "checkpoint_every": 200}  # fmt: skip
    whole = {"name": name, "seed": seed.seed, "threads": 1, "model": {"path": model}, "tasks": tasks}
    return seed.run(name, parse_config({**whole, "stages": [stage]}))


def practised(seed: Seed, name: str, model: str) -> str:
    """Ordinary reinforcement learning from that model: GRPO, the answer checked."""
    stage = {
        "name": "rl", "algorithm": "grpo", "tasks": "cold", "steps": seed.sizes.cold, "prompts": 32,
        "num_generations": 8, "max_completion_length": seed.sizes.most,
        "optimiser": {"learning_rate": 5e-4, "warmup_steps": min(5, seed.sizes.cold // 2), "schedule": "linear"},
    }  # fmt: skip
    whole = {
        "name": name, "seed": seed.seed, "threads": 1, "model": {"path": model}, "tasks": {"cold": seed.whose("cold")},
        "stages": [stage],
    }  # fmt: skip
    return seed.run(name, parse_config(whole))


def examined(seed: Seed, name: str, model: str) -> Evaluation:
    """A student on the held-out problems."""
    s = seed.sizes

    def ask() -> str:
        loaded = load_causal(model, dtype="float32", device="cpu")
        sampler = LocalBackend(threads=1).sampler(loaded)
        tasks = seed.tasks("test", 0, s.held_out)
        return evaluate_sync(sampler, loaded.chat, tasks, max_tokens=s.most, samples=s.n, seed=seed.seed).to_json()

    return Evaluation.from_json(seed.written(f"exam-{name}", ask))


def judged(seed: Seed, name: str, model: str, judge: str) -> dict[str, Any]:
    """What a teacher's explanations of held-out problems are worth: means over tasks of each part, the reward of each
    task, and the shares that are the perfect derivation and that end at the solution."""

    def ask() -> dict[str, Any]:
        loaded = load_causal(model, dtype="float32", device="cpu")
        reward = TeachingReward(frozen_student(judge), loaded.chat)
        roller = Roller(
            LocalBackend(threads=1).sampler(loaded), loaded.chat, reward,
            max_completion_length=seed.sizes.most, temperature=0.7, seed=f"{seed.seed}/judged",
        )  # fmt: skip
        tasks = lessons(seed, "test", 0, seed.sizes.held_out)

        async def gather() -> list[Any]:
            return list(await asyncio.gather(*(roller.group(task, 4, i) for i, task in enumerate(tasks))))

        groups = run_async(gather())
        rows = [(g.task, r, s) for g in groups for r, s in zip(g.rollouts, g.scores) if s.reward is not None]
        parts = {key: statistics.fmean(s.parts[key] for *_, s in rows) for key in rows[0][2].parts}
        said = [(task, rollout.text.partition(TAG.closing)[0].strip()) for task, rollout, _ in rows]
        return {
            "reward": [statistics.fmean(group.rewards) for group in groups],
            "parts": parts,
            "right": statistics.fmean(text == derivation(task) for task, text in said),
            "ends": statistics.fmean(text.endswith(f"= {task.answer} ;") for task, text in said),
            "tokens": statistics.fmean(r.completion_length for _, r, _ in rows),
        }

    return dict(seed.written(f"judged-{name}", ask))


def lessons(seed: Seed, split: str, first: int, size: int) -> list[Task]:
    """Problems as a teacher is given them."""
    made = teaching(seed.tasks(split, first, size), **LESSON)  # type: ignore[arg-type]
    return [made[i] for i in range(size)]


def derivation(task: Task) -> str:
    """The perfect explanation."""
    return str(task.meta["reference"]).rpartition("#")[0].strip()


def copies(seed: Seed, judge: str) -> dict[str, dict[str, float]]:
    """What the judge makes of three explanations of each held-out problem that nobody has sampled: the derivation, the
    solution itself, and nothing. klⱼ = −lpSⱼ, for nobody's log-probs are to be taken off."""

    def ask() -> dict[str, dict[str, float]]:
        student = frozen_student(judge)
        chat = student.chat
        reward = TeachingReward(student, chat, terms=Terms(entropy=False))
        kinds: Mapping[str, Callable[[Task], str]] = {
            "derivation": derivation,
            "the solution itself": lambda task: lesson_of(task).solution,
            "nothing": lambda _: "",
        }
        rows: dict[str, list[Mapping[str, float]]] = {kind: [] for kind in kinds}
        for task in lessons(seed, "test", 0, min(seed.sizes.held_out, 200)):
            written = [spoken(chat, task, kind(task)) for kind in kinds.values()]
            for kind, score in zip(kinds, run_async(reward(task, written)), strict=True):
                rows[kind].append({"reward": score.reward or 0.0, **score.parts})
        return {
            kind: {key: statistics.fmean(row[key] for row in each) for key in each[0]} for kind, each in rows.items()
        }

    return dict(seed.written("copies", ask))


def spoken(chat: Any, task: Task, text: str) -> Rollout:
    """A rollout that says this."""
    prompt, said = chat.prompt(task.prompt), chat.completion(TAG.taught(text))
    tokens = (*prompt, *said)
    mask = (False,) * len(prompt) + (True,) * len(said)
    return Rollout(task.id, tokens, mask, (0.0,) * len(tokens), Finish.STOP, temperature=0.7)


def parameters(model: str) -> int:
    """Of a model, embeddings left out."""
    from maieutic.models.adapters import parameters_of

    return parameters_of(load_causal(model, dtype="float32", device="cpu"))
