"""What the two processes of `Ahead` say to each other, and how groups are kept in a checkpoint.

    this process                            the one that samples
    Begin  how to make its practice     ─►
                                        ◄─  Ready   where each weight lies in the shared memory
    Order  sample with these weights    ─►
                                        ◄─  Drawn   the groups         (or, at any time, Failed)

Letters: `N` tokens of all rollouts, end to end.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from maieutic.ahead.memory import Place
from maieutic.core.cost import Spent
from maieutic.errors import MaieuticError
from maieutic.protocols import Policy, Source
from maieutic.types import Finish, Group, Message, Rollout, Score, Span, Task

Records = tuple[logging.LogRecord, ...]


@dataclass(frozen=True)
class Practice:
    """What the process that samples works with: a source, and the policy that its rollouts are of.

    Before each batch the weights of `policy.learner` are overwritten and its `version` is set, then `policy.publish`
    is called. It is never trained: any optimiser will do.
    """

    source: Source
    policy: Policy


@dataclass(frozen=True)
class Begin:
    """`make` gives the practice; `memory` is the descriptor of the shared memory, `level` that of the log."""

    make: Callable[[], Practice]
    memory: int
    threads: int
    level: int


@dataclass(frozen=True)
class Ready:
    """The practice is made: its weights lie like this in the shared memory, which is so large."""

    places: tuple[Place, ...]
    records: Records = ()


@dataclass(frozen=True)
class Order:
    """A batch is wanted: of the source in this state, by the weights that lie in the memory now."""

    version: int
    state: Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """A batch: its groups, the source's state after it, whether the policy wrote it, and what its rewards sampled."""

    groups: tuple[Group, ...]
    state: Mapping[str, Any]
    samples: bool = True
    spent: Spent = field(default_factory=Spent)
    records: Records = field(default=(), compare=False)


@dataclass(frozen=True)
class Failed:
    """What was raised, with its traceback as text."""

    kind: type[MaieuticError] | None
    message: str
    trace: str
    records: Records = ()

    def error(self) -> MaieuticError | None:
        """The error itself where maieutic raised it on purpose, with the traceback as a note."""
        if self.kind is None:
            return None
        found = self.kind.__new__(self.kind, self.message)  # not made by its own rules: the message is whole
        found.add_note(f"raised in the process that samples ahead:\n{self.trace}")
        return found


def travelling(groups: Sequence[Group]) -> tuple[Group, ...]:
    """The groups as another process can have them: `meta` may be a read-only view, which does not travel."""
    return tuple(replace(group, task=replace(group.task, meta=dict(group.task.meta))) for group in groups)


def keep(drawn: Drawn, file: Path) -> None:
    """Write a batch to a file, to the bit: tokens, mask and log-probs `[N]` as tensors, of `meta` what JSON holds."""
    rollouts = [rollout for group in drawn.groups for rollout in group.rollouts]
    tensors = {
        "tokens": torch.tensor([token for r in rollouts for token in r.tokens], dtype=torch.int64),
        "mask": torch.tensor([chosen for r in rollouts for chosen in r.mask], dtype=torch.bool),
        "logprobs": torch.tensor([value for r in rollouts for value in r.logprobs], dtype=torch.float64),
    }
    told = {
        "groups": [_written(group) for group in drawn.groups],
        "state": drawn.state,
        "samples": drawn.samples,
        "spent": list(drawn.spent),
    }
    save_file(tensors, file, metadata={"batch": json.dumps(told)})


def kept(file: Path) -> Drawn:
    """The batch that `keep` wrote."""
    with safe_open(file, framework="pt") as read:
        told = json.loads(read.metadata()["batch"])
        columns = [read.get_tensor(name).tolist() for name in ("tokens", "mask", "logprobs")]
    groups, start = [], 0
    for written in told["groups"]:
        group, start = _read(written, columns, start)
        groups.append(group)
    return Drawn(tuple(groups), told["state"], told["samples"], Spent(*told["spent"]))


def _written(group: Group) -> dict[str, Any]:
    """All of a group but what is kept as tensors."""
    task = group.task
    return {
        "id": group.id,
        "hinted": group.hinted,
        "task": [task.id, [[m.role, m.content] for m in task.prompt], task.answer, _plain(task.meta)],
        "rollouts": [
            [len(r.tokens), r.task_id, r.finish.value, r.text,
             [[s.role, s.start, s.stop, s.text, [[m.role, m.content] for m in s.messages]] for s in r.spans],
             r.sibling, r.version, r.temperature, r.note]
            for r in group.rollouts
        ],
        "scores": [[s.reward, s.correct, dict(s.parts), s.step_rewards, s.note, s.answer, dict(s.asked), s.forfeits]
                   for s in group.scores],
    }  # fmt: skip


def _read(written: Mapping[str, Any], columns: Sequence[Sequence[Any]], start: int) -> tuple[Group, int]:
    """A group whose tokens begin at `start` of the columns, and where they end."""
    name, prompt, answer, meta = written["task"]
    rollouts = []
    for length, task_id, finish, text, spans, sibling, version, temperature, note in written["rollouts"]:
        tokens, mask, logprobs = (tuple(column[start : start + length]) for column in columns)
        start += length
        places = tuple(Span.read(span) for span in spans)
        rollouts.append(
            Rollout(task_id, tokens, mask, logprobs, Finish(finish), text, places, sibling, version, temperature, note)
        )
    scores = [
        Score(reward, correct, parts, tuple((int(token), value) for token, value in steps), note, answer, asked,
              tuple(*forfeits))
        for reward, correct, parts, steps, note, answer, asked, *forfeits in written["scores"]
    ]  # fmt: skip
    task = Task(name, tuple(Message(*message) for message in prompt), answer, meta)
    return Group(task, tuple(rollouts), tuple(scores), written["id"], written["hinted"]), start


def _plain(meta: Mapping[str, Any]) -> dict[str, Any]:
    held = {}
    for name, value in meta.items():
        try:
            held[name] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue  # rewards, which may read it, have been given already
    return held
