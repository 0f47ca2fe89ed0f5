"""What whole games of Wordle teach a small model: from imitation to GRPO over games, on secrets that practice lacks.

    python -m benchmarks wordle [--seeds N] [--quick] [--runs DIR] [--json FILE] [--picture FILE]

A decoder of 0.4 M parameters, a token a word, learns from games of a scripted player who forgets most of what he was
told, and in which every word of the list is a secret now and then: that stands in for a pretrained model, which knows
words and how the game goes, and plays as people do. Then it practises whole games (GRPO with an adapter, six turns,
1 for a win) about some of the secrets. "Held out" (test) are those that were never looked for in practice. Each secret
is played about greedily once and by sampling several times, before and after. Everything is made here from nothing by
`maieutic train`; runs are kept in DIR and resumed, so the command may be stopped and given again.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import tomli_w
import torch

from benchmarks._results import folder_of, points, study_parser, write_json
from benchmarks._step_pictures import Panel, draw
from benchmarks.step_supervision import rounded
from benchmarks.svamp import machine
from maieutic.backends.local import LocalBackend
from maieutic.core.crossed import crossed
from maieutic.core.intervals import bootstrap, paired_difference
from maieutic.environments.wordle import game_measures
from maieutic.errors import RunError
from maieutic.loops import run_async
from maieutic.models.causal import load_causal
from maieutic.play import Player as Plays
from maieutic.rewards.wordle import WORDLE
from maieutic.run.durable import write_text
from maieutic.run.store import Store
from maieutic.tasks.wordle import wordle, wordle_vocabulary
from maieutic.types import Score
from maieutic.wordle import Player, play, word_list

LAYOUT = "compact"
#: A word and the end of a turn.
TURN = 2
#: The question, then six turns of two tokens with seven between them.
GAME = 64
SPLITS = ("test", "train")
#: Seed 1 chose the settings.
FIRST_SEED = 2
#: How the games of an examination are played: the temperature.
WAYS = {"sampled": 1.0, "greedy": 0.0}


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `heeds`: how often the player who is imitated remembers a ✓, a - and an x; `rank` of the
    adapter that practises (0: the whole model does); `reward`: of a game; `samples`: sampled games about a secret in an
    examination, of as many secrets of each split."""

    words: int = 400
    held_out: int = 50
    heeds: tuple[float, float, float] = (0.3, 0.3, 0.3)
    games: int = 64_000
    steps: int = 150
    prompts: int = 16
    num_generations: int = 8
    learning_rate: float = 5e-3
    rank: int = 4
    reward: tuple[tuple[str, float], ...] = (("win", 1.0),)
    turn_reward: tuple[tuple[str, float], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    samples: int = 4


#: For a look: seconds.
QUICK = Sizes(words=40, games=3_200, steps=20, prompts=8, samples=2)


def tables(name: str, sizes: Sizes, seed: int, model: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """The config of one run."""
    game = {"taskset": "wordle", "words": sizes.words, "held_out": sizes.held_out, "layout": LAYOUT}
    shown = {"split": "all", "demonstrations": list(sizes.heeds), "size": sizes.games, "seed": seed}
    worth = {"reward": dict(sizes.reward), "turn_reward": dict(sizes.turn_reward), "max_turn_length": TURN}
    return {
        "name": name,
        "seed": seed,
        "threads": 1,
        "model": model,
        "tasks": {"demonstrations": {**game, **shown}, "practice": {**game, **worth}},
        "stages": [{"name": name, "checkpoint_every": 20, **stage}],
    }


def start_tables(sizes: Sizes, seed: int) -> dict[str, Any]:
    """Fine-tuning from scratch on the scripted player's games, about all secrets."""
    words = wordle_vocabulary(word_list(sizes.words, held_out=sizes.held_out), LAYOUT)
    small = {"layers": 2, "width": 128, "context": 128, "extra_words": words}
    optimiser = {"kind": "muon", "learning_rate": 5e-3, "schedule": "cosine", "final_fraction": 0.05}
    stage = {"algorithm": "sft", "tasks": "demonstrations", "epochs": 1, "prompts": 32, "optimiser": optimiser}
    return tables("imitation", sizes, seed, {"small": small}, stage)


def practice_tables(sizes: Sizes, seed: int, start: str) -> dict[str, Any]:
    """GRPO over whole games, about the secrets of the split "train"."""
    optimiser = {"learning_rate": sizes.learning_rate, "warmup_steps": 5, "schedule": "linear"}
    if sizes.steps <= 5:
        optimiser = {"learning_rate": sizes.learning_rate}
    stage = {
        "algorithm": "grpo", "tasks": "practice", "steps": sizes.steps, "prompts": sizes.prompts,
        "num_generations": sizes.num_generations, "max_completion_length": GAME, "optimiser": optimiser,
        **dict(sizes.options),
    }  # fmt: skip
    adapter = {"lora": {"rank": sizes.rank, "alpha": 2 * sizes.rank}} if sizes.rank else {}
    return tables("practice", sizes, seed, {"path": start, **adapter}, stage)


def run(made: dict[str, Any], folder: Path) -> str:
    """Run or finish one run in a process of its own; where its model is."""
    if not (folder / "run.complete").exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_suffix(".toml")
        file.write_text(tomli_w.dumps(made))
        again = ["--resume"] if (folder / "config.toml").exists() else []
        done = subprocess.run(
            [sys.executable, "-m", "maieutic", "-q", "train", file, "--run", folder, *again],
            capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        if done.returncode:
            raise RunError(f"the run in {folder} failed: {done.stderr.strip()[-2000:]}")
    return str(json.loads((folder / "run.complete").read_text())["model"])


def examined(model: str, sizes: Sizes, note: Path) -> dict[str, list[dict[str, Any]]]:
    """Split → of each secret, what is told of its games: {"secret", "greedy": [parts], "sampled": [parts, …]}."""
    if note.exists():
        return json.loads(note.read_text())  # type: ignore[no-any-return]
    loaded = load_causal(model, dtype="float32", device="cpu")
    sampler, found = LocalBackend(threads=1).sampler(loaded), {}
    most = len(word_list(sizes.words, held_out=sizes.held_out).secrets("test"))
    for split in SPLITS:
        tasks = wordle(split, words=sizes.words, held_out=sizes.held_out, layout=LAYOUT, max_turn_length=TURN)
        some = list(tasks)[:most]
        found[split] = [{"secret": task.answer} for task in some]
        for way, temperature in WAYS.items():
            assert tasks.environment is not None
            plays = Plays(sampler, loaded.chat, WORDLE["wordle:binary"](), tasks.environment, GAME, temperature)
            number = sizes.samples if temperature else 1

            async def games(plays: Plays = plays, some: Any = some, number: int = number) -> list[Any]:
                return list(await asyncio.gather(*(plays.group(task, number, i) for i, task in enumerate(some))))

            for row, group in zip(found[split], run_async(games()), strict=True):
                row[way] = [dict(score.parts) for score in group.scores]
    write_text(note, json.dumps(found))
    return found


def seed_of(number: int, sizes: Sizes, runs: Path) -> dict[str, Any]:
    """Everything of a seed, made if it is not there yet."""
    folder = runs / str(number)
    start = run(start_tables(sizes, number), folder / "imitation")
    before = examined(start, sizes, folder / "start.games.json")
    print(f"seed {number}: start {_said(before)}", file=sys.stderr, flush=True)
    end = run(practice_tables(sizes, number, start), folder / "practice")
    after = examined(end, sizes, folder / "practice.games.json")
    print(f"seed {number}: practised {_said(after)}", file=sys.stderr, flush=True)
    with Store.open_reader(folder / "practice" / "run.db") as store:
        curve = store.metrics("practice", "reward/parts/win")
    seconds = [json.loads((folder / n / "run.complete").read_text())["seconds"] for n in ("imitation", "practice")]
    return {"seed": number, "start": before, "practice": after, "curve": curve,
            "seconds": [sum(each.values()) for each in seconds]}  # fmt: skip


def _said(games: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    return ", ".join(f"{split} {statistics.fmean(wins(each, 'sampled')):.3f}" for split, each in games.items())


def wins(games: Sequence[Mapping[str, Any]], way: str) -> list[float]:
    """Of each secret, the share of its games that were won."""
    return [statistics.fmean(parts.get("win", 0.0) for parts in game[way]) for game in games]


def measured(games: Sequence[Mapping[str, Any]], way: str) -> dict[str, Any]:
    """The measures of games, with an interval for the wins: bootstrap over secrets."""
    won = wins(games, way)
    told = game_measures([Score(0.0, parts=parts) for game in games for parts in game[way]])
    return {**told, "win_rate": bootstrap(won).to_dict(), "secrets": len(won)}


def found_in(seeds: Sequence[Mapping[str, Any]], sizes: Sizes) -> dict[str, Any]:
    """Measures of each seed before and after, and what was gained: paired by secret in each seed, and over seeds."""
    rows = [
        {
            f"{when} {split}, {way}": measured(seed[when][split], way)
            for way in WAYS
            for split in SPLITS
            for when in ("start", "practice")
        }
        for seed in seeds
    ]
    gains = {f"{split}, {way}": _gain(seeds, split, way) for way in WAYS for split in SPLITS}
    return {"seeds": rows, "gains": gains, "gaps": _gaps(seeds), "scripted": scripted(sizes),
            "curves": [seed["curve"] for seed in seeds], "seconds": [seed["seconds"] for seed in seeds]}  # fmt: skip


def _gain(seeds: Sequence[Mapping[str, Any]], split: str, way: str) -> dict[str, Any]:
    both = [(wins(seed["practice"][split], way), wins(seed["start"][split], way)) for seed in seeds]
    apart = [[new - old for new, old in zip(*pair, strict=True)] for pair in both]
    means = [[statistics.fmean(column) for column in zip(*side, strict=True)] for side in zip(*both, strict=True)]
    return {
        "seeds": [paired_difference(*pair).to_dict() for pair in both],
        "secrets": paired_difference(means[0], means[1]).to_dict(),
        "secrets and seeds": crossed(apart, bounds=(-1.0, 1.0)).to_dict(),
    }


def _gaps(seeds: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Practised − held-out wins, sampled, of each seed: by how much practice shifts what is taken for a secret."""
    return {
        when: [
            statistics.fmean(wins(seed[when]["train"], "sampled"))
            - statistics.fmean(wins(seed[when]["test"], "sampled"))
            for seed in seeds
        ]
        for when in ("start", "practice")
    }


def scripted(sizes: Sizes) -> dict[str, float]:
    """How often the scripted players find a held-out secret: the one imitated, and one who heeds nothing."""
    words = word_list(sizes.words, held_out=sizes.held_out)
    players = {
        "guessing": Player((0.0, 0.0, 0.0)),
        "imitated": Player(sizes.heeds),
        "careful": Player((1.0, 1.0, 1.0)),
    }
    return {
        name: statistics.fmean(
            play(secret, player, words, Random(f"{secret}/{i}"))[-1][0] == secret
            for secret in words.secrets("test")
            for i in range(20)
        )
        for name, player in players.items()
    }


COLUMNS = {"win_rate": "wins", "mean_guesses": "guesses in wins", "valid_word": "valid words",
           "violations": "violations", "left_1": "left after 1", "left_3": "left after 3"}  # fmt: skip


def table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for number, rows in enumerate(found["seeds"], FIRST_SEED):
        lines += [f"| seed {number}, {name} | " + " | ".join(_cells(row)) + " |" for name, row in rows.items()]
    lines += [
        "",
        "| wins after practice − before, points | each seed | secrets | secrets and seeds |",
        "|---|---|---|---|",
    ]
    for split, gain in found["gains"].items():
        seeds = ", ".join(points(each) for each in gain["seeds"])
        lines.append(f"| {split} | {seeds} | {points(gain['secrets'])} | {points(gain['secrets and seeds'])} |")
    before, after = (", ".join(f"{100 * gap:+.1f}" for gap in found["gaps"][w]) for w in ("start", "practice"))
    lines += ["", f"Practised − held-out secrets, sampled, points of each seed: before {before}; after {after}."]
    none, some, good = (f"{100 * found['scripted'][name]:.1f} %" for name in ("guessing", "imitated", "careful"))
    lines += ["", f"Scripted players, held-out secrets: heeding nothing {none}, imitated {some}, heeding all {good}."]
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> list[str]:
    wins = row["win_rate"]
    shown = [f"{100 * wins['value']:.1f} % ({100 * wins['low']:.1f} to {100 * wins['high']:.1f})"]
    for name in list(COLUMNS)[1:]:
        value = row.get(name)
        share = name in ("valid_word", "violations")
        shown.append("–" if value is None else f"{100 * value:.1f} %" if share else f"{value:.2f}")
    return shown


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing, and print the tables."""
    parser = study_parser(__doc__, "wordle", "one seed, few words, few games")
    parser.add_argument("--picture", type=Path, help="an SVG file: wins while it practises")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sizes = QUICK if given.quick else Sizes()
    runs = folder_of(given, "wordle", sizes)
    if runs is None:
        return 2
    seeds = []
    for number in range(FIRST_SEED, FIRST_SEED + (given.seeds or (1 if given.quick else 3))):
        seeds.append(seed_of(number, sizes, runs))
        found = found_in(seeds, sizes)
        if given.json:
            write_json(given.json, rounded({"machine": machine(), "sizes": asdict(sizes), **found}), indent=None)
    if given.picture:
        title = "Games won while practising (practised secrets, sampled)"
        write_text(given.picture, draw(Panel(title, "step", "wins", {"GRPO": found["curves"]}, percent=True)))
    print(machine())
    print("\n" + table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
