"""Sources: where groups come from.

`Sampled` draws tasks and lets the policy attempt them; `Recorded` replays demonstrations, `RecordedPairs` preferences;
`Mixed` takes its steps from two others.
All visit tasks in a seeded order that is a pure function of (seed, visit number), so their whole state is one number.
Letters: `G` siblings.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from maieutic.curriculum import Curriculum
from maieutic.environments.demonstrated import demonstrated_episode, turns_shown
from maieutic.errors import ConfigError, DataError, RewardError
from maieutic.loops import run_async
from maieutic.protocols import Chat, Source, Taskset, Tool
from maieutic.rollout import Rolls, spans_of
from maieutic.types import Finish, Group, Rollout, Score, Task

log = logging.getLogger("maieutic.sources")

#: Steps in a row without a single reward after which a source gives up: the run would go on to its end for nothing.
MAX_EMPTY_STEPS = 3


class Order:
    """Visit number → index of a task: every task once an epoch, each epoch in an order of its own."""

    def __init__(self, size: int, seed: int | str) -> None:
        if size < 1:
            raise DataError("a source needs at least one task: got none; check the split, the slice and the limit")
        self.size = size
        self._epoch = lru_cache(maxsize=2)(lambda epoch: random.Random(f"{seed}/{epoch}").sample(range(size), size))

    def __getitem__(self, visit: int) -> int:
        return int(self._epoch(visit // self.size)[visit % self.size])


class CheckRewards:
    """Called with the groups of each step: raises DataError or RewardError after `MAX_EMPTY_STEPS` without a reward.

    `warned`: whether the user has been told that too few groups are of use.
    """

    def __init__(self) -> None:
        self.empty_steps = 0
        self.warned = False

    def __call__(self, groups: Sequence[Group]) -> None:
        self.empty_steps = 0 if any(group.rewards for group in groups) else self.empty_steps + 1
        if self.empty_steps < MAX_EMPTY_STEPS:
            return
        when = f"in {self.empty_steps} steps in a row"
        if all(rollout.finish is Finish.ERROR for group in groups for rollout in group.rollouts):
            raise DataError(f"no rollout could be made {when}; the last one: {groups[-1].rollouts[-1].note}")
        raise RewardError(
            f"no rollout could be scored {when}; the last one: {groups[-1].scores[-1].note or 'no reason given'}. "
            "Remedy: let the reward say something of at least some of what this policy writes"
        )


class Sampled:
    """Groups of fresh rollouts: `prompts` tasks a step, `num_generations` attempts each.

    `until` (dynamic sampling, DAPO, arXiv 2503.14476, §3.2): groups of which it says False do not count, and more
    tasks are drawn in their place, in at most `max_refill` further rounds; after that the step makes do with fewer,
    with one warning. Every group drawn is returned, those that do not count too: they belong in the log, and `select`
    leaves them out. `curriculum` passes over tasks that were too easy or too hard when they were last seen.
    """

    samples = True

    def __init__(
        self,
        tasks: Taskset | Sequence[Task],
        roller: Rolls,
        *,
        prompts: int,
        num_generations: int,
        seed: int | str = 0,
        until: Callable[[Group], bool] | None = None,
        max_refill: int = 4,
        curriculum: Curriculum | None = None,
    ) -> None:
        if prompts < 1 or num_generations < 1:
            raise ConfigError(
                f"Sampled: got prompts={prompts}, num_generations={num_generations}; expected at least 1 each"
            )
        self.tasks, self.roller = tasks, roller
        self.prompts, self.num_generations = prompts, num_generations
        self.until, self.max_refill, self.curriculum = until, max_refill, curriculum
        self.order = Order(len(tasks), seed)
        self.visits = 0
        self._check = CheckRewards()

    @property
    def stale(self) -> bool:
        """Whether the sampler's policy is another than the learner's."""
        return bool(getattr(self.roller.sampler, "off_policy", False))

    def next(self) -> list[Group]:
        """The groups of one step, in the order in which their tasks were drawn.

        After `MAX_EMPTY_STEPS` steps in a row without a single reward, raises DataError when no rollout could be made,
        RewardError when none could be scored.
        """
        drawn: list[Group] = []
        visits, missing = self.visits, self.prompts
        for _ in range(1 + (self.max_refill if self.until else 0)):
            turns = self._turns(visits, missing)
            groups = run_async(self._draw(turns))
            visits = turns[-1] + 1
            drawn += groups
            missing -= sum(self.until is None or self.until(g) for g in groups)
            if not missing:
                break
        else:
            log.log(
                logging.INFO if self._check.warned else logging.WARNING,
                "%d of %d prompts gave no usable group after %d refills (their rewards are all equal): the tasks are "
                "too easy or too hard for this policy; raise num_generations or max_refill, or change the tasks",
                missing, self.prompts, self.max_refill,
            )  # fmt: skip
            self._check.warned = True
        self._check(drawn)
        self.visits = visits
        if self.curriculum is not None:
            self.curriculum.see(drawn, self.order.size)
        return drawn

    def _turns(self, first: int, count: int) -> list[int]:
        """The next `count` visits from `first` on whose tasks are worth sampling."""
        if self.curriculum is None:
            return list(range(first, first + count))
        kept = (v for v in itertools.count(first) if self.curriculum.keeps(self.tasks[self.order[v]].id, v))
        return list(itertools.islice(kept, count))

    async def _draw(self, visits: Sequence[int]) -> list[Group]:
        work = [self.roller.group(self.tasks[self.order[v]], self.num_generations, v) for v in visits]
        return list(await asyncio.gather(*work))

    def state(self) -> dict[str, Any]:
        """How many tasks have been drawn or passed over, and what the curriculum knows."""
        known = {} if self.curriculum is None else {"curriculum": self.curriculum.state()}
        return {"visits": self.visits, **known}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after that many tasks."""
        self.visits = int(state["visits"])
        if self.curriculum is not None and "curriculum" in state:
            self.curriculum.restore(state["curriculum"])


class Recorded:
    """Demonstrations as groups of one with reward 1: `batch` tasks a step, each with `meta["solution"]`.

    One of more than `limit` tokens (the model's context) has no reward and finishes with ERROR: it is counted, and not
    learned from.
    """

    samples = False
    num_generations = 1

    @staticmethod
    def texts(task: Task) -> tuple[tuple[str, float], ...]:
        """What is shown of a task, with its rewards. Raises DataError where it lacks something."""
        return ((solution_of(task), 1.0),)

    def __init__(
        self,
        tasks: Taskset | Sequence[Task],
        chat: Chat,
        *,
        batch: int,
        seed: int | str = 0,
        tool: Tool | None = None,
        limit: int | None = None,
    ) -> None:
        if batch < 1:
            raise ConfigError(f"Recorded: got batch={batch}; expected at least 1")
        self.tasks, self.chat, self.batch, self.tool, self.limit = tasks, chat, batch, tool, limit
        self._check = CheckRewards()
        self.order = Order(len(tasks), seed)
        self.visits = 0

    def next(self) -> list[Group]:
        """The next `batch` tasks' groups. Raises DataError after `MAX_EMPTY_STEPS` steps without one that fits."""
        groups = [self._group(self.tasks[self.order[v]], v) for v in range(self.visits, self.visits + self.batch)]
        self._check(groups)
        self.visits += self.batch
        return groups

    def _group(self, task: Task, visit: int) -> Group:
        shown = self.texts(task)
        rollouts = [
            replace(demonstration(task, text, self.chat, self.tool), sibling=sibling)
            for sibling, (text, _) in enumerate(shown)
        ]
        scores = [Score(reward) for _, reward in shown]
        longest = max(len(rollout.tokens) for rollout in rollouts)
        if self.limit is not None and longest > self.limit:
            note = (
                f"got a demonstration of {longest} tokens; the model has {self.limit} positions. "
                "Shorten it, or use a model with a longer context"
            )
            rollouts = [replace(rollout, finish=Finish.ERROR, note=note) for rollout in rollouts]
            scores = [Score(None, note=note) for _ in scores]
        return Group(task, tuple(rollouts), tuple(scores), id=visit)

    def state(self) -> dict[str, Any]:
        """How many tasks have been shown."""
        return {"visits": self.visits}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after that many tasks."""
        self.visits = int(state["visits"])


class RecordedPairs(Recorded):
    """Preferences as groups of two, the chosen completion with reward 1 and the rejected one with reward 0: `batch`
    tasks a step, each with `meta["chosen"]` and `meta["rejected"]`. Where one side is too long, neither has a reward.
    """

    num_generations = 2

    @staticmethod
    def texts(task: Task) -> tuple[tuple[str, float], ...]:
        """The chosen and the rejected completion. Raises DataError for a task without both."""
        chosen, rejected = preference_of(task)
        return ((chosen, 1.0), (rejected, 0.0))


def recorded(siblings: int) -> type[Recorded]:
    """The source of what is shown, for an algorithm that learns from groups of so many."""
    return RecordedPairs if siblings > 1 else Recorded


class Mixed:
    """Steps of two sources: each step is the sampled one's with probability `share`, else the recorded one's.

    Which one is a function of (seed, number of the step), so a resumed run draws the same. Groups are numbered anew, as
    both sources count their own visits. `samples` speaks of the step that was drawn last.
    """

    def __init__(self, sampled: Source, recorded: Source, share: float, seed: int | str = 0) -> None:
        if not 0.0 <= share <= 1.0:
            raise ConfigError(f"Mixed: got share={share}; expected 0 (all recorded) to 1 (all sampled)")
        self.sampled, self.recorded, self.share, self.seed = sampled, recorded, share, seed
        self.steps = self.groups = 0
        self.samples = True

    @property
    def roller(self) -> Any:
        """The sampled source's."""
        return getattr(self.sampled, "roller", None)

    def next(self) -> list[Group]:
        """The groups of one step of either."""
        self.samples = random.Random(f"{self.seed}/mixed/{self.steps}").random() < self.share
        drawn = (self.sampled if self.samples else self.recorded).next()
        groups = [replace(group, id=self.groups + number) for number, group in enumerate(drawn)]
        self.steps += 1
        self.groups += len(groups)
        return groups

    def state(self) -> dict[str, Any]:
        """How many steps and groups there were, and where both sources are."""
        both = {"sampled": self.sampled.state(), "recorded": self.recorded.state()}
        return {"steps": self.steps, "groups": self.groups, **both}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after these."""
        self.steps, self.groups = int(state["steps"]), int(state["groups"])
        self.sampled.restore(state["sampled"])
        self.recorded.restore(state["recorded"])


def solution_of(task: Task) -> str:
    """The worked solution of a task; DataError for a task without one."""
    solution = task.meta.get("solution")
    if not isinstance(solution, str) or not solution.strip():
        raise DataError(
            f"task {task.id!r} has no worked solution to learn from: expected text in its 'solution' column; "
            "train this task with a sampling algorithm (grpo, rloo, …) or give demonstrations"
        )
    return solution


def preference_of(task: Task) -> tuple[str, str]:
    """The chosen and the rejected completion of a task; DataError for a task without both."""
    sides = [task.meta.get(side) for side in ("chosen", "rejected")]
    chosen, rejected = (side if isinstance(side, str) and side.strip() else None for side in sides)
    if chosen is None or rejected is None:
        missing = "rejected" if chosen is not None else "chosen"
        raise DataError(
            f"task {task.id!r} has no {missing} completion to learn a preference from: expected text in its 'chosen' "
            "and 'rejected' columns; give such data, or form pairs of what the policy samples (pairs = \"one\")"
        )
    return chosen, rejected


def demonstration(task: Task, solution: str, chat: Chat, tool: Tool | None = None) -> Rollout:
    """A worked solution as the rollout that would have written it.

    What the tool would have inserted is masked, and tokenised in the same pieces as at sampling time. Log-probs are 0:
    nobody sampled it, so losses that need a sampler's log-probs have no business with it. Where the task demonstrates
    several turns, these are what the solution stands for.
    """
    turns = turns_shown(task)
    if turns is not None and solution == task.meta.get("solution"):
        return demonstrated_episode(task, turns, chat)
    prompt = chat.prompt(task.prompt)
    tokens, mask = list(prompt), [False] * len(prompt)
    for piece, chosen in _pieces(solution, tool):
        ids = chat.encode(piece)
        tokens += ids
        mask += [chosen] * len(ids)
    end = chat.completion("")
    tokens += end
    mask += [True] * len(end)
    return Rollout(
        task.id, tuple(tokens), tuple(mask), (0.0,) * len(tokens), Finish.STOP, solution,
        spans_of(len(prompt), mask[len(prompt) :]),
    )  # fmt: skip


def _pieces(text: str, tool: Tool | None) -> list[tuple[str, bool]]:
    """Cut a solution where the tool would have written: pairs (text, whether the model chose it)."""
    if tool is None:
        return [(text, True)]
    pieces: list[tuple[str, bool]] = []
    start = search = 0
    while (found := text.find(tool.trigger, search)) >= 0:
        search = found + len(tool.trigger)
        reply = tool(text[:search])
        if reply and text.startswith(reply, search):
            pieces += [(text[start:search], True), (reply, False)]
            start = search = search + len(reply)
    return [*pieces, (text[start:], True)] if start < len(text) else pieces
