"""From judged completions to groups in a reward model's tokens, and their source.

A group holds all completions of one prompt, so that the prompt is computed once. `Score.reward` is the label of the
whole, `Score.step_rewards` those of steps, at the last token of each (`core.reward_modelling` says where they act).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maieutic.errors import ConfigError, DataError
from maieutic.models.reward_model import RewardModel
from maieutic.rollout import spans_of
from maieutic.sources import Order
from maieutic.steps import Steps
from maieutic.tasks.judged import Judged, Preference, by_prompt, prompt_key
from maieutic.types import Finish, Group, Message, Rollout, Score, Task


@dataclass(frozen=True)
class Written:
    """A completion in a reward model's tokens: `ends` of its steps count tokens of the completion."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    ends: tuple[int, ...]


def written(model: RewardModel, prompt: Sequence[Message], steps: Sequence[str], finished: bool = True) -> Written:
    """Tokens of a completion, a step at a time, with the model's marks; the stop token ends the last step."""
    tokens: list[int] = []
    ends = []
    for number, step in enumerate(steps):
        tokens += model.chat.encode(step)
        tokens += [model.chat.end_id] if finished and number == len(steps) - 1 else []
        ends.append(len(tokens))
    made, at = model.marked(tokens, ends)
    return Written(tuple(model.chat.prompt(prompt)), made, tuple(at))


class JudgedSource:
    """The groups, `prompts` of them a step, in an order that is a function of (seed, visit); see `protocols.Source`."""

    samples = False

    def __init__(self, groups: Sequence[Group], prompts: int, seed: int | str = 0) -> None:
        if prompts < 1:
            raise ConfigError(f"JudgedSource: got prompts={prompts}; expected at least 1")
        self.groups, self.prompts = groups, prompts
        self.order = Order(len(groups), seed)
        self.visits = 0

    def next(self) -> list[Group]:
        """The groups of the next step."""
        found = [self.groups[self.order[visit]] for visit in range(self.visits, self.visits + self.prompts)]
        self.visits += self.prompts
        return found

    def state(self) -> dict[str, Any]:
        """How many groups were shown."""
        return {"visits": self.visits}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on after that many."""
        self.visits = int(state["visits"])


def outcome_groups(model: RewardModel, judged: Iterable[Judged], *, steps: bool = False) -> list[Group]:
    """Groups with the label of each whole completion; those without one are left out.

    `steps`: with the ends of steps too, as the model's delimiter cuts them (where labels are to stand at each).
    """
    cut = Steps(model.chat, model.settings.delimiter) if steps else None

    def score(each: Judged, made: Written) -> Score:
        label = whole(each)
        if cut is None or label is None:
            return Score(label)
        ends = cut.ends(made.completion, (True,) * len(made.completion))
        return Score(label, step_rewards=tuple((len(made.prompt) + end - 1, label) for end in ends))

    return _groups(model, [each for each in judged if whole(each) is not None], score)


def process_groups(model: RewardModel, judged: Iterable[Judged]) -> list[Group]:
    """Groups with the labels of steps, as far as there are any. Raises DataError where no completion has one."""
    kept = [each for each in judged if any(label is not None for label in each.labels)]
    if not kept:
        raise DataError(
            "got no labels of steps; expected data whose steps are judged (layouts steps, stepwise, math_shepherd, "
            'prm800k). Train kind = "outcome" on completions that are judged as a whole'
        )

    def score(each: Judged, made: Written) -> Score:
        labels = [(len(made.prompt) + end - 1, z) for end, z in zip(made.ends, each.labels) if z is not None]
        return Score(labels[-1][1], step_rewards=tuple(labels))

    return _groups(model, kept, score)


def pair_groups(model: RewardModel, preferences: Iterable[Preference]) -> list[Group]:
    """Groups of two, the chosen one first, with reward 0 for the other one and for the chosen one the margin (1 where
    nobody said how much better it is)."""
    groups = []
    for number, pair in enumerate(preferences):
        task = Task(f"{prompt_key(pair.prompt)}/{number}", pair.prompt)
        sides = [written(model, pair.prompt, (text,)) for text in (pair.chosen, pair.rejected)]
        scores = [_fitting(model, made, Score(value)) for made, value in
                  zip(sides, (1.0 if pair.margin is None else pair.margin, 0.0))]  # fmt: skip
        rollouts = tuple(_rollout(task, made, True, i) for i, made in enumerate(sides))
        groups.append(Group(task, rollouts, tuple(scores), id=number))
    return groups


def pairs_of(judged: Iterable[Judged], cap: int | None = 4) -> list[Preference]:
    """Of each prompt its right completions, each with a wrong one, at most `cap` pairs: no completion is in two."""
    pairs = []
    for members in by_prompt(judged).values():
        right = [m.text for m in members if (z := whole(m)) is not None and z > 0.5]
        wrong = [m.text for m in members if (z := whole(m)) is not None and z <= 0.5]
        pairs += [Preference(members[0].prompt, a, b) for a, b in list(zip(right, wrong))[:cap]]
    return pairs


def whole(judged: Judged) -> float | None:
    """The label of a whole completion: its own, else that of its worst step where all are labelled."""
    if judged.label is not None or not judged.labels:
        return judged.label
    known = [label for label in judged.labels if label is not None]
    return min(known) if len(known) == len(judged.labels) else None


def too_long(groups: Iterable[Group]) -> int:
    """How many completions do not fit into the model's context, and are left out."""
    return sum(score.reward is None for group in groups for score in group.scores)


def _groups(model: RewardModel, judged: Sequence[Judged], score: Any) -> list[Group]:
    groups = []
    for number, (key, members) in enumerate(by_prompt(judged).items()):
        task = Task(key, members[0].prompt)
        made = [written(model, each.prompt, each.steps, each.finished) for each in members]
        scores = [_fitting(model, tokens, score(each, tokens)) for each, tokens in zip(members, made)]
        rollouts = [_rollout(task, tokens, each.finished, i) for i, (each, tokens) in enumerate(zip(members, made))]
        groups.append(Group(task, tuple(rollouts), tuple(scores), id=number))
    return groups


def _fitting(model: RewardModel, made: Written, score: Score) -> Score:
    size = len(made.prompt) + len(made.completion)
    if not made.completion:
        return Score(None, note="an empty completion")
    if model.limit is not None and size > model.limit:
        return Score(None, note=f"{size} tokens; the model reads {model.limit}")
    return score


def _rollout(task: Task, made: Written, finished: bool, sibling: int) -> Rollout:
    start, size = len(made.prompt), len(made.completion)
    mask = (False,) * start + (True,) * size
    finish = Finish.STOP if finished else Finish.LENGTH
    tokens = (*made.prompt, *made.completion)
    return Rollout(task.id, tokens, mask, (0.0,) * (start + size), finish, "", spans_of(start, mask[start:]), sibling)
