"""`maieutic sample`: what a model writes, beside what it was asked and how it is judged."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maieutic.cli.models import Device, Length, ModelName, Options, Speaker, TaskName, Template, Threads, load
from maieutic.cli.screen import Json, Quiet, Screen, screen
from maieutic.cli.values import settings, taskset
from maieutic.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text as RichText

    from maieutic.attempts import Attempt as Judged
    from maieutic.protocols import Chat, Completion, Taskset
    from maieutic.types import Task, Verdict


def sample(
    context: typer.Context,
    model: ModelName,
    task: TaskName,
    n: Annotated[int, typer.Option("--n", "-n", min=1, metavar="N", help="Tasks to show.")] = 3,
    index: Annotated[int | None, typer.Option(min=0, metavar="I", help="Begin with this task.")] = None,
    at_random: Annotated[bool, typer.Option("--random", help="Tasks drawn at random.")] = False,
    samples: Annotated[int, typer.Option(min=1, metavar="N", help="Completions of each task.")] = 1,
    temperature: Annotated[float, typer.Option(min=0, metavar="T", help="0 is greedy.")] = 1.0,
    max_completion_length: Length = None,
    options: Options = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Seeds the samples and --random.")] = 0,
    template: Template = None,
    device: Device = "cpu",
    threads: Threads = None,
    json: Json = None,
    quiet: Quiet = False,
) -> None:
    """Show what a model writes: the prompt, the completion (what a tool wrote stands out), and the verdict."""
    show = screen(context, json, quiet)
    if at_random and index is not None:
        raise ConfigError("got --random and --index; expected one of the two")
    tasks = taskset(task, settings(options or []), split="test")
    chosen = _chosen(tasks, n, index or 0, seed if at_random else None)
    speaker = load(model, device=device, threads=threads, template=template)
    if speaker.note:
        show.note(speaker.note)
    length = speaker.length(max_completion_length)
    attempts = asyncio.run(_attempts(speaker, tasks, chosen, length, str(seed), samples, temperature))
    for attempt in attempts:
        _print(show, attempt)
    show.write_json({"model": model, "task": task, "tasks": [attempt.to_dict() for attempt in attempts]})


@dataclass(frozen=True)
class Piece:
    """A stretch of a completion and who wrote it: "assistant", "tool" or "environment"."""

    role: str
    text: str


@dataclass(frozen=True)
class Written:
    """A completion in pieces, how it ended, and its verdict."""

    pieces: tuple[Piece, ...]
    finish: str
    tokens: int
    verdict: Verdict
    turns: int | None = None
    """Of an episode."""


@dataclass(frozen=True)
class Attempt:
    """A task and what the model wrote."""

    task: Task
    completions: tuple[Written, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "id": self.task.id,
            "prompt": [{"role": m.role, "content": m.content} for m in self.task.prompt],
            "answer": self.task.answer,
            "completions": [
                {
                    "text": "".join(piece.text for piece in written.pieces),
                    "pieces": [{"role": piece.role, "text": piece.text} for piece in written.pieces],
                    "correct": written.verdict.correct,
                    "answer": written.verdict.answer,
                    "why": written.verdict.why,
                    "finish": written.finish,
                    "tokens": written.tokens,
                    **({} if written.turns is None else {"turns": written.turns}),
                }
                for written in self.completions
            ],
        }


def _chosen(tasks: Taskset, n: int, first: int, seed: int | None) -> list[Task]:
    size = len(tasks)
    if seed is not None:
        return [tasks[i] for i in random.Random(seed).sample(range(size), min(n, size))]
    if first >= size:
        raise ConfigError(f"got --index {first}; {tasks.name} has {size} tasks, expected 0 to {size - 1}")
    return [tasks[i] for i in range(first, min(first + n, size))]


async def _attempts(
    speaker: Speaker, tasks: Taskset, chosen: Sequence[Task], length: int, key: str, samples: int, temperature: float
) -> list[Attempt]:
    """All tasks at once: the sampler behind batches them."""
    from maieutic.attempts import asked

    asking = asked(speaker.sampler, speaker.chat, tasks, length)

    async def attempt(task: Task) -> Attempt:
        made = await asking.attempts(task, f"{key}/sample/{task.id}", samples, temperature)
        return Attempt(task, tuple(_written(speaker.chat, each) for each in made))

    return list(await asyncio.gather(*(attempt(task) for task in chosen)))


def _written(chat: Chat, made: Judged) -> Written:
    pieces: tuple[Piece, ...] = ()
    if made.rollout is not None:  # of an episode
        pieces = tuple(Piece(span.role, span.text) for span in made.rollout.spans if span.text)
    elif made.completion is not None:
        pieces = pieces_of(chat, made.completion)
    said = made.sample
    return Written(pieces, said.finish.value, said.tokens, made.verdict, said.turns)


def pieces_of(chat: Chat, completion: Completion) -> tuple[Piece, ...]:
    """The completion's text cut where the writer changes.

    A piece is what its tokens add to the text before them, because decoders put spaces between tokens as they please.
    """
    from maieutic.rollout import spans_of

    pieces, shown = [], ""
    for span in spans_of(0, completion.mask)[1:]:
        text = chat.decode(completion.tokens[: span.stop])
        pieces.append(Piece(span.role, text.removeprefix(shown)))
        shown = text
    return tuple(piece for piece in pieces if piece.text)


def _transcript(pieces: Sequence[Piece]) -> RichText:
    """What was written; of an episode, each turn and what was said to it on a line of its own."""
    from rich.text import Text

    text = Text("model: ", style="bold")
    before = ""
    for piece in pieces:
        if piece.role == "environment":
            text.append("\nenvironment: ", style="bold")
        elif before == "environment":
            text.append("\nmodel: ", style="bold")
        styles = {"tool": "reverse", "environment": "yellow not bold"}
        text.append(piece.text, style=styles.get(piece.role, "cyan not bold"))
        before = piece.role
    return text


def _print(show: Screen, attempt: Attempt) -> None:
    from rich.text import Text

    show.out.rule(f"[dim]{attempt.task.id}[/]", align="left", style="dim")
    for message in attempt.task.prompt:
        show.out.print(Text(f"{message.role}: ", style="bold") + Text(message.content), soft_wrap=True)
    for written in attempt.completions:
        show.out.print(_transcript(written.pieces), soft_wrap=True)
        right = written.verdict.correct
        line = Text("right" if right else "wrong", style="green" if right else "red")
        found = "no answer found" if written.verdict.answer is None else f"answered {written.verdict.answer}"
        wanted = "" if right or attempt.task.answer is None else f", expected {attempt.task.answer}"
        cut = {"length": ", cut by the length limit", "error": f", failed: {written.verdict.why}"}
        turns = "" if written.turns is None else f"{written.turns} turns, "
        line.append(f"  {found}{wanted}{cut.get(written.finish, '')}  ({turns}{written.tokens} tokens)", style="dim")
        show.out.print(line, soft_wrap=True)
    show.out.print()
