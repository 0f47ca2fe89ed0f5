"""What searches found, as training data: groups, and rows in the layouts that readers take.

    group_of          Found ─► Group          candidates as rollouts, judged by the task's verifier
    demonstrations    what was right          {"prompt", "answer", "solution"}          sft, expert iteration
    preferences       right beside wrong      {"prompt", "answer", "chosen", "rejected"}    dpo, a reward model of pairs
    waits             wrong, "Wait", right    the same, the wrong part being an open turn at the prompt's end: masked
    step_labels       nodes of a tree         {"prompt", "steps", "labels", "label"}    a reward model of steps

The rows are those of `maieutic.tasks.files`, so `taskset = "file"` reads them. A group of a search is no sample of the
policy: what was chosen among was thrown away, and log-probs are of the circumstances in which tokens were written.
Learn from it what asks for neither (`correct_only`, pairs).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from maieutic.errors import DataError
from maieutic.protocols import Completion, Verifier
from maieutic.search.found import Candidate, Found
from maieutic.types import Finish, Group, Rollout, Score, Span, Task

Row = dict[str, Any]


def group_of(
    task: Task, prompt: Sequence[int], found: Found, verifier: Verifier, *, temperature: float = 1.0, number: int = 0
) -> Group:
    """The candidates as rollouts of the task, the chosen one first. The reward is the verdict, 1 or 0; the search's own
    score is the part "search"."""
    order = sorted(range(len(found.candidates)), key=lambda i: i != found.chosen)
    chosen = [found.candidates[i] for i in order]
    rollouts = tuple(
        _rollout(task, tuple(prompt), each.completion, each.text, place, temperature)
        for place, each in enumerate(chosen)
    )
    return Group(task, rollouts, tuple(_score(task, each, verifier) for each in chosen), id=number)


def _rollout(
    task: Task, prompt: tuple[int, ...], made: Completion, text: str, sibling: int, temperature: float
) -> Rollout:
    size = len(prompt)
    return Rollout(
        task_id=task.id,
        tokens=prompt + made.tokens,
        mask=(False,) * size + made.mask,
        logprobs=(0.0,) * size + made.logprobs,
        finish=made.finish,
        text=text,
        spans=(Span("prompt", 0, size), *_spans(size, made.mask)),
        sibling=sibling,
        version=made.version,
        temperature=temperature or 1.0,
    )


def _spans(start: int, mask: Sequence[bool]) -> list[Span]:
    cuts = [0, *[i for i in range(1, len(mask)) if mask[i] != mask[i - 1]], len(mask)]
    return [Span("assistant" if mask[a] else "tool", start + a, start + b) for a, b in pairwise(cuts) if a < b]


def _score(task: Task, candidate: Candidate, verifier: Verifier) -> Score:
    if candidate.completion.finish is Finish.ERROR:
        return Score(None, note="the completion failed")
    verdict = verifier(task, candidate.text)
    parts = {} if candidate.score is None else {"search": candidate.score}
    return Score(float(verdict.correct), verdict.correct, parts, answer=verdict.answer)


def demonstrations(groups: Iterable[Group], cap: int | None = None) -> list[Row]:
    """Every right completion that ended by itself, once a text; of each task the first `cap`, which is where
    `group_of` puts the search's own choice."""
    rows = []
    for group in groups:
        for number, text in enumerate(_texts(group, right=True)[:cap]):
            rows.append({"id": f"{group.task.id}/{number}", **_asked(group.task), "solution": text})
    return rows


def preferences(groups: Iterable[Group], cap: int = 4) -> list[Row]:
    """Of each task right completions, each with a wrong one: at most `cap` pairs, no completion in two of them."""
    rows = []
    for group in groups:
        pairs = zip(_texts(group, right=True), _texts(group, right=False), strict=False)
        for number, (chosen, rejected) in enumerate(list(pairs)[:cap]):
            sides = {"chosen": chosen, "rejected": rejected}
            rows.append({"id": f"{group.task.id}/{number}", **_asked(group.task), **sides})
    return rows


def waits(
    groups: Iterable[Group],
    end: str = "</think>",
    ignore: str = "\nWait, ",
    *,
    begin: str = "<think>",
    cap: int = 1,
    seed: int | str = 0,
) -> list[Row]:
    """Demonstrations of doubt: wrong reasoning, cut before its answer, then `ignore` and the right completion.

    The wrong reasoning is the beginning of the model's turn and the end of the prompt: shown, and not learned. `end` is
    the delimiter before answers (`search.budget`), where it is cut: at its last occurrence, or nowhere. `begin` is left
    out of the right completion, as it stands at the head of the wrong one. At most `cap` of a task, drawn by the seed;
    a task needs a right and a wrong completion.

    Raises DataError where no task has both.
    """
    rows, tasks = [], 0
    for group in groups:
        tasks += 1
        right, wrong = _texts(group, right=True), _texts(group, right=False, finished=False)
        begun = [(text.rpartition(end)[0] if end in text else text).rstrip() for text in wrong]
        draw = random.Random(f"{seed}/{group.task.id}")
        pairs = [(a, b) for a in dict.fromkeys(begun) if a.removeprefix(begin).strip() for b in right]
        for number, (before, after) in enumerate(draw.sample(pairs, min(cap, len(pairs)))):
            asked = _asked(group.task)
            asked["prompt"].append({"role": "assistant", "content": before})
            solution = ignore + after.strip().removeprefix(begin).lstrip()
            rows.append({"id": f"{group.task.id}/{number}", **asked, "solution": solution})
    if not rows:
        raise DataError(
            f"got {tasks} groups, none with a right and a wrong completion; expected some with both: sample more of "
            "each task, or at a higher temperature"
        )
    return rows


def step_labels(
    task: Task, log: Sequence[Mapping[str, Any]], right: Mapping[str, bool], *, signed: bool = False, least: int = 1
) -> list[Row]:
    """The finished paths of a searched tree in the layout "steps" (`maieutic.tasks.judged`): the label of a step is its
    node's mean value Q, None where it was visited fewer than `least` times.

    `log` is `Found.log` of a search that counts visits; of any other there are no rows. `signed`: values are from −1 to
    1, and become (Q + 1) / 2. `right` says which texts are correct; the label of a whole is None for any other.
    """
    nodes = {row["node"]: row for row in log if "node" in row}
    rows = []
    for leaf in nodes.values():
        if not leaf.get("finished") or "visits" not in leaf:
            continue
        path: list[Mapping[str, Any]] = []
        at: Mapping[str, Any] | None = leaf
        while at is not None:
            path.insert(0, at)
            at = None if at["parent"] is None else nodes.get(at["parent"])
        steps = [each["step"] for each in path]
        labels = [_label(each["q"], signed) if each["visits"] >= least else None for each in path]
        whole = right.get("".join(steps))
        label = None if whole is None else float(whole)
        rows.append({"task": task.id, **_asked(task), "steps": steps, "labels": labels, "label": label})
    return [row for row in rows if any(label is not None for label in row["labels"])]


def _label(q: float, signed: bool) -> float:
    value = (q + 1) / 2 if signed else q
    if not -1e-9 <= value <= 1 + 1e-9:
        raise DataError(f"got a node of value {q}; expected {'−1' if signed else '0'} to 1. Is it signed?")
    return min(1.0, max(0.0, value))


def _asked(task: Task) -> Row:
    prompt = [{"role": message.role, "content": message.content} for message in task.prompt]
    return {"prompt": prompt, "answer": task.answer}


def _texts(group: Group, *, right: bool, finished: bool = True) -> list[str]:
    """The different texts of the right or wrong rollouts, in their order; of those that ended by themselves, or any."""
    found = (
        rollout.text
        for rollout, score in zip(group.rollouts, group.scores, strict=True)
        if score.correct is right
        and rollout.finish is not Finish.ERROR
        and not (finished and rollout.finish is Finish.LENGTH)
    )
    return [text for text in dict.fromkeys(found) if text.strip()]
