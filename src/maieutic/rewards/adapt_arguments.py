"""What reward functions are given: the task and the completions, in the words of each family (`adapt.FAMILIES`).

The columns of a task are what its row had, under the row's own names, with the answer and the question also under the
names that people give them (`GOLD`, `ASKED`) where the row has no column of that name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maieutic.types import Task

#: Names of columns that hold the gold answer, and the question, in people's data sets.
GOLD = ("answer", "ground_truth", "solution", "target", "label", "gold")
ASKED = ("question", "problem", "prompt")


@dataclass(frozen=True, slots=True)
class Attempt:
    """A completion as rewards see it: its text, its token ids, and whether the length limit cut it; of an episode of
    several turns, (role, text) of each, and of its opening where that is not the task's prompt."""

    text: str
    tokens: tuple[int, ...] = ()
    cut: bool = False
    turns: tuple[tuple[str, str], ...] = ()
    opening: tuple[tuple[str, str], ...] = ()


class Turn(dict[str, str]):
    """A message as a dict, whose entries are attributes as well."""

    __slots__ = ()

    def __getattr__(self, name: str) -> str:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class MissingColumnOfTask(KeyError):
    """A reward asks for a column that its task does not have."""

    def __init__(self, name: str, has: Iterable[str]) -> None:
        super().__init__(name)
        self.has = sorted(has)

    def __str__(self) -> str:
        return (
            f"it asks for {self.args[0]!r}, which this task lacks; there is {', '.join(self.has)}. Remedy: give the "
            f"data a column {self.args[0]!r}, or the parameter a default"
        )


class Columns(dict[str, Any]):
    """A task's columns; asking for one that it lacks says which it has."""

    def __missing__(self, name: str) -> Any:
        raise MissingColumnOfTask(name, self)


class Untrained:
    """What TRL hands over as `trainer_state`, in a place without a trainer: asking it for anything says so."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state.{name}: a reward is not told how far the run is; judge what was written")


class AnswerText:
    """What stands in for a `parser` of verifiers where none is beside the function: the text of the last answer."""

    def parse(self, text: str) -> str:
        """The text as it is."""
        return text

    def parse_answer(self, completion: Any) -> str:
        """The text of a completion, or of the last message of a conversation."""
        return completion if isinstance(completion, str) else str(completion[-1]["content"])

    def get_assistant_messages(self, completion: Any) -> list[Any]:
        """The messages of the model in a conversation."""
        return [turn for turn in completion if turn["role"] == "assistant"]


def question(task: Task) -> str:
    """The text of the last user message."""
    return next((message.content for message in reversed(task.prompt) if message.role == "user"), "")


def columns_of(task: Task) -> Columns:
    """The task's columns by name (see the top of the file)."""
    made = Columns(dict.fromkeys(GOLD, task.answer) | dict.fromkeys(ASKED, question(task)) | {"id": task.id})
    made.update(task.meta)
    return made


def prompt_of(task: Task, attempt: Attempt, conversational: bool) -> Any:
    """The prompt: messages, of an episode those that it opened with; or the text of the task's last user message."""
    if conversational:
        said = attempt.opening or [(message.role, message.content) for message in task.prompt]
        return [Turn(role=role, content=content) for role, content in said]
    return question(task)


def completion_of(attempt: Attempt, conversational: bool) -> Any:
    """The completion: a conversation, of one message where the model answered once; or its text."""
    if conversational:
        return [Turn(role=role, content=content) for role, content in attempt.turns or [("assistant", attempt.text)]]
    return attempt.text


def for_one(task: Task, attempt: Attempt, conversational: bool) -> dict[str, Any]:
    """What plain and course functions may ask for."""
    return {
        "prompt": prompt_of(task, attempt, conversational),
        "completion": completion_of(attempt, conversational),
        "answer": task.answer,
        "task": task,
        "example": columns_of(task),
    }


def state_of(task: Task, attempt: Attempt, conversational: bool) -> dict[str, Any]:
    """The state of a rollout as verifiers keeps it: what functions ask for by name, and room for what they note."""
    columns = columns_of(task)
    info = task.meta.get("info")
    if isinstance(info, str):
        info = _parsed(info)
    kind = task.meta.get("task")
    return {
        "id": task.id,
        "prompt": prompt_of(task, attempt, conversational),
        "completion": completion_of(attempt, conversational),
        "answer": "" if task.answer is None else task.answer,
        "task": kind if isinstance(kind, str) else "default",
        "info": dict(info) if isinstance(info, Mapping) else dict(columns),
        "input": dict(columns),
        "turn": sum(role == "assistant" for role, _ in attempt.turns) or 1,
        "is_completed": True,
        "is_truncated": attempt.cut,
        "responses": [],
        "trajectory": [],
        "timing": {"generation_ms": 0.0, "scoring_ms": 0.0, "total_ms": 0.0},
        "metrics": {},
        "reward": None,
    }


#: What functions of verifiers ask for by name is in the state under that name.
_OF_STATE = ("prompt", "completion", "answer", "task", "info")


def of_state(state: dict[str, Any]) -> dict[str, Any]:
    """What a function of verifiers may ask for, of one rollout."""
    return {**{name: state[name] for name in _OF_STATE}, "state": state, "parser": AnswerText()}


def of_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a group function of verifiers may ask for."""
    lists = {f"{name}s": [state[name] for state in states] for name in _OF_STATE}
    return {**lists, "states": list(states), "parser": AnswerText()}


def for_trl(task: Task, attempts: Sequence[Attempt], conversational: bool) -> dict[str, Any]:
    """What TRL hands over: a list for each column, with an entry for each completion."""
    n = len(attempts)
    return {
        **{name: [value] * n for name, value in columns_of(task).items() if name not in ("prompt", "completion")},
        "prompts": [prompt_of(task, attempt, conversational) for attempt in attempts],
        "completions": [completion_of(attempt, conversational) for attempt in attempts],
        "completion_ids": [list(attempt.tokens) for attempt in attempts],
        "trainer_state": Untrained(),
        "environments": None,
    }


def for_verl(task: Task, attempt: Attempt) -> dict[str, Any]:
    """What verl hands over. Rows of its own data sets have `data_source` and `extra_info`."""
    extra = task.meta.get("extra_info")
    return {
        "data_source": task.meta.get("data_source", task.id.partition("/")[0]),
        "solution_str": attempt.text,
        "model_output": attempt.text,
        "ground_truth": columns_of(task)["ground_truth"],
        "extra_info": dict(extra) if isinstance(extra, Mapping) else dict(columns_of(task)),
    }


def for_openrlhf(task: Task, attempts: Sequence[Attempt]) -> dict[str, Any]:
    """What OpenRLHF hands over; a query is the prompt with the completion after it."""
    asked = question(task)
    columns = columns_of(task)
    return {
        "queries": [asked + attempt.text for attempt in attempts],
        "prompts": [asked for _ in attempts],
        "labels": [columns["label"] for _ in attempts],
    }


def for_gym(task: Task, attempt: Attempt) -> dict[str, Any]:
    """What reasoning-gym's `score_answer` takes: the answer as the completion gives it, and the entry."""
    entry = task.meta.get("entry")
    made = {"question": question(task), "answer": task.answer, "metadata": dict(task.meta)}
    return {"answer": given_answer(attempt.text), "entry": dict(entry) if isinstance(entry, Mapping) else made}


def given_answer(text: str) -> str:
    """What stands between the last `<answer>` and `</answer>`; else after the last `####`; else the whole text."""
    before, closing, _ = text.rpartition("</answer>")
    if closing and "<answer>" in before:
        return before.rpartition("<answer>")[2].strip()
    return text.rpartition("####")[2].strip()


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return None
