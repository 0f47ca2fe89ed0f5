"""A summary judged by a quiz about the text that it summarises: what can be known from it is counted, not felt.

    text ─► a judge makes a quiz, once ─► options shuffled ─► answered from the text, what disagrees is dropped, until
            nothing does
    summary ─► the quiz is answered from the summary alone ─► reward = right / all

Options are shuffled because models put the right one in a favoured place. Questions whose answer does not come out of
the text itself are dropped, again and again, because without its neighbours a question may be read otherwise. Who
answers replies with a list such as `[A, 0, C]`, where 0 says that the summary does not tell; a list of the wrong length
earns 0. After the course "Reinforcement Fine-Tuning LLMs with GRPO" (DeepLearning.AI), whose judge at first gave every
summary between .7 and .9.

The best summary for a quiz alone is a copy of the text. Put a price on length beside it:

    rewards = { quiz = 1.0, too_long = 1.0 }
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import Any

from maieutic.endpoint import Bill, Respondent
from maieutic.endpoint.once import Once
from maieutic.errors import ConfigError, DataError
from maieutic.rewards.inquiry import Inquiry, failure_of
from maieutic.rewards.judge_prompts import MAKE_QUIZ, TAKE_QUIZ
from maieutic.rewards.lift import FailureBudget, unscorable
from maieutic.rewards.showing import check_template, fill
from maieutic.types import Finish, Rollout, Score, Task

OPTIONS = 4
LETTERS = "ABCD"
#: "The text does not say."
UNKNOWN = "0"

#: Places at which a quiz is looked for in a reply.
MOST_BRACES = 500

#: The form of a quiz, for servers that can keep a model to it.
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "questions": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "text": {"type": "string"},
                    "options": {"type": "array", "items": {"type": "string"}, "minItems": OPTIONS, "maxItems": OPTIONS},
                    "answer": {"type": "integer", "minimum": 0, "maximum": OPTIONS - 1},
                },
                "required": ["text", "options", "answer"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["questions"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question with four options; `answer` is the place of the right one.

    >>> Question("What fell?", ("Costs", "Revenue", "Margin", "Debt"), 1)
    """

    text: str
    options: tuple[str, ...]
    answer: int

    @property
    def letter(self) -> str:
        """The right answer."""
        return LETTERS[self.answer]

    def shuffled(self, key: str) -> Question:
        """The same question, its options in an order that depends on the key."""
        order = list(range(len(self.options)))
        Random(key).shuffle(order)
        return replace(self, options=tuple(self.options[i] for i in order), answer=order.index(self.answer))


@dataclass(frozen=True, slots=True)
class Quiz:
    """Questions that a text answers; none, and `why`, where no quiz could be made. `bill` is what making it cost."""

    questions: tuple[Question, ...]
    why: str = ""
    bill: Bill = field(default=Bill())


@dataclass
class QuizReward:
    """Reward: the share of the quiz about `task.meta[text]` that can be answered from the rollout alone.

    questions   at most so many; `temperature` is that of making them, answering is done at 0.
    attempts    how often a quiz is made anew where no question of it stands the test.
    maker       who makes and checks quizzes, if not who answers them.

    An empty rollout earns 0 without asking: what could be answered from nothing is not the summary's merit. A quiz is
    made once for each text while this object lives; with a respondent that remembers (`endpoint.Remembered`), once and
    for all. Raises DataError for a task without a text, RewardError when too many answers have failed.
    """

    respondent: Respondent
    maker: Respondent | None = None
    text: str = "text"
    questions: int = 10
    attempts: int = 3
    temperature: float = 0.7
    max_tokens: int = 2048
    seed: int | str = 0
    zero_on_failure: bool = False
    budget: FailureBudget | None = None
    name: str = "quiz"
    make_template: str = MAKE_QUIZ
    take_template: str = TAKE_QUIZ
    inquiry: Inquiry = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.questions < 1 or self.attempts < 1:
            raise ConfigError(
                f"{self.name}: got questions={self.questions}, attempts={self.attempts}; expected at least 1 of each"
            )
        check_template(self.name, self.make_template, ("count", "text"), ("count", "text"))
        check_template(self.name, self.take_template, ("text", "quiz", "count"), ("text", "quiz", "count"))
        account: dict[str, Any] = {
            "max_tokens": self.max_tokens, "budget": self.budget, "zero_on_failure": self.zero_on_failure,
        }  # fmt: skip
        self.inquiry = Inquiry(self.respondent, self.name, **account)
        self.making = Inquiry(self.maker or self.respondent, self.name, **account)
        self.made: dict[str, Quiz] = {}
        self._once: Once[Quiz] = Once()

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """One score a rollout."""
        quiz, own = await self.quiz_of(task)
        judged = await asyncio.gather(*(self._judge(quiz, rollout) for rollout in rollouts))
        self.inquiry.account([failure for _, failure in judged if failure is not None])
        scores = [score for score, _ in judged]
        if own and scores:
            made = self.inquiry.costs(quiz.bill)
            asked = {name: scores[0].asked.get(name, 0.0) + made.get(name, 0.0) for name in {*scores[0].asked, *made}}
            scores[0] = replace(scores[0], asked=asked)
        return scores

    async def quiz_of(self, task: Task) -> tuple[Quiz, bool]:
        """The quiz about a task's text, and whether it was made for this call."""
        text = task.meta.get(self.text)
        if not isinstance(text, str) or not text.strip():
            raise DataError(
                f"{self.name}: task {task.id!r} has no text in meta[{self.text!r}]; it has {', '.join(task.meta)}. "
                'Remedy: taskset = "documents", or text = the name of the column'
            )
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
        if key in self.made:
            return self.made[key], False
        quiz, own = await self._once.get(key, lambda: self._make(text, key))
        if quiz.questions:
            self.made[key] = quiz
        return quiz, own

    async def _judge(self, quiz: Quiz, rollout: Rollout) -> tuple[Score, str | None]:
        """The score, and what went wrong: "" for nothing, None where nobody was asked."""
        if rollout.finish is Finish.ERROR:
            return unscorable(rollout), None
        if not quiz.questions:
            return self.inquiry.failed(quiz.why, Bill()), quiz.why
        if not rollout.text.strip():
            return Score(0.0, note="an empty summary"), None
        answers, why, bill = await self._answers(self.inquiry, quiz.questions, rollout.text)
        if answers is None:
            return self.inquiry.failed(why, bill), why
        count, costs = len(quiz.questions), self.inquiry.costs(bill)
        if len(answers) != count:
            return Score(0.0, note=f"{len(answers)} answers to {count} questions", asked=costs), ""
        right = sum(answer == question.letter for answer, question in zip(answers, quiz.questions))
        return Score(right / count, note=f"{right} of {count}: {''.join(answers)}", asked=costs), ""

    async def _answers(
        self, inquiry: Inquiry, questions: Sequence[Question], text: str
    ) -> tuple[tuple[str, ...] | None, str, Bill]:
        """The quiz answered from a text; or None and why."""
        about = {"text": inquiry.harmless(text), "quiz": shown(questions), "count": str(len(questions))}
        reply = await inquiry.ask(fill(self.take_template, about))
        failure = failure_of(reply)
        answers = None if failure else read_answers(reply.text)
        if answers is None and not failure:
            failure = f"no list of answers such as [A, 0, C]: {' '.join(reply.text.split())[-200:]!r}"
        return answers, failure, reply.bill

    async def _make(self, text: str, key: str) -> Quiz:
        """A quiz whose every question is answered rightly from the text itself."""
        bill, why = Bill(), ""
        for attempt in range(self.attempts):
            about = {"text": self.making.harmless(text), "count": str(self.questions)}
            reply = await self.making.ask(
                fill(self.make_template, about), temperature=self.temperature, sample=attempt, schema=SCHEMA
            )
            bill = bill.plus(reply.bill)
            written = read_quiz(reply.text)[: self.questions] if reply.answered else []
            why = failure_of(reply) or "no question with four different options and a right one could be read"
            asked = tuple(q.shuffled(f"{self.seed}/quiz/{key}/{i}") for i, q in enumerate(written))
            while asked:
                answers, why, cost = await self._answers(self.making, asked, text)
                bill = bill.plus(cost)
                if answers is None:
                    break
                same = answers if len(answers) == len(asked) else (UNKNOWN,) * len(asked)
                kept = tuple(q for q, answer in zip(asked, same) if answer == q.letter)
                if kept == asked:
                    return Quiz(asked, bill=bill)
                asked, why = kept, "no question of it is answered by the text as its maker says"
        return Quiz((), f"no quiz could be made in {self.attempts} attempts; the last one: {why}", bill)


def shown(questions: Sequence[Question]) -> str:
    """Numbered questions with lettered options."""
    blocks = []
    for number, question in enumerate(questions, 1):
        options = "\n".join(f"  {letter}) {option}" for letter, option in zip(LETTERS, question.options))
        blocks.append(f"{number}. {question.text}\n{options}")
    return "\n\n".join(blocks)


_LIST = re.compile(r"\[([^\[\]]*)\]")


def read_answers(text: str) -> tuple[str, ...] | None:
    """The last list in a reply, in capitals; None where there is none. Entries may be quoted, and spaced as they like.

    >>> read_answers("So: [ a,0 , 'c' ]")
    ('A', '0', 'C')
    """
    found = _LIST.findall(text)
    if not found:
        return None
    entries = re.split(r"[,;\s]+", found[-1].strip().rstrip(",;"))
    return tuple(entry.strip("\"'`.()").upper() for entry in entries if entry)


def read_quiz(text: str) -> list[Question]:
    """The questions of the first JSON object with any in a reply; those that are none are left out, and repetitions.

    A question has a text, four different options, and an answer: a place from 0 to 3, a letter, or an option's text.
    """
    for start in (found.start() for found in islice(re.finditer(r"\{", text), MOST_BRACES)):
        try:
            data, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        rows = data.get("questions") if isinstance(data, dict) else None
        if isinstance(rows, list):
            read = (_question(row) for row in rows)
            return list({question.text: question for question in read if question is not None}.values())
    return []


def _question(row: Any) -> Question | None:
    if not isinstance(row, dict):
        return None
    text, options, answer = row.get("text"), row.get("options"), row.get("answer")
    if not isinstance(text, str) or not text.strip() or not isinstance(options, list):
        return None
    named = tuple(" ".join(option.split()) for option in options if isinstance(option, str) and option.strip())
    if len(named) != OPTIONS or len(options) != OPTIONS or len({option.casefold() for option in named}) < OPTIONS:
        return None
    if isinstance(answer, str):
        letter = answer.strip().upper()
        answer = LETTERS.index(letter) if letter in tuple(LETTERS) else _place(" ".join(answer.split()), named)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < OPTIONS:
        return None
    return Question(" ".join(text.split()), named, answer)


def _place(option: str, options: Sequence[str]) -> int | None:
    return options.index(option) if option in options else None
