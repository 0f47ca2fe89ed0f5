"""Rationalise: tasks that failed are tried again with the answer as a hint, which is then taken out.

    groups of a source ─► those without an accepted rollout ─► hint in the prompt ─► sample ─► hint out of the prompt
                     └──────────────────────────────────────────────────────────────────────► groups and hinted groups

What comes out reads as if the policy had found it alone: the plain prompt, then the completion. It is to be imitated
(STaR, arXiv 2203.14465), not reinforced: its log-probs are unknown (0), and its group is `hinted`, so that selects of
an algorithm that compares rewards leave it out.

    algorithm = star()
    source = Rationalised(Sampled(tasks, roller, …), roller, algorithm.select.hints, hint="{question} ({answer})")
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from maieutic.errors import ConfigError
from maieutic.loops import run_async
from maieutic.protocols import Source
from maieutic.rollout import Rolls, spans_of
from maieutic.types import Group, Message, Rollout, Score, Task

#: How the last message of a prompt is written with the answer in it.
HINT = "{question}\n\nHint: the answer is {answer}."

#: A rationale that speaks of the hint teaches to wait for one.
LEAKS = re.compile(r"\b(?:hint|as given|given answer|answer (?:is|was) given)\b", re.IGNORECASE)

NOTE = "sampled with the answer as a hint in the prompt, which was taken out"


def hinted(task: Task, template: str = HINT) -> Task:
    """The task with its answer in the last message of its prompt.

    >>> hinted(Task("t", (Message("user", "2 + 2?"),), "4"), "{question} ({answer})").prompt
    (Message(role='user', content='2 + 2? (4)'),)
    """
    *before, last = task.prompt
    words = {"question": last.content, "answer": task.answer or ""}
    text = re.sub(r"\{(question|answer)\}", lambda found: words[found[1]], template)
    return replace(task, prompt=(*before, Message(last.role, text)))


class Rationalised:
    """A source whose failed tasks are tried again, `num_generations` times each, with the answer in the prompt.

    source    what samples without hints.
    roller    what samples with them, usually the source's own.
    accepts   says of a score whether its rollout is taken: the algorithm's `select.hints`.
    hint      how question and answer are put: a text with `{question}` and `{answer}`.
    leaks     completions in which this is found are left out, as they speak of the hint (None: nothing is).

    The id of a hinted group is `~id` of the group that failed, a negative number. A task without an answer gets none.
    """

    samples = True

    def __init__(
        self,
        source: Source,
        roller: Rolls,
        accepts: Callable[[Score], bool],
        *,
        hint: str = HINT,
        num_generations: int = 1,
        leaks: re.Pattern[str] | None = LEAKS,
    ) -> None:
        if "{answer}" not in hint or "{question}" not in hint:
            raise ConfigError(f"hint: got {hint!r}; expected a text with {{question}} and {{answer}} in it")
        if num_generations < 1:
            raise ConfigError(f"Rationalised: got num_generations={num_generations}; expected at least 1")
        self.source, self.roller, self.accepts = source, roller, accepts
        self.hint, self.leaks, self.attempts = hint, leaks, num_generations

    @property
    def num_generations(self) -> int:
        """Attempts at a task without a hint."""
        return getattr(self.source, "num_generations", 1)

    def next(self) -> list[Group]:
        """The source's groups, then a hinted one for each of them in which no rollout was accepted."""
        groups = list(self.source.next())
        failed = [g for g in groups if g.task.answer is not None and not any(self.accepts(s) for s in g.scores)]
        return [*groups, *run_async(self._again(failed))]

    async def _again(self, failed: list[Group]) -> list[Group]:
        return list(await asyncio.gather(*[self._rationalise(group) for group in failed]))

    async def _rationalise(self, group: Group) -> Group:
        task = hinted(group.task, self.hint)
        made = await self.roller.group(task, self.attempts, ~group.id)
        skip = len(self.roller.chat.prompt(task.prompt))
        plain = self.roller.chat.prompt(group.task.prompt)
        rollouts = tuple(_without_hint(rollout, skip, plain) for rollout in made.rollouts)
        scores = tuple(self._kept(rollout, score) for rollout, score in zip(rollouts, made.scores))
        return Group(group.task, rollouts, scores, id=~group.id, hinted=True)

    def _kept(self, rollout: Rollout, score: Score) -> Score:
        if self.leaks is None or not self.leaks.search(rollout.text):
            return score
        return replace(score, reward=None, correct=None, note="left out: it speaks of the hint")

    def state(self) -> dict[str, Any]:
        """The source's."""
        return self.source.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on as the source does."""
        self.source.restore(state)


def _without_hint(rollout: Rollout, skip: int, plain: tuple[int, ...]) -> Rollout:
    """The completion (what follows the first `skip` tokens) after another prompt."""
    tokens, mask = plain + rollout.tokens[skip:], (False,) * len(plain) + rollout.mask[skip:]
    spans, note = spans_of(len(plain), rollout.mask[skip:]), "; ".join(filter(None, (NOTE, rollout.note)))
    return replace(rollout, tokens=tokens, mask=mask, logprobs=(0.0,) * len(tokens), spans=spans, note=note)
