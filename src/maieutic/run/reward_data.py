"""What a reward model learns from: judged files, and rollouts that runs have stored."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maieutic.config.reward_training import RewardTrainConfig
from maieutic.core.parts import Algorithm
from maieutic.core.reward_modelling import REWARD_MODELS
from maieutic.errors import DataError
from maieutic.models.reward_model import RewardModel, Settings
from maieutic.reward_models.data import outcome_groups, pair_groups, pairs_of, process_groups, whole
from maieutic.run.store import Store
from maieutic.tasks.judged import Judged, Preference, balanced, distinct, held_out, layout_of, prompt_key, read_judged
from maieutic.types import Finish, Group

#: PRM800K's neutral rating as a label.
NEUTRAL = {"right": 1.0, "wrong": 0.0, "none": None}
#: Layout of a file → the mark that its steps have, and whether it stands after every step.
MARKS = {"stepwise": ("\n", False), "prm800k": ("\n", False), "math_shepherd": ("ки", True)}
#: Rollouts read at once.
PAGE = 500


@dataclass(frozen=True)
class Data:
    """What is learned from and what is held out, whole prompts each, and how they came about in words."""

    learned: Sequence[Judged | Preference]
    held: Sequence[Judged | Preference]
    note: str


def gather(config: RewardTrainConfig) -> Data:
    """Everything of `config.data`: made distinct, balanced within prompts where wholes are judged, split by prompt.

    Raises DataError for what cannot be read, or where nothing of the kind that is asked for is left.
    """
    found: list[Judged | Preference] = []
    for place in config.data:
        found += _read(place, config)
    judged = [each for each in found if isinstance(each, Judged)]
    given = [each for each in found if isinstance(each, Preference)]
    if config.kind == "pairs":
        pairs = given + pairs_of(distinct(judged), config.cap)
        return _split(pairs, config, f"{len(found):,} rows, {len(pairs):,} pairs")
    if config.kind == "process":
        kept = [each for each in judged if any(label is not None for label in each.labels)]
        return _split(kept, config, f"{len(judged):,} completions, {len(kept):,} with labelled steps")
    wholes = [Judged(e.prompt, e.steps, whole(e), finished=e.finished) for e in judged if whole(e) is not None]
    wholes += [Judged(p.prompt, (text,), z) for p in given for text, z in ((p.chosen, 1.0), (p.rejected, 0.0))]
    kept = balanced(wholes, config.cap, config.balance, config.seed)
    return _split(kept, config, f"{len(wholes):,} judged completions, {len(kept):,} after balancing")


def settings_of(config: RewardTrainConfig) -> Settings:
    """How the model that is trained will be asked."""
    mark, every = _mark(config)
    return Settings(config.kind, config.layout_of_model, config.delimiter, mark, every, config.good, config.bad)


def groups_of(model: RewardModel, data: Sequence[Judged | Preference], at: str = "end") -> list[Group]:
    """The data in the model's tokens, by what kind of model it is."""
    if model.kind == "pairs":
        return pair_groups(model, [each for each in data if isinstance(each, Preference)])
    judged = [each for each in data if isinstance(each, Judged)]
    if model.kind == "process":
        return process_groups(model, judged)
    return outcome_groups(model, judged, steps=at == "steps")


def audited(model: RewardModel, places: Sequence[str]) -> list[Group]:
    """Everything in files and folders of runs that a model of this kind can be asked of, nothing balanced or held out.

    Raises DataError where there is nothing of the kind.
    """
    whole = {"cap": None, "balance": False, "holdout": 0.0, "delimiter": model.settings.delimiter}
    config = RewardTrainConfig.model_validate(
        {"kind": model.kind, "model": model.source, "data": list(places), **whole}
    )
    return groups_of(model, gather(config).learned)


def algorithm_of(config: RewardTrainConfig, data: Data) -> Algorithm:
    """The algorithm; of pairs with margins where the data have some."""
    margins = any(isinstance(each, Preference) and each.margin is not None for each in data.learned)
    options: dict[str, dict[str, Any]] = {
        "outcome": {"at": config.at, "lm": config.lm},
        "process": {"hard": config.hard},
        "pairs": {"margins": float(margins), "centre": config.centre},
    }
    return REWARD_MODELS[config.kind](**options[config.kind])


def stored(run: Path, stage: str | None = None) -> list[Judged]:
    """Every rollout that a run has stored and judged, right or wrong; those that failed are left out."""
    found: list[Judged] = []
    with Store.open_reader(run / "run.db") as store:
        for offset in range(0, store.count_rollouts(stage), PAGE):
            for each in store.rollouts(stage, limit=PAGE, offset=offset):
                if each.score.correct is not None and each.rollout.finish is not Finish.ERROR and each.rollout.text:
                    ended = each.rollout.finish is not Finish.LENGTH
                    label = float(each.score.correct)
                    found.append(Judged(each.task.prompt, (each.rollout.text,), label, finished=ended))
    return found


def _read(place: str, config: RewardTrainConfig) -> Iterable[Judged | Preference]:
    path = Path(place)
    if _is_run(path):
        found = stored(path, config.stage)
        if not found:
            raise DataError(
                f"{path}: none of its stored rollouts was judged right or wrong; expected a verifier's word"
            )
        return found
    layout = layout_of(path) if config.layout == "auto" else config.layout
    return read_judged(path, layout, **({"neutral": NEUTRAL[config.neutral]} if layout == "prm800k" else {}))


def _is_run(path: Path) -> bool:
    return (path / "run.db").is_file()


def _mark(config: RewardTrainConfig) -> tuple[str, bool]:
    """The mark of steps and whether it stands after every one: as asked for, else that of the first file's layout."""
    if config.kind != "process":
        return "", False
    if config.mark is not None:
        return config.mark, bool(config.mark)
    files = [Path(place) for place in config.data if not _is_run(Path(place))]
    layout = config.layout if config.layout != "auto" or not files else layout_of(files[0])
    return MARKS.get(layout, ("", False))


def _split(data: Sequence[Judged | Preference], config: RewardTrainConfig, note: str) -> Data:
    if not data:
        raise DataError(f"nothing of kind {config.kind!r} to learn from in {', '.join(config.data)} ({note})")
    held = [each for each in data if held_out(prompt_key(each.prompt), config.holdout, config.seed)]
    learned = [each for each in data if not held_out(prompt_key(each.prompt), config.holdout, config.seed)]
    prompts = len({prompt_key(each.prompt) for each in learned})
    if not learned:
        raise DataError(f"every one of the {len(data)} rows is held out; lower holdout, or give more prompts")
    return Data(learned, held, f"{note}: {len(learned):,} to learn from ({prompts:,} prompts), {len(held):,} held out")
