"""A reward behind an HTTP address: the completions of a group are posted, a list of scores comes back.

What is posted is JSON with a list for each of `prompts`, `completions`, `labels` (gold answers) and `query` (prompt and
completion in one), an entry for each completion: what remote reward models of OpenRLHF read, and what a server of one's
own may. What comes back is a list, or an object with the list under `rewards` or `scores`; an entry is a number, an
object of parts, or null where it cannot say.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maieutic.endpoint.pace import backoff, retry_after
from maieutic.errors import ConfigError
from maieutic.rewards.lift import FailureBudget, PlainReward

#: Layout → the lists that are posted.
LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "all": ("query", "prompts", "completions", "labels"),
    "openrlhf": ("query", "prompts", "labels"),
    "plain": ("prompts", "completions", "labels"),
}
#: Answers after which the same request may succeed.
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
#: An answer larger than this is none.
MOST_BYTES = 64 << 20


class NoScores(Exception):
    """A server gave no scores: what it said, how often it was asked, what to do."""


@dataclass(frozen=True)
class RemoteScores:
    """Asks a server for the scores of a group. Called as TRL calls its rewards; raises NoScores."""

    url: str
    layout: str = "all"
    columns: tuple[str, ...] = ()
    retries: int = 4
    timeout_seconds: float = 60.0
    token_env: str | None = None
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ConfigError(f"reward {self.url!r}: got layout {self.layout!r}; expected one of {', '.join(LAYOUTS)}")
        if self.retries < 0:
            raise ConfigError(f"reward {self.url!r}: got retries = {self.retries}; expected 0 or more")
        if self.token_env is not None and self.token_env not in os.environ:
            raise ConfigError(f"reward {self.url!r}: there is no environment variable {self.token_env}; set it")

    def __call__(self, prompts: list[str], completions: list[str], label: list[Any], **columns: list[Any]) -> list[Any]:
        """The server's scores, one a completion."""
        lists = {
            "query": [prompt + completion for prompt, completion in zip(prompts, completions)],
            "prompts": prompts,
            "completions": completions,
            "labels": label,
        }
        chosen = {name: lists[name] for name in LAYOUTS[self.layout]}
        for name in self.columns:
            if name not in columns:
                has = ", ".join(sorted(columns))
                raise NoScores(f"{self.url}: the task has no column {name!r} to post; it has {has}")
            chosen[name] = columns[name]
        return self._scores(self._answer(json.dumps(chosen, default=str).encode()))

    def _answer(self, body: bytes) -> bytes:
        """What the server says to it, asked again after failures that may pass, within the time limit."""
        deadline = time.monotonic() + self.timeout_seconds
        for attempt in range(self.retries + 1):
            try:
                return self._asked(body, max(0.1, deadline - time.monotonic()))
            except urllib.error.HTTPError as error:
                said = f"it answered {error.code} {error.reason}{_excerpt(error)}"
                asked_for = retry_after(error.headers.get("Retry-After"))
                passing = error.code in PASSING
            except (OSError, http.client.HTTPException) as error:  # refused, reset, no such host, too slow
                said, asked_for, passing = f"{type(error).__name__}: {getattr(error, 'reason', error)}", None, True
            wait = backoff(attempt) if asked_for is None else asked_for
            if not passing or attempt == self.retries or time.monotonic() + wait >= deadline:
                break
            self.sleep(wait)
        remedy = "see that it runs and is reached from here" if passing else "see that it is asked for what it offers"
        raise NoScores(f"{self.url}: no scores after {attempt + 1} tries; the last time, {said}. Remedy: {remedy}")

    def _asked(self, body: bytes, seconds: float) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.token_env is not None:
            headers["Authorization"] = f"Bearer {os.environ[self.token_env]}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return bytes(response.read(MOST_BYTES))

    def _scores(self, content: bytes) -> list[Any]:
        try:
            told = json.loads(content)
        except ValueError as error:
            raise NoScores(f"{self.url}: its answer is not JSON ({error}): {content[:200]!r}") from None
        if isinstance(told, Mapping):
            told = next((told[name] for name in ("rewards", "scores") if name in told), told)
        if not isinstance(told, list):
            shown = json.dumps(told)[:200]
            raise NoScores(f'{self.url}: got {shown}; expected a list of scores, or {{"rewards": [...]}}')
        return told


def http_reward(
    where: str,
    timeout_seconds: float | None = None,
    max_failures: float | None = None,
    layout: str = "all",
    columns: Sequence[str] = (),
    retries: int = 4,
    token_env: str | None = None,
    at_once: int = 8,
) -> PlainReward:
    """Scores from a server at the address `where`, asked once a group.

    `layout` is one of `LAYOUTS`, `columns` are columns of the tasks to post as well. `timeout_seconds` (default 60)
    bounds a request with its `retries`, which wait longer and longer, or as long as the server says. `token_env` names
    an environment variable whose value is sent as a bearer token. `at_once` groups are asked for at a time.
    """
    seconds = 60.0 if timeout_seconds is None else timeout_seconds
    asked = RemoteScores(where, layout, tuple(columns), retries, seconds, token_env)
    budget = None if max_failures is None else FailureBudget(max_failures)
    return PlainReward(asked, name=where, timeout_seconds=seconds + 1.0, budget=budget, at_once=at_once)


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        text = error.read(300).decode(errors="replace").strip()
    except OSError:
        return ""
    return f": {text}" if text else ""
