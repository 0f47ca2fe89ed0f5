"""Self-training: imitate what was right of what the policy wrote, round after round.

    samples of a round ─ correct ─ without duplicates ─(∪ those of earlier rounds)─ cap ─► rows ─ refit ─► weights

Imitation asks neither how a row was sampled nor how good it was beside others, so rows come without log-probs of a
sampler, at temperature 1: the likelihood that is raised is that of the policy itself.

Without removing duplicates one round (with endless samples) moves the policy to π'(y) ∝ π(y) · 1[y correct]; removing
them moves it to the uniform distribution over the correct completions, which is what keeps a policy diverse.

In Python a stage of expert iteration from a fine-tuned model, whose demonstrations are D₀, reads

    algorithm = expert_iteration()
    algorithm.select.kept.add(Recorded(tasks, chat, batch=len(tasks)).next())
    policy = LocalBackend().policy(base, optimiser, restart=True)      # each round goes back to the base
    policy.learner.reset(fine_tuned_folder)                            # the first one is sampled by this one
    for step in train(Sampled(tasks, roller, prompts=len(tasks), num_generations=96), policy, algorithm, steps=5): ...

Letters: `K` samples of a task, `R` rows.
"""

from __future__ import annotations

import base64
import json
import random
import re
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from maieutic.calculator import number, show
from maieutic.core.parts import select
from maieutic.errors import UnknownName
from maieutic.types import Example, Finish, Group, Rollout, Score

#: A completion's text → what two completions have in common that say the same (None: nothing is a duplicate).
Key = Callable[[str], Hashable]

#: What may precede and follow the sign of an equation, and how far back its left side may begin.
_LEFT = re.compile(r"[\d.,$%()+\-*/ ]+\Z")
_RIGHT = re.compile(r"\s*\$?\s*(-?[\d,]*\.?\d+)")
_TIMES = re.compile(r"(?<=[\d)])\s*[x×]\s*(?=[\d$(.])")
_NUMBER = re.compile(r"[\d,]*\.?\d+")
_OPERATED = re.compile(r"[\d)%]\s*[-+*/]\s*[\d(.]")
LONGEST_LEFT = 200


def equations(text: str) -> tuple[str, ...]:
    """The equations `a op b = c` of a text in order, written alike; whether they are true is not asked.

    >>> equations("He has 3*4 = $12.00, so 12 - 2 = 10 are left. #### 10"), equations("ten")
    (('3*4=12', '12-2=10'), ())

    Two solutions with the same equations are the same path of reasoning in other words (the notion of a distinct path
    in RFT, arXiv 2308.01825). Equations in another order, or with operands exchanged, count as another path.
    """
    found = []
    for before, after in pairwise(_TIMES.sub("*", text.replace("÷", "/")).split("=")):
        left, right = _LEFT.search(before[-LONGEST_LEFT:]), _RIGHT.match(after)
        if left is None or right is None or not _OPERATED.search(left[0]):
            continue
        operands = re.sub(r"[\s$%]", "", left[0]).lstrip(".,+*/)").rstrip(".,")
        found.append(f"{_NUMBER.sub(lambda n: _plain(n[0]), operands)}={_plain(right[1])}")
    return tuple(found)


def _plain(text: str) -> str:
    value = number(text)
    return text.replace(",", "") if value is None else show(value)


def _words(text: str) -> str:
    return " ".join(text.split())


#: Ways to tell duplicates: by nothing, by the words, or by the equations (by the words where there are none).
KEYS: Mapping[str, Key | None] = {
    "none": None,
    "text": _words,
    "equations": lambda text: equations(text) or _words(text),
}


class Kept:
    """The rollouts that a select keeps: by task, in the order in which they came, none of them twice.

    `state()` holds about 3 bytes for a token and a little for each rollout (compressed); it goes into every checkpoint.
    """

    def __init__(self, accepts: Callable[[Group, int], bool], key: Key | None) -> None:
        self.accepts, self.key = accepts, key
        self.rollouts: dict[str, list[Rollout]] = {}
        self._seen: dict[str, set[Hashable]] = {}

    def add(self, groups: Sequence[Group]) -> None:
        """Keep the accepted rollouts of these groups that are no duplicates of what is kept of their tasks."""
        for group in groups:
            for place, rollout in enumerate(group.rollouts):
                if self.accepts(group, place):
                    self._keep(replace(rollout, logprobs=(0.0,) * len(rollout.tokens), temperature=1.0))

    def _keep(self, rollout: Rollout) -> None:
        if self.key is not None:
            seen, key = self._seen.setdefault(rollout.task_id, set()), self.key(rollout.text)
            if key in seen:
                return
            seen.add(key)
        self.rollouts.setdefault(rollout.task_id, []).append(rollout)

    def rows(self, cap: int | None, seed: int) -> list[Example]:
        """A row for each rollout, or for `cap` drawn of a task's; the rows of one task are one group."""
        made: list[Example] = []
        for group, (task, rollouts) in enumerate(self.rollouts.items()):
            if cap is not None and len(rollouts) > cap:
                places = sorted(random.Random(f"{seed}/{task}/{len(rollouts)}").sample(range(len(rollouts)), cap))
                rollouts = [rollouts[place] for place in places]
            made += [Example(rollout, 1.0, group, unit) for unit, rollout in enumerate(rollouts, len(made))]
        return made

    def state(self) -> dict[str, Any]:
        """All of it, as text."""
        rows = [
            [r.task_id, r.tokens, "".join("01"[m] for m in r.mask), r.finish.value, r.text, r.sibling, r.version]
            for rollouts in self.rollouts.values()
            for r in rollouts
        ]
        packed = zlib.compress(json.dumps(rows, separators=(",", ":")).encode("utf-8", "surrogatepass"))
        return {"rollouts": base64.b85encode(packed).decode("ascii")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` returned, in place of what is there."""
        self.rollouts, self._seen = {}, {}
        rows = json.loads(zlib.decompress(base64.b85decode(state["rollouts"])).decode("utf-8", "surrogatepass"))
        for task, tokens, mask, finish, text, sibling, version in rows:
            chosen, zeros = tuple(bool(int(digit)) for digit in mask), (0.0,) * len(tokens)
            self._keep(Rollout(task, tuple(tokens), chosen, zeros, Finish(finish), text, (), sibling, version))


@select
def correct_only(
    dedup: str | Key | None = "text",
    cap: int | None = None,
    union: bool = False,
    hints: bool = False,
    skip_truncated: bool = True,
    threshold: float = 1.0,
    seed: int = 0,
) -> Callable[[Sequence[Group]], list[Example]]:
    """The rollouts that are correct, each once: R = {y : 1[y correct]} without duplicates, a task without any giving
    nothing.

    A rollout is correct where its score says so; where a score says neither, its reward must reach `threshold`.
    `dedup` tells duplicates among the rollouts of a task: "text", "equations", "none", or a function of the text.
    `cap`: at most so many of a task, drawn with `seed` (ReST-EM, arXiv 2312.06585). `union`: go on learning from what
    was kept in earlier batches, D_i = R_i ∪ D_{i−1} (expert iteration, arXiv 2403.04642); such a part remembers, so
    each run needs one of its own, and `select.kept.add(groups)` gives it a D_0. `hints`: tasks without any correct
    rollout are to be tried again with the answer in the prompt (STaR, arXiv 2203.14465). A completion that the length
    limit cut does not end, and imitating it would teach not to: `skip_truncated` leaves it out.
    """
    if isinstance(dedup, str) and dedup not in KEYS:
        raise UnknownName("key of duplicates", dedup, KEYS)
    if cap is not None and cap < 1:
        raise ValueError(f"correct_only: got cap={cap}; expected at least 1 rollout a task (None: all)")
    key = KEYS[dedup] if isinstance(dedup, str) else dedup
    if union and key is None:
        raise ValueError('correct_only: got union=True with dedup="none"; a union needs to know what it holds already')

    def right(score: Score) -> bool:
        if score.reward is None or score.correct is not None:
            return score.reward is not None and bool(score.correct)
        return score.reward >= threshold

    def accepts(group: Group, place: int) -> bool:
        rollout = group.rollouts[place]
        whole = rollout.finish is not Finish.ERROR and not (skip_truncated and rollout.finish is Finish.LENGTH)
        return right(group.scores[place]) and whole and any(rollout.mask)

    kept = Kept(accepts, key)

    def select_correct(groups: Sequence[Group]) -> list[Example]:
        held = kept if union else Kept(accepts, key)
        held.add(groups)
        return held.rows(cap, seed)

    if union:
        select_correct.kept = kept  # type: ignore[attr-defined]
        select_correct.memory = (kept,)  # type: ignore[attr-defined]
    if hints:
        select_correct.hints = right  # type: ignore[attr-defined]
    return select_correct
