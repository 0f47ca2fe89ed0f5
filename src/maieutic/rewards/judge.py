"""A language model as judge: a score from 1 to 10, after reasons, by a rubric.

    judge = Judge(Endpoint("http://127.0.0.1:8000/v1", "judge"), rubric="- Is it polite?\n- Is it true?")

The last `<score>n</score>` of the judge's answer counts, as n / 10. What cannot be had (no answer, none in time, none
that ends in a score from 1 to 10) leaves the rollout unscored and is counted; see `rewards.inquiry`. The candidate is
shown by `rewards.showing`, so nothing that it contains can be taken for the judge's verdict.

Scores of judges bunch at .7 to .9, which leaves little to tell siblings apart: several judgements
(`samples`), comparison (`rewards.pairwise`) or questions with right answers (`rewards.quiz`) say more.

Letters: `G` siblings, `m` judgements of each.
"""

from __future__ import annotations

import asyncio
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from maieutic.endpoint import Reply, Respondent
from maieutic.errors import ConfigError
from maieutic.rewards.inquiry import Inquiry, failure_of, logger, total
from maieutic.rewards.judge_prompts import REFERENCE, RUBRIC, SCORE
from maieutic.rewards.lift import FailureBudget, unscorable
from maieutic.rewards.showing import check_template, fill, question_of
from maieutic.types import Finish, Rollout, Score, Task

_SCORE = re.compile(r"<score>\s*([+-]?\d{1,6}(?:\.\d{1,6})?)\s*(?:/\s*10\s*)?</score>", re.IGNORECASE)

#: Siblings with a score that a slope over length is fitted to, at least: two points have one for certain.
LEAST_FOR_SLOPE = 4


@dataclass(frozen=True)
class Shown:
    """How a task and its candidates are put before a judge: a template, its rubric, and what makes a text `harmless`.

    `show_answer`: a task's answer is shown as reference where it has one. Raises ConfigError for a template without
    the fields that are needed.
    """

    template: str
    harmless: Callable[[str], str]
    rubric: str = RUBRIC
    show_answer: bool = True
    fields: tuple[str, ...] = ("candidate",)

    def __post_init__(self) -> None:
        check_template("judge", self.template, self.fields, (*self.fields, "rubric", "question", "reference"))

    def prompt(self, task: Task, *texts: str) -> str:
        """The judge's prompt about these texts, one for each of `fields`."""
        answer = fill(REFERENCE, {"answer": self.harmless(task.answer)}) if self.show_answer and task.answer else ""
        about = {"rubric": self.rubric, "question": self.harmless(question_of(task)), "reference": answer}
        return fill(self.template, {**about, **dict(zip(self.fields, map(self.harmless, texts)))})


@dataclass
class Judge:
    """Reward n / 10 for a judge's score n, the mean of m = `samples` judgements. One request a judgement.

    temperature        default: 0 for one judgement, else .7. More than one at 0 would be all the same: ConfigError.
    max_characters     a longer candidate is cut, and says so.
    length_correction  share of what a rollout gains by being longer than its siblings that is taken off; see
                       `without_length`.
    zero_on_failure    reward 0 where no judgement could be had, instead of none.

    >>> Judge(ScriptedRespondent(lambda messages, sample: "Fine. <score>8</score>"))
    """

    respondent: Respondent
    rubric: str = RUBRIC
    template: str = SCORE
    samples: int = 1
    temperature: float | None = None
    max_tokens: int = 1024
    length_correction: float = 0.0
    zero_on_failure: bool = False
    show_answer: bool = True
    max_characters: int = 50_000
    budget: FailureBudget | None = None
    name: str = "judge"
    inquiry: Inquiry = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.heat = (0.0 if self.samples == 1 else 0.7) if self.temperature is None else self.temperature
        if self.samples < 1 or not 0 <= self.heat < math.inf or (self.samples > 1 and self.heat == 0):
            raise ConfigError(
                f"{self.name}: got samples={self.samples} at temperature {self.heat:g}; expected at least one, and "
                "several only at a temperature above 0: at 0 they would be all the same"
            )
        if not 0 <= self.length_correction <= 1:
            raise ConfigError(f"{self.name}: got length_correction={self.length_correction}; expected 0 to 1")
        self.inquiry = Inquiry(
            self.respondent, self.name,
            max_tokens=self.max_tokens, budget=self.budget, zero_on_failure=self.zero_on_failure,
        )  # fmt: skip
        shorten = partial(self.inquiry.harmless, max_characters=self.max_characters)
        self.shown = Shown(self.template, shorten, self.rubric, self.show_answer)

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout. Raises RewardError when too many judgements have failed."""
        judged = await asyncio.gather(*(self._judge(task, rollout) for rollout in rollouts))
        self.inquiry.account([failure for _, failures in judged for failure in failures])
        scores = [score for score, _ in judged]
        return without_length(scores, rollouts, self.length_correction) if self.length_correction else scores

    async def _judge(self, task: Task, rollout: Rollout) -> tuple[Score, list[str]]:
        """The score, and for each judgement what went wrong ("" for nothing)."""
        if rollout.finish is Finish.ERROR:
            return unscorable(rollout), []
        prompt = self.shown.prompt(task, rollout.text)
        asked = (self.inquiry.ask(prompt, temperature=self.heat, sample=i) for i in range(self.samples))
        replies = await asyncio.gather(*asked)
        self._notice_copies(replies)
        read = [read_reply(reply) for reply in replies]
        values = [value for value, _ in read if value is not None]
        bill, failures = total(replies), [failure for _, failure in read]
        if not values:
            return self.inquiry.failed(failures[0], bill), failures
        said = "; ".join(f"{10 * value:g}" for value in values)
        reasons = " ".join(replies[0].text.split())
        note = f"{said} of 10: {reasons[:300]}{'…' if len(reasons) > 300 else ''}"
        return Score(statistics.fmean(values), note=note, asked=self.inquiry.costs(bill)), failures

    def _notice_copies(self, replies: Sequence[Reply]) -> None:
        texts = [reply.text for reply in replies if reply.answered and not reply.bill.cached]
        if len(texts) > 1 and len(set(texts)) == 1 and not getattr(self, "_noticed", False):
            self._noticed = True
            logger.warning(
                "reward %r: %d judgements at temperature %g are the same, word for word. Some servers sample only "
                "when they are started so; samples = 1 would say as much for less", self.name, len(texts), self.heat,
            )  # fmt: skip


def read_score(text: str) -> float | None:
    """n / 10 of the last `<score>n</score>`; None where there is none, or where it is not from 1 to 10.

    >>> read_score("At first <score>3</score>, but no: <score>7</score>")
    0.7
    """
    found = _SCORE.findall(text)
    value = float(found[-1]) if found else 0.0
    return value / 10 if 1 <= value <= 10 else None


def read_reply(reply: Reply) -> tuple[float | None, str]:
    """The score of a reply, or None and why there is none."""
    failure = failure_of(reply)
    if failure:
        return None, failure
    value = read_score(reply.text)
    if value is not None:
        return value, ""
    return None, f"no <score>n</score> with n from 1 to 10 at its end: {' '.join(reply.text.split())[-200:]!r}"


def without_length(scores: Sequence[Score], rollouts: Sequence[Rollout], share: float) -> list[Score]:
    """rᵢ − share · b · (nᵢ − n̄) with b = Σ (nᵢ − n̄)(rᵢ − r̄) / Σ (nᵢ − n̄)² where b > 0, over the scored siblings.

    n are characters, b the slope by which judges favour long answers, within one task, where tasks that need longer
    answers do not confound it. The mean reward of the group stays. A judge that favours short ones is left alone, for
    a correction must not pay for length. Fewer than `LEAST_FOR_SLOPE` scored siblings are left as they are.
    """
    scored = [i for i, score in enumerate(scores) if score.reward is not None]
    lengths = [len(rollouts[i].text) for i in scored]
    rewards = [scores[i].reward or 0.0 for i in scored]
    if len(scored) < LEAST_FOR_SLOPE or len(set(lengths)) == 1:
        return list(scores)
    middle, mean = statistics.fmean(lengths), statistics.fmean(rewards)
    # fsum: the same whatever the order of the siblings
    spread = math.fsum((n - middle) ** 2 for n in lengths)
    slope = math.fsum((n - middle) * (r - mean) for n, r in zip(lengths, rewards)) / spread
    if slope <= 0:
        return list(scores)
    made = list(scores)
    for i, n, r in zip(scored, lengths, rewards):
        off = share * slope * (n - middle)
        made[i] = replace(scores[i], reward=r - off, note=f"{scores[i].note}; {-off:+.3f} for its length")
    return made
