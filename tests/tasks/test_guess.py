"""The verifier of the guessing game: what a transcript must end with, and that the game agrees."""

from __future__ import annotations

import asyncio

import pytest

from maieutic.tasks import make_taskset
from maieutic.tasks.guess import LastGuess
from maieutic.types import Message, Task

SEVEN = Task("g", (Message("user", "guess my number from 1 to 8 in 4 turns , I say higher or lower"),), "7")


@pytest.mark.parametrize(
    "text",
    [
        "7",
        " 7\n",
        "4 higher 6 higher 7",
        "8 lower say a number from 1 to 8 7",
        "9 say a number from 1 to 8 higher 7",
        "4\nhigher\nassistant\n7",  # as chat templates write it, without their marks
        "<think>5 is half.</think>5 higher <think>It may be 8.</think> 7",
    ],
)
def test_a_number_alone_in_the_last_turn_is_a_guess(text: str) -> None:
    assert LastGuess()(SEVEN, text).correct


@pytest.mark.parametrize(
    "text",
    [
        "", "6", "7 higher", "7 higher 6", "7 8", "8 7", "7 thousand", ">= 7", "7.", "7-7", "-7", "7.0", "07", "٧",
        "７", "7 assistant", "assistant", "<think>7</think>", "<think>7", "</think>", "5 higher <think>7",
        "flower 7", "highers 7", SEVEN.prompt[0].content, "7" * 10_000, "higher " * 5_000 + "and 7", " " * 50_000 + "x",
    ],
)  # fmt: skip
def test_anything_else_is_none(text: str) -> None:
    verdict = LastGuess()(SEVEN, text)
    assert not verdict.correct
    assert verdict.why


@pytest.mark.parametrize(
    "turns", [("7",), ("4", "6", "7"), ("8", "x", "7"), ("<think>7</think>", "7"), ("4", "6", "5", "8")]
)
def test_the_game_agrees(turns: tuple[str, ...]) -> None:
    tasks = make_taskset("guess")

    async def played() -> tuple[str, bool | None]:
        game, said = await tasks.environment.start(SEVEN, ""), []
        for turn in turns:
            reply = await game.step(Message("assistant", turn))
            said += [turn, *(message.content for message in reply.messages)]
            if reply.done:
                break
        return " ".join(said), (await game.score()).correct

    transcript, won = asyncio.run(played())
    assert tasks.verifier(SEVEN, transcript).correct is won


def test_the_game_takes_no_guess_from_a_thought() -> None:
    async def first(text: str) -> bool:
        game = await make_taskset("guess").environment.start(SEVEN, "")
        return (await game.step(Message("assistant", text))).done

    assert asyncio.run(first("<think>3 or 4</think>I say 7"))
    assert not asyncio.run(first("<think>7</think>I cannot say"))
    assert not asyncio.run(first("<think>7"))
