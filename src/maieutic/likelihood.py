"""How likely a model finds each option of a question: the examination of base models, which need not write a letter.

    evaluate_choices(scorer, chat, tasks) ─► Likelihoods ─┬─► .metrics()   accuracy by sum, by token, by character
                                                          └─► .evaluation("sum")   to save and to compare

Each option is a completion of the question, scored in one pass; the model chooses the likeliest one. Long options lose
by their length alone where log-probs are summed, so means are reported too; which of these is fairest depends on the
task, so all three are given and none is picked afterwards.

    sum         Σ log p(token)                       nats
    per_token   the same by the option's tokens      depends on the tokenizer
    per_byte    the same by its bytes in UTF-8       as the evaluation harness of EleutherAI does ("acc_norm")

Letters: `N` questions, `O` options of one, `T` tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_uppercase
from typing import Any

from maieutic.core.intervals import Interval, wilson
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.evaluate import Evaluation, Problem, Sample
from maieutic.pack import pack
from maieutic.protocols import Chat, Scorer, Taskset
from maieutic.types import Example, Finish, Message, Rollout, Task


@dataclass(frozen=True, slots=True)
class Asked:
    """A question as a base model sees it: what stands before, and the completions `[O]` of which it chooses one."""

    messages: tuple[Message, ...]
    completions: tuple[str, ...]


def cloze(task: Task) -> Asked:
    """The question without its options, which are the completions: for models that were not taught to read letters."""
    return Asked((Message("user", f"Question: {_meta(task, 'question')}\nAnswer:"),), tuple(_meta(task, "options")))


def letters(task: Task) -> Asked:
    """The question with its options before it, to be completed by a letter."""
    options = list(zip(ascii_uppercase, _meta(task, "options")))
    lines = [f"Question: {_meta(task, 'question')}", *(f"{letter}. {option}" for letter, option in options), "Answer:"]
    return Asked((Message("user", "\n".join(lines)),), tuple(letter for letter, _ in options))


#: Measure → what a log-prob is divided by, if by anything.
MEASURES: Mapping[str, str] = {"sum": "", "per_token": "tokens", "per_byte": "bytes"}
#: Name → how a question is put.
FORMS: Mapping[str, Callable[[Task], Asked]] = {"cloze": cloze, "letters": letters}


@dataclass(frozen=True, slots=True)
class Likelihood:
    """One question: the log-prob (nats), tokens and bytes of each option `[O]`, and the index of the right one.

    >>> Likelihood("q7", logprobs=(-9.0, -4.0), tokens=(3, 1), bytes=(12, 6), texts=("iron", "oxygen"), key=1)

    `logprobs` is empty where the question was longer than the model reads; it is then wrong, and counted.
    """

    task_id: str
    logprobs: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]
    texts: tuple[str, ...]
    key: int

    def values(self, measure: str) -> list[float]:
        """What each option is worth, `[O]`: `sum`, `per_token` or `per_byte`."""
        sizes = getattr(self, MEASURES[measure]) if MEASURES[measure] else (1,) * len(self.logprobs)
        return [logprob / size for logprob, size in zip(self.logprobs, sizes)]

    def chosen(self, measure: str = "sum") -> int | None:
        """The index of the option that is worth most, the first of equals; None where none was scored."""
        values = self.values(measure)
        return values.index(max(values)) if values else None


@dataclass(frozen=True)
class Likelihoods:
    """What a model made of a set of questions."""

    name: str
    questions: tuple[Likelihood, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def metrics(self, confidence: float = 0.95) -> dict[str, Interval]:
        """The accuracy by each measure with Wilson's interval, and the share of questions that could not be asked."""
        count = len(self.questions)
        right = {measure: sum(q.chosen(measure) == q.key for q in self.questions) for measure in MEASURES}
        made = {measure: wilson(number, count, confidence) for measure, number in right.items()}
        made["errors"] = wilson(sum(not q.logprobs for q in self.questions), count, confidence)
        return made

    def evaluation(self, measure: str = "sum") -> Evaluation:
        """As an evaluation whose greedy sample is the chosen option, to save, and to compare with others in pairs."""
        if measure not in MEASURES:
            raise UnknownName("measure of likelihood", measure, MEASURES)
        problems = tuple(Problem(q.task_id, _sample(q, q.chosen(measure))) for q in self.questions)
        return Evaluation(self.name, problems, settings={**self.settings, "measure": measure})


def _sample(question: Likelihood, chosen: int | None) -> Sample:
    if chosen is None:
        return Sample("", None, False, Finish.ERROR, 0)
    tokens = question.tokens[chosen]
    mean = question.logprobs[chosen] / tokens
    right = chosen == question.key
    return Sample(question.texts[chosen], ascii_uppercase[chosen], right, Finish.STOP, tokens, mean)


def evaluate_choices(
    scorer: Scorer,
    chat: Chat,
    taskset: Taskset,
    *,
    form: str = "cloze",
    before: str = "",
    context: int | None = None,
    limit: int | None = None,
    rows: int = 64,
    name: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Likelihoods:
    """Score every option of every question (the first `limit`) of a taskset whose tasks have options, as `ai2_arc`.

    `form` is one of `FORMS`. `before` is written before each completion, a space for models without a template, whose
    question ends in "Answer:". Completions have no end token, so that an option is not judged by whether it may end.
    `rows` options are scored at once, which changes nothing but the time; a question that is longer than `context`
    tokens is counted as an error. `on_progress(done, total)` is called after each batch.

    Raises DataError for a task without options, UnknownName for another form, ConfigError for no question.
    """
    if form not in FORMS:
        raise UnknownName("form of a question", form, FORMS)
    total = len(taskset) if limit is None else min(limit, len(taskset))
    if total < 1 or rows < 1:
        raise ConfigError(f"evaluate_choices: got {total} questions and rows={rows}; expected at least 1 of both")
    made: list[Likelihood] = []
    waiting: list[tuple[Task, Asked, list[Rollout]]] = []
    for index in range(total):
        task = taskset[index]
        asked = FORMS[form](task)
        waiting.append((task, asked, _rollouts(chat, task, asked, before, context)))
        if sum(len(each) for *_, each in waiting) >= rows or index == total - 1:
            made += _scored(scorer, waiting)
            waiting = []
            if on_progress is not None:
                on_progress(index + 1, total)
    settings = {"taskset": taskset.name, "form": form, "before": before, "limit": limit, "likelihood": True}
    return Likelihoods(name or taskset.name, tuple(made), settings)


def _rollouts(chat: Chat, task: Task, asked: Asked, before: str, context: int | None) -> list[Rollout]:
    """A row an option: the question's tokens, then the option's, which are what is scored. None that is too long."""
    prompt = chat.prompt(asked.messages)
    made = []
    for text in asked.completions:
        tokens = chat.encode(before + text)
        if not tokens:
            raise DataError(f"{task.id}: the option {text!r} has no token; expected text that the tokenizer knows")
        mask = (*(False for _ in prompt), *(True for _ in tokens))
        made.append(Rollout(task.id, (*prompt, *tokens), mask, (0.0,) * len(mask), Finish.STOP, text))
    return [] if context is not None and max(len(row.tokens) for row in made) > context else made


def _scored(scorer: Scorer, waiting: Sequence[tuple[Task, Asked, list[Rollout]]]) -> list[Likelihood]:
    examples = [
        Example(row, 0.0, group, unit=group) for group, (_, _, each) in enumerate(waiting) for row in each
    ]  # the options of a question are a group: it is read once
    sums = iter(scorer.logprobs(pack(examples)).double().sum(1).tolist() if examples else ())
    made = []
    for task, asked, each in waiting:
        sizes = tuple(len(text.encode()) for text in asked.completions)
        key = ascii_uppercase.index(task.answer or "A")
        logprobs = tuple(next(sums) for _ in each)
        made.append(
            Likelihood(task.id, logprobs, tuple(row.completion_length for row in each), sizes, asked.completions, key)
        )
    return made


def _meta(task: Task, what: str) -> Any:
    if what not in task.meta:
        raise DataError(
            f"{task.id}: no {what}; expected a task with options: use the tasksets ai2_arc or multiple_choice"
        )
    return task.meta[what]
