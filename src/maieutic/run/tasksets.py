"""Tasksets by name, joined with the verifier that checks them, the tool they may use and the environment they are
played in.

A taskset knows how its own answers look where it makes them itself (`arithmetic`, `svamp`). Answers that people wrote
(`gsm8k`, a file, a Hub data set) are read by `AnswerVerifier`; `verifier` and `tool` choose others by name.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from maieutic.environments.tools import make_tool
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Taskset
from maieutic.rewards.adapt_gym import GymVerifier
from maieutic.rewards.answers import AnswerVerifier
from maieutic.run.played import RULES, rules_in, under_rules
from maieutic.tasks import TASKSETS, find_taskset, make_taskset, mixture, shuffled, take
from maieutic.tasks.reasoning_gym import PREFIX

if TYPE_CHECKING:
    from maieutic.config import Config, TasksConfig

#: Name → verifier of answers in free text.
VERIFIERS: Mapping[str, Callable[[], AnswerVerifier]] = {
    "strict": AnswerVerifier,
    "flexible": lambda: AnswerVerifier(strict=False),
    "latex": lambda: AnswerVerifier(latex=True),
    "number": lambda: AnswerVerifier(tolerance=1e-3),
}
#: Tasksets whose answers were written by people, and the verifier they have unless told otherwise.
WRITTEN_BY_PEOPLE: Mapping[str, str] = {"gsm8k": "strict", "file": "strict", "hub": "strict"}
#: Answers that are checked when a taskset is loaded, from its front: better now than at step 400.
CHECKED = 10_000


def named_taskset(name: str, options: Mapping[str, Any]) -> Taskset:
    """The taskset of that name: `named_taskset("file", {"path": "mine.jsonl", "verifier": "flexible"})`.

    Besides the taskset's own options, `verifier` is one of `VERIFIERS`, `tool` one of `environments.tools.TOOLS`, and
    `run.played` says in what environment the tasks are played.
    Raises UnknownName and ConfigError for what is not known, DataError for an answer that cannot be compared with.
    """
    factory = find_taskset(name)
    rules, own = rules_in(options, () if factory is None else inspect.signature(factory).parameters)
    return under_rules(_named(name, own), rules)


def _named(name: str, options: Mapping[str, Any]) -> Taskset:
    factory = find_taskset(name)
    given = over(factory, options, lambda other: named_taskset(other, {}))
    takes = {} if factory is None else inspect.signature(factory).parameters
    chosen = given.pop("verifier", WRITTEN_BY_PEOPLE.get(name))
    if chosen is not None and "verifier" in takes:
        if chosen not in VERIFIERS:
            raise UnknownName("verifier", str(chosen), VERIFIERS)
        verifier = VERIFIERS[str(chosen)]()
        made = make_taskset(name, **{**given, **_tool(given), "verifier": verifier})
        for i in range(min(len(made), CHECKED)):
            if made[i].answer is not None or "chosen" not in made[i].meta:  # a preference needs no gold answer
                verifier.check_gold(made[i])
        return made
    if name.startswith(PREFIX):
        own = {key: value for key, value in given.items() if key not in ("split", "system", "tool")}
        given["verifier"] = GymVerifier(name.removeprefix(PREFIX), own)
    return make_taskset(name, **{**given, **_tool(given)})


def over(
    factory: Callable[..., Taskset] | None, options: Mapping[str, Any], make: Callable[[str], Taskset]
) -> dict[str, Any]:
    """The options, with what `make` makes of a name where the factory takes another taskset."""
    takes = {} if factory is None else inspect.signature(factory).parameters
    wraps = {name for name, parameter in takes.items() if parameter.annotation == "Taskset"}
    return {key: make(value) if key in wraps and isinstance(value, str) else value for key, value in options.items()}


def _tool(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"tool": make_tool(str(given["tool"]))} if "tool" in given else {}


def _check_keys(name: str, spec: TasksConfig) -> None:
    """Refuse a key that neither the table nor its taskset knows, naming the nearest of both."""
    factory = find_taskset(str(spec.taskset))
    if factory is None:
        raise UnknownName("taskset", str(spec.taskset), [*TASKSETS, f"{PREFIX}…"])
    takes = inspect.signature(factory).parameters
    own = {"taskset", "start", "limit", "shuffle", "verifier", "tool", *RULES}
    for key in spec.options:
        if key not in {*takes, *own}:
            near = difflib.get_close_matches(key, {*takes, *own}, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(
                f"tasks.{name}: unknown key {key!r}{hint} taskset {spec.taskset!r} takes {', '.join(takes)}; any takes "
                f"{', '.join(sorted(own))}"
            )


class Tasksets:
    """The tasksets of a config by name, each made once, when it is first asked for."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._made: dict[str, Taskset] = {}

    def __getitem__(self, name: str) -> Taskset:
        if name not in self._config.tasks:
            raise UnknownName("tasks", name, self._config.tasks)
        if name not in self._made:
            self._made[name] = self._make(name, self._config.tasks[name], ())
        return self._made[name]

    def _part(self, name: str, inside: tuple[str, ...]) -> Taskset:
        """The tasks of that name, which are a part of those `inside`."""
        if name not in self._config.tasks:
            raise UnknownName("tasks", name, self._config.tasks)
        return self._make(name, self._config.tasks[name], inside)

    def _make(self, name: str, spec: TasksConfig, inside: tuple[str, ...]) -> Taskset:
        if name in inside:
            raise ConfigError(f"tasks.{name} is made of itself, by way of {' → '.join((*inside, name))}")
        if spec.mixture is not None:
            parts = {self._make(n, self._config.tasks[n], (*inside, name)): w for n, w in spec.mixture.items()}
            made: Taskset = mixture(parts, self._config.seed, spec.size, name)
        else:
            _check_keys(name, spec)
            part = partial(self._part, inside=(*inside, name))
            made = named_taskset(str(spec.taskset), over(find_taskset(str(spec.taskset)), spec.options, part))
        if spec.shuffle:
            made = shuffled(made, self._config.seed)
        if spec.start or spec.limit is not None:
            made = take(made, spec.start, None if spec.limit is None else spec.start + spec.limit)
        if not len(made):
            raise DataError(f"tasks.{name} holds no task; check its split, start and limit")
        return made
