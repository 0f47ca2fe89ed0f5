"""What both programs of the benchmark `accuracy` load: command line, problems, reward, clock. Nothing but Python.

    problems.jsonl      {"prompt", "answer"} a line, met in this order
    OUT/10.safetensors  the weights after step 10, by their names in the Hugging Face module

A program prints one JSON line, `Record.told`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: When the program began, or nearly: this module is the first that it loads.
BEGAN = time.perf_counter()


def right(text: str, answer: str) -> bool:
    """Whether the text ends with `# ANSWER`, as worked solutions do."""
    _, mark, rest = text.rpartition("#")
    return bool(mark) and rest.strip() == answer


def read_problems(path: Path) -> list[dict[str, str]]:
    """The rows of the file, in its order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


class Clock:
    """Seconds of the wall and of the processor since it was made, without those inside of `paused`."""

    def __init__(self) -> None:
        self._zero = (time.perf_counter(), time.process_time())

    def read(self) -> dict[str, float]:
        """Now."""
        return {
            "seconds": time.perf_counter() - self._zero[0],
            "cpu_seconds": time.process_time() - self._zero[1],
        }

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing in here counts."""
        before = self.read()
        yield
        after = self.read()
        self._zero = (
            self._zero[0] + after["seconds"] - before["seconds"],
            self._zero[1] + after["cpu_seconds"] - before["cpu_seconds"],
        )


class Record:
    """What happened at each step; at every `given.every`th and at the last, the weights are kept, off the clock.

    Its clock starts where it is made, which is to be right before the first step.
    """

    def __init__(self, given: argparse.Namespace, save: Callable[[Path], object]) -> None:
        self.startup = {"seconds": time.perf_counter() - BEGAN, "cpu_seconds": time.process_time()}
        self.given, self.save = given, save
        self.steps: list[dict[str, float]] = []
        self.clock = Clock()

    def step(self, reward: float, tokens: float) -> None:
        """A step is over: its mean reward, and the mean length of its completions in tokens."""
        number = len(self.steps) + 1
        self.steps.append({"step": number, **self.clock.read(), "reward": reward, "tokens": tokens})
        if number % self.given.every == 0 or number == self.given.steps:
            with self.clock.paused():
                self.save(self.given.out / f"{number}.safetensors")

    def told(self) -> str:
        """The line that is printed at the end."""
        return json.dumps({"startup": self.startup, "steps": self.steps})


def parse(said: str | None, arguments: list[str] | None) -> argparse.Namespace:
    """The command line of a program whose docstring this is."""
    parser = argparse.ArgumentParser(description=said, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--data", "--out"):
        parser.add_argument(name, type=Path, required=True)
    sizes = {"--steps": 100, "--every": 10, "--prompts": 16, "--generations": 8, "--max-completion": 64, "--micro": 16}
    for name, usual in {**sizes, "--threads": 1, "--seed": 0}.items():
        parser.add_argument(name, type=int, default=usual)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
    return parser.parse_args(arguments)


def arguments_of(settings: dict[str, Any]) -> list[str]:
    """The command line that says this."""
    return [str(part) for name, value in settings.items() for part in (f"--{name.replace('_', '-')}", value)]
