"""A reward model as a reward: one score of the whole, or rewards at the ends of steps.

    rewards = { answer = 1.0, "model:models/prm" = 0.5, "model:models/other-orm" = 0.0 }

    [stages.reward_options."model:models/prm"]
    per_step = "potential"        rewards stay at the steps (`rewards.stepwise`); without it, one score:
    aggregate = "min"             of a process model's steps (`rewards.aggregate`)
    normalise = "centre"          of a model of pairs, whose scores can be compared within a prompt only

A weight of 0 watches: a hold-out model that no update has seen, whose scores (`reward/parts/…` in the log) stop rising
when the one that is trained against goes on, is how the hacking of a reward model shows (arXiv 2210.10760).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from maieutic.errors import ConfigError, RewardError, UnknownName
from maieutic.rewards.aggregate import AGGREGATES, NORMALISE, aggregate, normalise
from maieutic.rewards.lift import unscorable
from maieutic.rewards.stepwise import FORMS
from maieutic.steps import Steps, prompt_end
from maieutic.types import Finish, Rollout, Score, Task

if TYPE_CHECKING:
    from maieutic.models.reward_model import RewardModel

#: What a name in a config begins with.
PREFIX = "model:"
#: Forms of step rewards that stay at their steps.
AT_STEPS = ("sum", "mean", "potential")


@dataclass(frozen=True)
class _Row:
    """What is asked of the model: `places` are the last tokens of the steps, in the rollout."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    ends: tuple[int, ...]
    places: tuple[int, ...]


class ModelReward:
    """Scores of a reward model (see the top of the file), which is loaded when it is asked for the first time.

    Rollouts whose tokens are the model's own are scored as they are; others, and everything that is somebody else's
    model, as text in its own tokens. A rollout that failed, is empty, or is too long for the model is unscorable.

    per_step    "potential", "mean" or "sum": what the rewards of steps are made of; the whole then adds nothing.
    aggregate   of a process model: min, prod, last, mean, max.
    normalise   none, centre, standard, rank: over the scores of a group.
    delimiter   what steps end in (None: what the model was trained with).
    device, dtype   where it runs, and in which precision.
    kind, good, bad, mark, template   of a folder that does not say it; see `load_reward_model`.

    Raises ConfigError at once for a combination that means nothing, ModelError where there is no such model.
    """

    def __init__(
        self, where: str, *, per_step: str | None = None, aggregate: str = "min", normalise: str = "none",
        delimiter: str | None = None, kind: str | None = None, good: str | None = None, bad: str | None = None,
        mark: str | None = None, template: str = "auto", device: str = "cpu", dtype: str = "float32",
    ) -> None:  # fmt: skip
        if per_step is not None and per_step not in AT_STEPS:
            raise UnknownName("form of step rewards", per_step, AT_STEPS)
        if aggregate not in AGGREGATES:
            raise UnknownName("aggregate of step scores", aggregate, AGGREGATES)
        if normalise not in NORMALISE:
            raise UnknownName("way to normalise scores", normalise, NORMALISE)
        if per_step is not None and normalise != "none":
            raise ConfigError(
                f"{where}: got per_step = {per_step!r} and normalise = {normalise!r}, which compares wholes; expected "
                "one of the two"
            )
        from maieutic.models.find import find_model

        self.source = where.removeprefix(PREFIX)
        find_model(self.source)
        self.per_step, self.aggregate, self.normalise, self.delimiter = per_step, aggregate, normalise, delimiter
        self.told = {"kind": kind, "good": good, "bad": bad, "mark": mark, "template": template}
        self.told |= {"device": device, "dtype": dtype}
        self.gives_steps = per_step is not None
        self._lock = threading.Lock()

    @cached_property
    def model(self) -> RewardModel:
        """The model, loaded now if it was not before."""
        from maieutic.backends.local.judging import quick
        from maieutic.models.reward_model import load_reward_model

        return quick(load_reward_model(self.source, **self.told))  # type: ignore[arg-type]

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """The scores `[G]`."""
        # In a thread: samplers go on meanwhile. One group at a time, so that a score never depends on its neighbours.
        return await asyncio.to_thread(self._judge, task, rollouts)

    def _judge(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        with self._lock:
            rows = [self._row(task, rollout) for rollout in rollouts]
            asked = [row for row in rows if isinstance(row, _Row)]
            said = iter(self.model.steps([r.prompt for r in asked], [r.completion for r in asked],
                                         [r.ends for r in asked]) if asked else [])  # fmt: skip
        steps = [next(said) if isinstance(row, _Row) else None for row in rows]
        how = self.aggregate if self.model.kind == "process" else "last"
        wholes = [None if each is None else aggregate(how, each) for each in steps]
        rewards = normalise(self.normalise, wholes)
        return [self._score(*each) for each in zip(rollouts, rows, steps, wholes, rewards, strict=True)]

    def _score(
        self,
        rollout: Rollout,
        row: _Row | str,
        steps: Sequence[float] | None,
        whole: float | None,
        reward: float | None,
    ) -> Score:
        if isinstance(row, str) or steps is None or whole is None:
            return unscorable(rollout) if rollout.finish is Finish.ERROR else Score(None, note=str(row))
        if self.per_step is None:
            return Score(reward, parts={"score": whole})
        added, values = FORMS[self.per_step](steps, rollout.finish is Finish.LENGTH)
        return Score(added, parts={"score": whole}, step_rewards=tuple(zip(row.places, values, strict=True)))

    def _row(self, task: Task, rollout: Rollout) -> _Row | str:
        """The rollout in the model's tokens, or why it cannot be judged."""
        model, start = self.model, prompt_end(rollout)
        if rollout.finish is Finish.ERROR or start == len(rollout.tokens):
            return "nothing was written"
        prompt, completion = rollout.tokens[:start], rollout.tokens[start:]
        same = model.own and self._reads(task, prompt, completion, rollout.text)
        if not same:
            prompt, completion = model.encode(task.prompt, rollout.text)
        mask = rollout.mask[start:] if same else (True,) * len(completion)
        if model.limit is not None and len(prompt) + len(completion) > model.limit:
            return f"{len(prompt) + len(completion)} tokens; the reward model reads {model.limit}"
        if not completion:
            return "nothing was written"
        if self.per_step is None and model.kind != "process":
            return _Row(prompt, completion, (len(completion),), (len(rollout.tokens) - 1,))
        if self.per_step is not None and not same:
            raise RewardError(
                f"{PREFIX}{self.source}: got rollouts in other tokens than the model's, and per_step = "
                f"{self.per_step!r}; expected the policy's own tokens, in which its steps end. Leave per_step out (one "
                "score of the whole), or train a reward model on the policy's body"
            )
        ends = Steps(model.chat, self.delimiter or model.settings.delimiter).ends(completion, mask)
        return _Row(prompt, completion, ends, tuple(start + end - 1 for end in ends))

    def _reads(self, task: Task, prompt: tuple[int, ...], completion: tuple[int, ...], text: str) -> bool:
        """Whether these tokens mean to the model what they mean to the policy."""
        chat = self.model.chat
        return tuple(chat.prompt(task.prompt)) == prompt and chat.decode(completion) == text
