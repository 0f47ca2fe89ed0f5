"""Who judges in a search from the command line: reward models by their folders, and the answers themselves.

score    whole completions        the first model of outcomes or pairs, else the first there is
values   beginnings               the first model of steps, else the first there is
truth    whole completions        the tasks' own answers: for studies only
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maieutic.errors import ConfigError
from maieutic.run.searching import Asking, Method
from maieutic.search.judges import Judge, of_model
from maieutic.search.methods import requires
from maieutic.search.refine import oracle
from maieutic.tasks.taskset import take
from maieutic.types import Message

if TYPE_CHECKING:
    from maieutic.models.reward_model import RewardModel

#: Kinds of reward models in the order in which they are taken for what a search asks.
PREFERRED: Mapping[str, tuple[str, ...]] = {
    "score": ("outcome", "pairs", "process"),
    "values": ("process", "outcome"),
}


def with_judges(methods: Sequence[Method], asking: Asking, folders: Sequence[str], device: str) -> list[Method]:
    """The methods, those that need a judge with one. Models are loaded where a method asks for one.

    Raises ConfigError where there is none, ModelError for what is no reward model.
    """
    wanted = {name for method in methods for name in requires(method.name) - method.options.keys()}
    models = _loaded(folders, device) if wanted & PREFERRED.keys() else []
    judges: dict[str, Judge] = {}
    for name in sorted(wanted & PREFERRED.keys()):
        found = [m for kind in PREFERRED[name] for m in models if m.kind == kind]
        if found:
            judges[name] = judge_of(found[0], asking)
    if "truth" in wanted:
        judges["truth"] = oracle(asking.chat, take(asking.tasks, 0, asking.size), asking.tasks.verifier)
    made = []
    for method in methods:
        missing = requires(method.name) - method.options.keys()
        if lacking := missing - judges.keys():
            kinds = {"values": "of steps (--kind process)"}.get(min(lacking), "(--kind outcome or process)")
            raise ConfigError(
                f"{method.label} chooses by {' and '.join(sorted(lacking))}: got no reward model for it; expected "
                f"--reward-model FOLDER, of a model {kinds}. `maieutic reward train` makes one"
            )
        given = {name: judges[name] for name in missing}
        made.append(Method(method.name, {**given, **method.options}, method.label))
    return made


def judge_of(model: RewardModel, asking: Asking) -> Judge:
    """What the model says; of texts where its tokens are not those of the policy."""
    tokenizer: Any = getattr(getattr(asking.chat, "chat", asking.chat), "tokenizer", None)
    if tokenizer is not None and tokenizer.get_vocab() == model.tokenizer.get_vocab():
        return of_model(model)
    known: dict[tuple[int, ...], tuple[Message, ...]] = {}
    for i in range(asking.size):
        task = asking.tasks[i]
        known[asking.chat.prompt(task.prompt)] = task.prompt

    async def give(prompt: tuple[int, ...], rows: Sequence[tuple[int, ...]]) -> list[float]:
        written = [model.encode(known[prompt], asking.chat.decode(row)) for row in rows]
        said = await asyncio.to_thread(model.outcome, [a for a, _ in written], [b for _, b in written])
        return list(said)

    return give


def _loaded(folders: Sequence[str], device: str) -> list[RewardModel]:
    from maieutic.backends.local.judging import quick
    from maieutic.models.reward_model import load_reward_model

    return [quick(load_reward_model(folder, device=device)) for folder in folders]
