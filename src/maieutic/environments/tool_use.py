"""A model that calls tools in its turns: it writes calls, reads what they came to, and in the end answers without one.

    user        How much is 17 % of 2,340?
    assistant   <tool_call>{"name": "calculator", "arguments": {"expression": "0.17 * 2340"}}</tool_call>
    tool        397.8
    assistant   #### 397.8                                          no call: the episode ends

Whatever goes wrong with a call (no such tool, no JSON, wrong arguments, an exception, too much time) is what the tool
answers, and is counted. The run's reward judges the last turn: what tools wrote is not the model's answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from maieutic.environments.tool_calls import ToolCall, read_calls
from maieutic.environments.tool_functions import Answer, ToolFunction
from maieutic.errors import ConfigError
from maieutic.protocols import Reply
from maieutic.types import Message, Score, Task

#: Seconds beyond the tools' own limits; and for waiting until a sandbox is free, where a tool keeps its own time.
_SPARE_SECONDS, _QUEUE_SECONDS = 30.0, 600.0


class ToolUse:
    """An environment of tools, for any tasks.

    `tools` may be called up to `max_calls` times in a turn; a reply has up to `reply_characters`. `fenced`: whether a
    fence with a tool's name is a call. `describe`: whether the model is told of the tools (through its chat template,
    or in words where the template knows no tools).
    """

    def __init__(
        self,
        tools: Sequence[ToolFunction],
        max_turns: int = 6,
        max_calls: int = 8,
        reply_characters: int = 4000,
        fenced: bool = True,
        describe: bool = True,
        name: str = "tools",
    ) -> None:
        check_tools(tools)
        for key, value in (("max_calls", max_calls), ("reply_characters", reply_characters)):
            if value < 1:
                raise ConfigError(f"environment {name!r}: got {key} = {value}; expected at least 1")
        self.name = name
        self.max_turns = max_turns
        self.tools = tuple(tools)
        self.manner = Manner(max_calls, reply_characters, fenced, describe)

    @property
    def scores(self) -> bool:
        """No episode has a score of its own: the answer is for rewards to judge."""
        return False

    @property
    def timeout_seconds(self) -> float:
        """Of a turn: each call keeps its own time, so this ends only what got lost."""
        spare = _QUEUE_SECONDS if any(tool.seconds is None for tool in self.tools) else _SPARE_SECONDS
        return spare + self.manner.max_calls * max((tool.seconds or 0.0) for tool in self.tools)

    async def start(self, task: Task, seed: str) -> ToolEpisode:  # noqa: ARG002  (tools have no chance of their own)
        """An episode of the task, which opens with the task's own prompt."""
        return ToolEpisode(task.prompt, [tool.for_episode() for tool in self.tools], self.manner)


class Manner:
    """How calls are read and answered; fields as those of `ToolUse`."""

    def __init__(
        self, max_calls: int = 8, reply_characters: int = 4000, fenced: bool = True, describe: bool = True
    ) -> None:
        self.max_calls, self.reply_characters = max_calls, reply_characters
        self.fenced, self.describe = fenced, describe


class ToolEpisode:
    """One attempt, with tools of its own. `score` and `close` are what those say that made it."""

    judges_last_turn = True

    def __init__(
        self,
        opening: Sequence[Message],
        tools: Sequence[ToolFunction],
        manner: Manner,
        scored: Callable[[], Awaitable[Score | None]] | None = None,
    ) -> None:
        self.opening = tuple(opening)
        self._tools = {tool.name: tool for tool in tools}
        self._manner = manner
        self._scored = scored
        self.calls = self.failed = 0

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """What the model is told of its tools, as chat templates take it."""
        return tuple(tool.schema for tool in self._tools.values()) if self._manner.describe else ()

    @property
    def parts(self) -> dict[str, float]:
        """What was called so far, and what of it failed."""
        return {"tool_calls": float(self.calls), "failed_tool_calls": float(self.failed)}

    async def step(self, message: Message) -> Reply:
        """Answer the turn's calls one after the other; a turn without one ends the episode."""
        calls = read_calls(message.content, self._tools, self._manner.fenced)
        if not calls:
            return Reply(done=True)
        answers = [await self._answer(call) for call in calls[: self._manner.max_calls]]
        beyond = len(calls) - len(answers)
        if beyond:
            text = f"error: {beyond} more calls were left out; {self._manner.max_calls} may be made in a turn"
            answers.append(Answer(text, failed=True))
        self.calls += len(calls)
        self.failed += sum(answer.failed for answer in answers) + max(0, beyond - 1)
        return Reply(tuple(Message("tool", self._cut(answer.text)) for answer in answers))

    async def _answer(self, call: ToolCall) -> Answer:
        if call.problem:
            return Answer(f"error: {call.problem}", failed=True)
        tool = self._tools.get(call.name)
        if tool is None:
            known = ", ".join(self._tools)
            return Answer(f"error: there is no tool {call.name[:60]!r}; the tools are {known}", failed=True)
        return await tool(call.arguments)

    def _cut(self, text: str) -> str:
        most = self._manner.reply_characters
        # text from elsewhere may hold what no tokenizer takes (half a surrogate pair)
        text = text.encode("utf-8", "replace").decode("utf-8")
        return text if len(text) <= most else f"{text[:most]}\n… ({len(text) - most} characters left out)"

    async def score(self) -> Score | None:
        """The environment's own score, if it has one."""
        return None if self._scored is None else await self._scored()

    async def close(self) -> None:
        """Nothing is held."""


def check_tools(tools: Sequence[ToolFunction]) -> None:
    """Raise ConfigError where there is none, or two have the same name."""
    names = [tool.name for tool in tools]
    if not names:
        raise ConfigError('got no tool; expected some, as tools = ["calculator"]')
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"got two tools named {', '.join(twice)}; expected a name each. Remedy: rename a function")


def described(tools: Sequence[Mapping[str, Any]]) -> str:
    """The tools in words, for a model whose chat template knows none."""
    lines = ["You may use tools. To call one, write:", '<tool_call>{"name": "…", "arguments": {…}}</tool_call>']
    lines.append("You are then shown what it returned. When you know the answer, give it without a call.")
    lines.append("The tools:")
    for tool in tools:
        function = tool["function"]
        parameters = function["parameters"]
        wanted = ", ".join(
            f"{name}: {_kind(about)}" + ("" if name in parameters["required"] else " (optional)")
            for name, about in parameters["properties"].items()
        )
        lines.append(f"- {function['name']}({wanted}): {' '.join(function['description'].split())}")
        for name, about in parameters["properties"].items():
            if "description" in about:
                lines.append(f"    {name}: {about['description']}")
    return "\n".join(lines)


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"])
    return str(schema.get("type", "any"))
