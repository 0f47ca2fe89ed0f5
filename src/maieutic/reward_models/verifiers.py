"""Checkers on the same completions: where they disagree, and how often each is wrong where people have looked.

A verifier's mistakes are rewarded like its truths: a false positive teaches a wrong answer, a false negative that a
right one is wrong. Two checkers that were written apart find where one of them errs; only labels by hand say which, and
how often (`core.judging.error_rates`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from maieutic.core.intervals import Interval, wilson
from maieutic.core.judging import error_rates
from maieutic.errors import DataError
from maieutic.protocols import Reward
from maieutic.types import Finish, Rollout, Score, Task


@dataclass(frozen=True)
class Case:
    """A completion, what each checker says of it, and, where a person has looked, whether it is right."""

    task: Task
    text: str
    scores: tuple[Score, ...]
    label: bool | None = None

    @property
    def verdicts(self) -> tuple[bool | None, ...]:
        """Right or wrong, by each checker; None where it could not say."""
        return tuple(accepted(score) for score in self.scores)

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """As JSON, with what each checker read and why."""
        said = {
            name: {"correct": accepted(score), "answer": score.answer, "note": score.note}
            for name, score in zip(names, self.scores, strict=True)
        }
        return {**written_out(self.task, self.text), "said": said, "label": self.label}


def accepted(score: Score) -> bool | None:
    """Whether a score says "right": its verdict, else a reward above ½."""
    if score.reward is None:
        return None
    return score.reward > 0.5 if score.correct is None else score.correct


async def examine(
    checkers: Mapping[str, Reward], completions: Sequence[tuple[Task, str]], labels: Sequence[bool | None] = ()
) -> list[Case]:
    """Every checker's word on every completion, in order; checkers are rewards, `answer_reward(verifier)` makes one.

    Raises DataError where there are no completions.
    """
    if not completions:
        raise DataError("got no completions to check; expected some of a run, a file or a model")
    said: list[list[Score]] = []
    for checker in checkers.values():
        # one at a time: a checker may compare within a group, and here every completion is asked by itself
        said.append([(await checker(task, [_rollout(task, text)]))[0] for task, text in completions])
    known = list(labels) or [None] * len(completions)
    return [
        Case(task, text, scores, label)
        for (task, text), scores, label in zip(completions, zip(*said, strict=True), known, strict=True)
    ]


def agreement(cases: Sequence[Case]) -> tuple[dict[str, int], Interval | None]:
    """How often two checkers say what ("right/wrong": the first accepts, the second does not), and the share on which
    they agree, of those on which both could say."""
    words = {True: "right", False: "wrong", None: "could not say"}
    counts: dict[str, int] = {}
    for case in cases:
        pair = "/".join(words[verdict] for verdict in case.verdicts)
        counts[pair] = counts.get(pair, 0) + 1
    both = [case.verdicts for case in cases if len(case.verdicts) == 2 and None not in case.verdicts]
    return counts, wilson(sum(a == b for a, b in both), len(both)) if both else None


def disagreements(cases: Iterable[Case]) -> list[Case]:
    """The cases of which the checkers say different things."""
    return [case for case in cases if len(set(case.verdicts)) > 1]


def rates(cases: Sequence[Case], checker: int) -> dict[str, Interval | None]:
    """`error_rates` of a checker on the cases that a person has labelled, those left out on which it could not say."""
    known = [(case.verdicts[checker], case.label) for case in cases if case.label is not None]
    asked = [(bool(said), bool(truth)) for said, truth in known if said is not None]
    return error_rates([said for said, _ in asked], [truth for _, truth in asked])


def to_label(completions: Sequence[tuple[Task, str]], size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows for a person: different completions drawn at random, without what any checker said of them.

    What is drawn is a fair sample, which rates need; what two checkers disagree on would not be.
    """
    rows = {row["id"]: {**row, "label": None} for row in (written_out(task, text) for task, text in completions)}
    kept = sorted(rows)
    return [rows[key] for key in random.Random(f"{seed}/to label").sample(kept, min(size, len(kept)))]


def labelled(rows: Iterable[tuple[str, Mapping[str, Any]]]) -> tuple[list[tuple[Task, str]], list[bool | None]]:
    """Completions and labels of such rows (where each stands, and the row); without a label a row says None.

    Raises DataError for a row without prompt or completion, or with a label that is neither true nor false.
    """
    from maieutic.tasks.files import messages_of

    completions, labels = [], list[bool | None]()
    for where, row in rows:
        text, label, answer = row.get("completion"), row.get("label"), row.get("answer")
        if not isinstance(text, str):
            raise DataError(f"{where}: got {text!r} in 'completion'; expected text")
        if label not in (None, True, False):
            raise DataError(f"{where}: got the label {label!r}; expected true, false, or null where nobody looked")
        prompt = messages_of(row.get("prompt"), where)
        completions.append((Task(str(row.get("task", where)), prompt, None if answer is None else str(answer)), text))
        labels.append(None if label is None else bool(label))
    return completions, labels


def written_out(task: Task, text: str) -> dict[str, Any]:
    """A completion as a row; `id` is a digest of what was asked and said."""
    prompt = [{"role": message.role, "content": message.content} for message in task.prompt]
    key = hashlib.blake2b(json.dumps([prompt, text]).encode(), digest_size=8).hexdigest()
    return {"id": key, "task": task.id, "prompt": prompt, "answer": task.answer, "completion": text}


def _rollout(task: Task, text: str) -> Rollout:
    """A rollout with that text: a token stands for each word."""
    size = max(1, len(text.split()))
    mask = (False, *(True,) * size)
    return Rollout(task.id, (0,) * (size + 1), mask, (0.0,) * (size + 1), Finish.STOP, text)
