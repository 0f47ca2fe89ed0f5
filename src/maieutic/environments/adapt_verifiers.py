"""Environments of verifiers (`MultiTurnEnv`, `SingleTurnEnv`, `ToolEnv`), played by their own `rollout`.

    env.rollout(row, client, model) ─► get_model_response(prompt) ─ asks ─► the model's turn
                        ▲                                                        │
                        └──────────────────── the response ◄────────────────────┘

The environment's own loop runs as it is, with `setup_state`, `env_response` and stop conditions; only where it would
ask a server for the model's turn, it waits for the one that is played here. So whatever an environment overrides holds,
in every version that has `rollout` and `get_model_response` (0.1, 0.2). What comes into a conversation between two of
its questions is what the model is shown.

An environment may only append to a conversation: one that rewrites what was said cannot be trained on as one sequence.
"""

from __future__ import annotations

import asyncio
import copy
import importlib
import inspect
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from maieutic.environments.foreign import library, row_number
from maieutic.environments.tool_calls import read_calls
from maieutic.errors import ConfigError
from maieutic.protocols import Reply
from maieutic.types import Message, Score, Task


class Judged(Protocol):
    """What a rubric said of one state; as `maieutic.rewards.adapt_values.Read`."""

    @property
    def reward(self) -> float | None: ...
    @property
    def parts(self) -> Mapping[str, float]: ...
    @property
    def note(self) -> str: ...
    @property
    def wrong(self) -> str: ...


#: (rubric, states) → what it says of each.
Judge = Callable[[Any, Sequence[dict[str, Any]]], Awaitable[Sequence[Judged]]]


class VerifiersEnvironment:
    """An environment of verifiers' kind. Its rubric scores, by `judge`, one episode at a time.

    A task with messages and an answer is played as it is; one of the taskset "episodes" is the row of its number in
    the environment's own data set (the split "train", else the one for evaluation). `max_turns` bounds an environment
    that has no bound; `right_above`: an episode of a greater reward is a right answer.
    """

    def __init__(
        self, made: Any, judge: Judge, name: str = "verifiers", max_turns: int = 10, right_above: float = 0.5
    ) -> None:
        if not is_verifiers(made):
            raise ConfigError(
                f"environment {name!r}: got {type(made).__name__}; expected one of verifiers' with `rollout`, "
                "`get_model_response` and `rubric` (0.1, 0.2, or the old API of later versions)"
            )
        together = _of_groups(made.rubric)
        if together:
            raise ConfigError(
                f"environment {name!r}: {', '.join(together)} of its rubric judge a whole group, and an episode is "
                "judged by itself. Remedy: leave them out of the rubric, and give them as rewards of the stage"
            )
        self.made, self.judge, self.name, self.scores = made, judge, name, True
        own = getattr(made, "max_turns", -1)
        self.max_turns = own if isinstance(own, int) and own > 0 else max_turns
        self.right_above = right_above

    async def start(self, task: Task, seed: str) -> VerifiersEpisode:  # noqa: ARG002  (its chance is its own)
        """An episode, up to the model's first turn."""
        episode = VerifiersEpisode(self, self.row(task))
        await episode.begin()
        return episode

    def row(self, task: Task) -> dict[str, Any]:
        """The row of a data set that a task is."""
        if "number" not in task.meta:
            prompt = [{"role": message.role, "content": message.content} for message in task.prompt]
            asked = {"prompt": prompt, "answer": task.answer or "", "info": dict(task.meta)}
            return {**asked, "example_id": 0}
        evaluated = task.meta.get("split", "train") != "train"
        data = (self.made.get_eval_dataset if evaluated else self.made.get_dataset)()
        row = dict(data[row_number(task, len(data))])
        row.setdefault("answer", "")
        row.setdefault("example_id", task.meta["number"])
        row["info"] = row.get("info") or {}
        return row


class VerifiersEpisode:
    """One rollout of the environment's, which waits for its model's turns."""

    def __init__(self, environment: VerifiersEnvironment, row: dict[str, Any]) -> None:
        self.environment, self.row = environment, row
        self.state: dict[str, Any] = {}
        self.said: list[dict[str, Any]] = []
        """The conversation as the model has seen it."""
        self.opening: tuple[Message, ...] = ()
        self.tools: tuple[Mapping[str, Any], ...] = ()
        self._asked: asyncio.Queue[list[dict[str, Any]]] = asyncio.Queue()
        self._turn: asyncio.Queue[Any] = asyncio.Queue()
        self._rollout: asyncio.Task[Any] | None = None

    async def begin(self) -> None:
        """Run its loop up to the first turn of the model."""
        self._rollout = asyncio.ensure_future(self._run())
        asked = await self._next()
        if asked is None:
            raise RuntimeError("the environment ended before the model's first turn")
        self.said = asked
        self.opening = tuple(_message(each) for each in asked)

    async def step(self, message: Message) -> Reply:
        """Hand the turn over, and wait until the environment asks for another one, or ends."""
        response, turn = self._response(message.content)
        self.said = [*self.said, turn]
        before = len(self.said)
        await self._turn.put(response)
        asked = await self._next()
        if asked is None:
            return Reply(tuple(map(_message, self._added(before))), done=True)
        if [_plain(each) for each in asked[:before]] != [_plain(each) for each in self.said]:
            raise RuntimeError("it rewrites what was said before; expected one that only appends to a conversation")
        self.said = asked
        return Reply(tuple(map(_message, asked[before:])))

    async def score(self) -> Score:
        """What the rubric says of the state; of one that was cut, as far as it came."""
        state = self.state
        for key, usual in (("prompt", []), ("answer", ""), ("task", "default"), ("info", {})):
            with suppress(KeyError):
                state[key]
                continue
            state[key] = self.row.get(key, usual)  # an old version keeps its state to itself until the end
        if not state.get("completion"):
            state["completion"] = self.said[len(self.opening) :]
        (read,) = await self.environment.judge(self.environment.made, [state])
        if read.wrong:
            raise RuntimeError(f"its rubric failed: {read.wrong.strip().splitlines()[-1]}")
        right = None if read.reward is None else read.reward > self.environment.right_above
        return Score(read.reward, right, dict(read.parts), note=read.note)

    async def close(self) -> None:
        """End its loop."""
        if self._rollout is not None and not self._rollout.done():
            self._rollout.cancel()
            with suppress(asyncio.CancelledError):
                await self._rollout

    async def _run(self) -> None:
        made = copy.copy(self.environment.made)
        made.get_model_response = self._ask
        given: dict[str, Any] = {"client": _client(made), "model": "maieutic", "sampling_args": {}}
        if "input" in inspect.signature(made.rollout).parameters:
            given["input"] = self.row
        else:
            given.update({key: self.row[key] for key in ("prompt", "answer", "info")})
            given["task"] = self.row.get("task", "default")
        found = await made.rollout(**given)
        completion, state = found if isinstance(found, tuple) else (None, found)
        if completion is not None:
            state["completion"] = completion
        self.state = state

    async def _ask(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the environment's `get_model_response`, which has had several signatures."""
        values = [*args, *kwargs.values()]
        for value in values:
            if isinstance(value, dict) and value.keys() & {"prompt", "input", "trajectory"}:
                self.state = value
        prompt = kwargs.get("prompt") or next(value for value in values if isinstance(value, list))
        made = self.environment.made
        tools = kwargs.get("oai_tools") or self.state.get("tool_defs") or getattr(made, "oai_tools", None) or ()
        self.tools = tuple(map(_schema, tools))
        await self._asked.put([_as_dict(each) for each in prompt])
        return await self._turn.get()

    async def _next(self) -> list[dict[str, Any]] | None:
        """What it asks next; None where it has ended. Raises what it raised."""
        assert self._rollout is not None
        asked = asyncio.ensure_future(self._asked.get())
        await asyncio.wait([asked, self._rollout], return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        asked.cancel()
        self._rollout.result()
        error = self.state.get("error")
        if error is not None:
            raise RuntimeError(f"{type(error).__name__}: {error}")
        return None

    def _added(self, before: int) -> list[dict[str, Any]]:
        completion = self.state.get("completion") or ()
        shown = [_as_dict(each) for each in completion] if not isinstance(completion, str) else []
        return shown[before - len(self.opening) :]

    def _response(self, text: str) -> tuple[Any, dict[str, Any]]:
        """The turn as the environment's version has responses, and as a message."""
        calls = []
        if self.tools:
            names = {tool["function"]["name"] for tool in self.tools}
            read = [call for call in read_calls(text, names, fenced=False) if not call.problem]
            calls = [(f"call_{number}", call.name, json.dumps(call.arguments)) for number, call in enumerate(read)]
        turn = {"role": "assistant", "content": text}
        types = importlib.import_module("verifiers.types")
        if hasattr(types, "ResponseMessage"):
            flat = [{"id": number, "name": name, "arguments": given} for number, name, given in calls]
            ended = {"finish_reason": "tool_calls" if calls else "stop", "is_truncated": False}
            message = {**turn, "tool_calls": flat or None, **ended}
            return types.Response(id="turn", created=0, model="maieutic", message=message), turn
        nested = [
            {"id": number, "type": "function", "function": {"name": name, "arguments": given}}
            for number, name, given in calls
        ]
        choice = {
            "index": 0,
            "finish_reason": "tool_calls" if calls else "stop",
            "message": {**turn, "tool_calls": nested or None},
        }
        made = {"id": "turn", "created": 0, "model": "maieutic", "object": "chat.completion", "choices": [choice]}
        return types.ChatCompletion.model_validate(made), turn


def verifiers_environment(
    where: str,
    judge: Judge,
    make: Mapping[str, Any] | None = None,
    max_turns: int = 10,
    right_above: float = 0.5,
) -> VerifiersEnvironment:
    """`environment = "verifiers:ID"`: `verifiers.load_environment(ID, **make)`, of an environment that is installed."""
    verifiers = library("verifiers", "verifiers:", "verifiers and the environment's package")
    load = getattr(verifiers, "load_environment", None)
    if load is None:
        raise ConfigError(
            f"environment 'verifiers:{where}': got verifiers {getattr(verifiers, '__version__', '')}, which has no "
            "load_environment. Remedy: a version that has (0.2 or older), or name the environment's own file: "
            '"FILE.py:load_environment"'
        )
    return VerifiersEnvironment(load(where, **dict(make or {})), judge, f"verifiers:{where}", max_turns, right_above)


def is_verifiers(found: Any) -> bool:
    """Whether an object is of this kind."""
    return all(callable(getattr(found, name, None)) for name in ("rollout", "get_model_response")) and hasattr(
        found, "rubric"
    )


def _of_groups(rubric: Any) -> list[str]:
    """Names of the functions of a rubric, or of those in it, that want all rollouts of a group."""
    inner = getattr(rubric, "rubrics", None)
    if isinstance(inner, list | tuple):
        return [name for each in inner for name in _of_groups(each)]
    functions = getattr(rubric, "funcs", None) or getattr(rubric, "reward_funcs", None) or ()
    plural = {"states", "prompts", "completions", "answers", "tasks", "infos"}
    functions = functions() if callable(functions) else functions
    return [str(getattr(f, "__name__", f)) for f in functions if set(inspect.signature(f).parameters) & plural]


def _client(made: Any) -> Any:
    """A client that is never used, of the kind that versions with clients of their own insist on."""
    if "input" not in inspect.signature(made.rollout).parameters:
        return None
    try:
        kind = importlib.import_module("verifiers.clients").Client
    except (ImportError, AttributeError):
        return None
    blank: dict[str, Any] = dict.fromkeys(getattr(kind, "__abstractmethods__", ()))
    return object.__new__(type("NoClient", (kind,), blank))


def _as_dict(message: Any) -> dict[str, Any]:
    if isinstance(message, Mapping):
        return dict(message)
    return dict(message.model_dump(exclude_none=True))


def _plain(message: Mapping[str, Any]) -> tuple[str, str]:
    return str(message.get("role")), _text(message.get("content"))


def _message(message: Mapping[str, Any]) -> Message:
    return Message(*_plain(message))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


def _schema(tool: Any) -> dict[str, Any]:
    """A tool as chat templates take it; later versions of verifiers have flat ones."""
    told = _as_dict(tool)
    if "function" in told:
        return told
    about = {key: told[key] for key in ("name", "description", "parameters") if key in told}
    return {"type": "function", "function": about}
