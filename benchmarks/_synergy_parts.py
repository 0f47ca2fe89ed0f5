"""The parts of the study `synergy`: rows (runs), what a teacher writes, two reward models, searches by the cell.

    base ─┬─► sft, rft, orpo, ei, grpo                     each an ordinary run from the base's model
          ├─► teacher's solutions ─► distilled ─► grpo
          └─► solutions, steps' labels ─► outcome model, process model, which judge in every row

Whatever is whole is found again when it is asked for: the study may be stopped anywhere.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from benchmarks import _rerank_parts as parts
from benchmarks.learning import muon, rate
from maieutic.backends.local import LocalBackend
from maieutic.backends.local.judging import quick
from maieutic.config import parse_config
from maieutic.core.cost import COSTS, FORWARD
from maieutic.endpoint import Bill
from maieutic.endpoint.local import LocalRespondent
from maieutic.evaluate import Evaluation
from maieutic.models.adapters import parameters_of
from maieutic.models.causal import load_causal
from maieutic.models.reward_model import RewardModel, load_reward_model
from maieutic.protocols import Chat, Sampler
from maieutic.run.directory import RunDirectory
from maieutic.run.durable import write_text
from maieutic.run.recording import write_solutions
from maieutic.run.runner import Runner, Silent, resume_or_begin
from maieutic.run.searching import Asking, Method, search_all
from maieutic.run.store import Store
from maieutic.search.judges import of_model, signed
from maieutic.search.results import Solved
from maieutic.teachers.written import Writer
from maieutic.types import Finish

Made = TypeVar("Made")

#: Where each row begins: "" is nothing. The teacher is a row of which nothing is shown.
STARTS: Mapping[str, str] = {
    "base": "", "sft": "base", "rft": "base", "orpo": "base", "ei": "base", "grpo": "base",
    "teacher": "", "distilled": "base", "distilled + grpo": "distilled",
}  # fmt: skip
ROWS = tuple(name for name in STARTS if name != "teacher")
#: Columns whose answers are looked for one by one; all others choose among the same k samples.
SEARCHES = ("beam", "mcts", "wait")
#: Numbers of the first tasks of the training split that are for something: the base's demonstrations are before.
SHOWN, PRACTICE, TAUGHT = 16_000, 24_000, 80_000


@dataclass(frozen=True)
class Scale:
    """How much of everything. `judges`: the base's demonstrations, what the reward models learn from, and the held-out
    problems with k samples each. `practice` problems with `group` samples each are a row's, `prompts` of them a step;
    `shown` worked solutions are seen `passes` times by `sft`, `taught` by the teacher once."""

    judges: parts.Sizes = field(
        default_factory=lambda: parts.Sizes(problems=2000, labelled=700, held_out=200, n=8, continuations=6)
    )
    practice: int = 960
    prompts: int = 32
    group: int = 8
    shown: int = 480
    passes: int = 16
    taught: int = 6000
    distil_passes: int = 5
    rounds: int = 3
    beams: tuple[int, int] = (2, 4)
    simulations: int = 40
    waits: int = 1
    warmup: int = 5


#: For a look: seconds.
QUICK = Scale(
    judges=parts.Sizes(
        demonstrations=2000, events=(1, 2), problems=160, samples=4, labelled=80, solutions=2, continuations=3,
        held_out=20, n=8, most=40, outcome_epochs=10.0, process_epochs=6.0,
    ),
    practice=64, prompts=16, group=4, shown=64, passes=6, taught=960, distil_passes=4, rounds=2, simulations=8,
    warmup=0,
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """The study's folder, its seed and scale; `say` is told (part, seconds) when a part is done."""

    folder: Path
    seed: int
    scale: Scale
    say: Callable[[str, float], None] = lambda *_: None

    @cached_property
    def judged(self) -> parts.Seed:
        """Where the reward models and what they learn from lie."""
        return parts.Seed(self.folder / "judges", self.seed, self.scale.judges, template="auto")

    @cached_property
    def models(self) -> Mapping[str, RewardModel]:
        """The outcome and the process model."""
        folder = self.judged.folder
        return {
            kind: quick(load_reward_model(folder / kind, template=self.judged.template))
            for kind in ("outcome", "process")
        }

    def timed(self, name: str, make: Callable[[], Made]) -> Made:
        """What `make` gives; the processor seconds of the first time are kept."""
        note = self.folder / "seconds" / name
        begun = time.process_time()
        made = make()
        if not note.exists():
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, f"{time.process_time() - begun:.1f}")
        self.say(name, time.process_time() - begun)
        return made


def stage_of(work: Work, row: str) -> dict[str, Any]:
    """How a row learns. Rates are those of the studies `starts` and `learning`."""
    scale = work.scale
    steps = {"tasks": "practice", "num_generations": scale.group, "max_completion_length": scale.judges.most}
    slow = {"warmup_steps": scale.warmup}
    online = {**steps, "steps": scale.practice // scale.prompts, "prompts": scale.prompts, **rate(5e-4, **slow)}
    rounds = {**steps, **muon(0.005)}
    whole = {"epochs": 1, "prompts": 32, **muon(0.02)}
    stages: dict[str, dict[str, Any]] = {
        "base": {"algorithm": "sft", "tasks": "demonstrations", **whole},
        "sft": {"algorithm": "sft", "tasks": "shown", "epochs": scale.passes, "prompts": 32, **rate(1e-3, **slow)},
        "rft": {"algorithm": "rejection_sampling", **rounds, "steps": 1, "prompts": scale.practice},
        "orpo": {"algorithm": "orpo", "options": {"pairs": "disjoint"}, **online},
        "ei": {"algorithm": "expert_iteration", **rounds, "steps": scale.rounds,
               "prompts": scale.practice // scale.rounds},
        "grpo": {"algorithm": "grpo", **online},
        "teacher": {"algorithm": "sft", "tasks": "taught", **whole},
        "distilled": {"algorithm": "sft", "tasks": "written", "epochs": scale.distil_passes, "prompts": 32,
                      **rate(1e-3, **slow)},
        "distilled + grpo": {"algorithm": "grpo", **online},
    }  # fmt: skip
    return {"name": "learn", "checkpoint_every": 1000, **stages[row]}


def config_of(work: Work, row: str) -> dict[str, Any]:
    """The tables of a row's run."""
    scale, sizes = work.scale, work.scale.judges
    made = {"taskset": "arithmetic", "events": list(sizes.events)}

    def of(start: int, size: int) -> dict[str, Any]:
        return {**made, "seed": work.seed, "size": start + size, "start": start}

    stage = stage_of(work, row)
    imperfect = {"demonstrations": "imperfect", "misreading": sizes.misreading}
    tasks: dict[str, Any] = {
        "demonstrations": {**of(0, sizes.demonstrations), **imperfect},
        "shown": of(SHOWN, scale.shown),
        "practice": of(PRACTICE, scale.practice),
        "taught": of(TAUGHT, scale.taught),
        "written": {"taskset": "file", "path": str(solutions_file(work).resolve())},
        "test": {**made, "split": "test", "size": sizes.held_out},
    }
    small = {"layers": 2, "width": 192 if row == "teacher" else 128, "context": 192, "extra_words": ["Wait"]}
    start = STARTS[row]
    return {
        "name": row, "threads": 1, "seed": work.seed,
        "model": {"path": model_of(work, start)} if start else {"small": small},
        "tasks": {name: table for name, table in tasks.items() if name in (stage["tasks"], "test")}
        | ({} if start else {"demonstrations": tasks["demonstrations"]}),
        "stages": [stage],
        "evaluation": {"tasks": "test", "samples": sizes.n, "k": sizes.n, "max_completion_length": sizes.most},
    }  # fmt: skip


def run_folder(work: Work, row: str) -> Path:
    """Where a row's run lies."""
    return work.folder / "runs" / row.replace(" + ", "+")


def solutions_file(work: Work) -> Path:
    """What the teacher wrote."""
    return work.folder / "teacher.jsonl"


def run(work: Work, row: str) -> None:
    """The row's run, begun or gone on with, after all that it begins with."""
    if STARTS[row]:
        run(work, STARTS[row])
    if row == "distilled":
        run(work, "teacher")
        work.timed("teacher's solutions", partial(write, work))
    folder = run_folder(work, row)
    if not (folder / "run.complete").exists():
        config, again = parse_config(config_of(work, row)), (folder / "config.toml").exists()
        work.timed(f"{row}: run", partial(resume_or_begin, config, folder, resume=again))


def model_of(work: Work, row: str) -> str:
    """The model that a row's run ended with."""
    return str(json.loads((run_folder(work, row) / "run.complete").read_text())["model"])


def policy(work: Work, row: str) -> tuple[Sampler, Chat]:
    """A row's model, to be sampled from."""
    model = load_causal(model_of(work, row), template=work.judged.template, dtype="float32", device="cpu")
    return LocalBackend(threads=1).sampler(model), model.chat


def write(work: Work) -> dict[str, Any]:
    """The teacher's solutions of the practice problems: right ones, each once."""
    out, scale = solutions_file(work), work.scale
    note = out.with_name(f"{out.name}.state.json")
    if out.exists() and not note.exists():  # stopped before anything was kept
        out.unlink()
    sampler, chat = policy(work, "teacher")
    tasks = work.judged.tasks("train", PRACTICE, scale.practice)
    asked = LocalRespondent(sampler, chat, name="teacher", seed=work.seed)
    writer = Writer(asked, tasks, samples=scale.group, max_tokens=scale.judges.most)
    settings = {"teacher": run_folder(work, "teacher").name, "seed": work.seed, "samples": scale.group}
    return write_solutions(writer, out, settings, resume=out.exists())


def judges(work: Work) -> None:
    """Both reward models, with the base's body, from the base's solutions."""
    seed, sizes = work.judged, work.scale.judges
    made: dict[str, Callable[[Path], Any]] = {
        "start": lambda folder: shutil.copytree(model_of(work, "base"), folder),
        "solutions.jsonl": partial(parts.make_solutions, seed),
        "labels": partial(make_labels, seed),
        "outcome": partial(parts.make_model, seed, "outcome", seed.folder / "solutions.jsonl", sizes.outcome_epochs),
        "process": partial(
            parts.make_model, seed, "process", seed.folder / "labels" / "steps.jsonl", sizes.process_epochs
        ),
    }
    for name, make in made.items():
        work.timed(f"judges: {name}", partial(seed.part, name, make))


def make_labels(seed: parts.Seed, folder: Path) -> None:
    """Solutions with labelled steps, but for those that stop after a delimiter: their last step is no text."""
    parts.make_labels(seed, folder)
    file = folder / "steps.jsonl"
    rows = file.read_text(encoding="utf-8").splitlines()
    file.write_text("".join(f"{row}\n" for row in rows if all(json.loads(row)["steps"])), encoding="utf-8")


def examination(work: Work, row: str) -> Evaluation:
    """The greedy answer and the k samples of each held-out problem, of which the row's run made a table."""
    directory = RunDirectory.open(run_folder(work, row))
    found = Runner(parse_config(config_of(work, row)), directory, Silent()).evaluation("learn", "test")
    assert found is not None, "a complete run has its evaluation"
    return found


def scores(work: Work, row: str) -> dict[str, list[list[list[float]]]]:
    """Kind of reward model → of each problem and sample what it says of its steps (an outcome model: of the whole)."""
    file = work.folder / "scores" / f"{row.replace(' + ', '+')}.json"
    if file.exists():
        return json.loads(file.read_text())
    tasks = work.judged.tasks("test", 0, work.scale.judges.held_out)
    found: dict[str, list[list[list[float]]]] = {kind: [] for kind in work.models}
    for task, problem in zip(tasks, examination(work, row).problems, strict=True):
        texts = [(sample.text, sample.finish is not Finish.LENGTH) for sample in problem.samples]
        for kind, model in work.models.items():
            found[kind].append(parts.scored(model, task.prompt, texts))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps(found))
    return found


def budget_of(work: Work, row: str) -> int:
    """Tokens that a search may spend on a problem: what the k samples took in the mean."""
    found = examination(work, row).problems
    return math.ceil(statistics.fmean(sum(sample.tokens for sample in problem.samples) for problem in found))


def search(work: Work, row: str, column: str) -> list[Solved]:
    """What a search finds of each held-out problem; whatever was found before is read."""
    scale, most = work.scale, work.scale.judges.most
    process = of_model(work.models["process"])
    steps = {"delimiter": parts.DELIMITER, "step_tokens": 16}
    beams, children = scale.beams
    ways: dict[str, tuple[dict[str, Any], int]] = {
        "beam": ({"values": process, "beams": beams, "children": children, **steps}, most),
        "mcts": ({"values": signed(process), "simulations": scale.simulations, "children": children, **steps}, most),
        "wait": ({"times": scale.waits, "ignore": "Wait", "form": "#"}, 2 * most),
    }
    options, longest = ways[column]
    budget = longest if column == "wait" else budget_of(work, row)
    sampler, chat = policy(work, row)
    temperature = 0.0 if column == "wait" else 1.0
    tasks = work.judged.tasks("test", 0, scale.judges.held_out)
    asking = Asking(tasks, sampler, chat, longest, temperature, work.seed)
    plain = {key: value for key, value in options.items() if key != "values"}
    out = work.folder / "searches" / row.replace(" + ", "+") / column
    settings = {"row": row, "column": column, "budget": budget, "seed": work.seed, **plain}
    found = search_all(asking, [Method(column, options, column)], [budget], out, settings)
    return found[column, budget]


def costs(work: Work, row: str) -> dict[str, float]:
    """What the row's own run has cost, by the names of budgets, and seconds of the processor."""
    with Store.open_reader(run_folder(work, row) / "run.db") as store:
        found = {name: sum(value for _, value in store.metrics("learn", metric)) for name, metric in COSTS.items()}
    return found


def writing_cost(work: Work) -> dict[str, float]:
    """What the teacher's writing has cost: FLOPs of the wider model."""
    state = json.loads(solutions_file(work).with_name("teacher.jsonl.state.json").read_text())
    counts, bill = state["counts"], Bill(*state["bill"])
    parameters = parameters_of(load_causal(model_of(work, "teacher"), device="cpu"))
    return {
        "samples": float(sum(counts.values())), "kept": float(counts["kept"]),
        "generated_tokens": float(bill.completion_tokens), "prompt_tokens": float(bill.prompt_tokens),
        "flops": FORWARD * parameters * (bill.completion_tokens + bill.prompt_tokens),
    }  # fmt: skip
