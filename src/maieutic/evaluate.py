"""Evaluation: a policy × a taskset → a table of samples, from which every metric is a pure function.

    evaluate(sampler, chat, taskset) ─► Evaluation(problems) ─┬─► .metrics(k=8)   values with intervals
                                                              ├─► .values("vote@8")   one number a problem
                                                              └─► difference(new, old, "pass@1")   paired

Letters: `N` problems, `n` samples of one problem, `k <= n`.

The table keeps every sample (text, answer, correctness, finish, length), so that a metric nobody thought of can be
computed later, and two evaluations can be compared problem by problem.

    metric          one number a problem
    greedy          the greedy sample is correct ("maj@1" of Havrilla et al., arXiv 2403.04642)
    pass@k          at least one of k samples is correct; pass@1 is the mean
    vote@k          the most frequent answer of k is correct; ties in expectation, no answer casts no vote
    strict@k        more than half of k are correct ("majority@8" as 5 of 8)
    truncated       share of samples cut by the length limit
    unparsed        share of samples in which the verifier found no answer
    errors          share of samples whose making failed; they count as wrong above
    length          tokens the model chose in a sample
    turns           of an episode, where the tasks are played in an environment
    won             share of episodes that were won: correct ones, of those drawn (pass@1 by another name)

`vote_optimistic@k` and `vote_pessimistic@k` let the correct answer win or lose every tie, and `vote_null_wrong@k` lets
samples without an answer vote for a wrong one.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from maieutic.attempts import Sample, asked
from maieutic.core.estimators import Nulls, Ties, pass_at_k, strict_majority_at_k, vote_at_k
from maieutic.core.intervals import (
    Difference,
    Interval,
    bootstrap,
    mcnemar_test,
    paired_difference,
    sign_flip,
    wilson,
)
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.loops import run_async, together
from maieutic.protocols import Chat, Sampler, Taskset
from maieutic.types import Finish, Task

Floats = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Problem:
    """The samples of one task: the greedy one, and `n` at the sampling temperature."""

    task_id: str
    greedy: Sample | None = None
    samples: tuple[Sample, ...] = ()

    @property
    def correct(self) -> int:
        """How many of the n samples are correct."""
        return sum(sample.correct for sample in self.samples)

    @property
    def all(self) -> tuple[Sample, ...]:
        """The n samples, or the greedy one where there are none: what shares and lengths are taken over."""
        return self.samples or ((self.greedy,) if self.greedy else ())

    def wrong_answers(self) -> list[int]:
        """How many samples gave each wrong answer, falling. Answers are equal when the verifier writes them equally."""
        counts = Counter(s.answer for s in self.samples if not s.correct and s.answer is not None)
        return sorted(counts.values(), reverse=True)


@dataclass(frozen=True)
class Evaluation:
    """What a policy answered to a set of problems. `ks` are the k reported when none is chosen (empty: n)."""

    name: str
    problems: tuple[Problem, ...]
    ks: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    """How the samples were drawn: seed, temperature, limit, ... Plain JSON values."""

    def __post_init__(self) -> None:
        if not self.problems:
            raise DataError(f"evaluation {self.name!r}: got no problems; expected at least one")
        twice = [task_id for task_id, times in Counter(p.task_id for p in self.problems).items() if times > 1]
        if twice:
            raise DataError(
                f"evaluation {self.name!r}: got the task {twice[0]!r} more than once; give tasks unique ids"
            )
        empty = [p.task_id for p in self.problems if not p.all]
        if empty:
            raise DataError(f"evaluation {self.name!r}: got no sample of {empty[0]!r}; expected at least one a problem")

    @property
    def n(self) -> int:
        """Samples of each problem (of the one with fewest), the greedy one apart."""
        return min(len(problem.samples) for problem in self.problems)

    def values(self, metric: str) -> Floats:
        """One number a problem, `[N]`: `values("pass@8")`, `values("greedy")`; the metrics are those atop this file.

        Raises UnknownName, and ConfigError for samples that the metric reads and the table does not hold.
        """
        name, _, written = metric.partition("@")
        if written:
            if name not in AT_K or not written.isdecimal():
                raise UnknownName("metric", metric, [f"{known}@k" for known in AT_K])
            k = int(written)
            if not 1 <= k <= self.n:
                raise ConfigError(
                    f"{metric} of {self.name!r}: got k = {k} with {self.n} samples a problem; "
                    f"expected 1 <= k <= {self.n}; evaluate with samples={max(k, 1)} or more"
                )
            return AT_K[name](self.problems, k)
        if name not in PER_SAMPLE:
            raise UnknownName("metric", metric, [*PER_SAMPLE, *(f"{known}@k" for known in AT_K)])
        return PER_SAMPLE[name](self.problems)

    def metrics(self, k: int | Sequence[int] | None = None, *, confidence: float = 0.95) -> dict[str, Interval]:
        """Every metric with its interval: `greedy`, `pass@1`, `pass@k`, `vote@k`, `strict@k`, ..., `length`.

        Wilson's interval for one sample a problem, the bootstrap over problems for the rest. `k` defaults to `ks`.
        """
        ks = [k] if isinstance(k, int) else list(k if k is not None else self.ks or (self.n,) * (self.n > 0))
        names = ["greedy"] if all(problem.greedy for problem in self.problems) else []
        if self.n:
            names += dict.fromkeys(["pass@1", *(f"{name}@{k}" for name in ("pass", "vote", "strict") for k in ks)])
        names += ["truncated", "unparsed", "errors", "length"]
        names += ["won", "turns"] if all(s.turns is not None for problem in self.problems for s in problem.all) else []
        return {name: self._interval(name, confidence) for name in names}

    def histogram(self) -> list[int]:
        """How many problems have 0, 1, ..., n correct samples: both what pass@k and what strict@k measure."""
        most = max(len(problem.samples) for problem in self.problems)
        return np.bincount([problem.correct for problem in self.problems], minlength=most + 1).tolist()

    def to_json(self) -> str:
        """The whole table, every sample included."""
        table = {"name": self.name, "ks": self.ks, "settings": dict(self.settings)}
        return json.dumps({"format": 1, **table, "problems": [asdict(p) for p in self.problems]}, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Evaluation:
        """What `to_json` wrote. Raises DataError for anything else."""
        try:
            table = json.loads(text)
            problems = tuple(_problem(row) for row in table["problems"])
            return Evaluation(table["name"], problems, tuple(table["ks"]), table["settings"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"got a text that is no evaluation ({type(error).__name__}: {error}); "
                "expected what `Evaluation.to_json` wrote"
            ) from error

    def _interval(self, metric: str, confidence: float) -> Interval:
        values = self.values(metric)
        if metric in UNBOUNDED:
            return bootstrap(values, confidence=confidence)
        if metric in SINGLE or max(len(problem.samples) for problem in self.problems) <= 1:
            return wilson(float(values.sum()), len(values), confidence)
        return bootstrap(values, confidence=confidence, bounds=(0.0, 1.0))


def difference(new: Evaluation, old: Evaluation, metric: str = "pass@1", k: int = 8, **settings: Any) -> Difference:
    """Is `new` better than `old` on the same problems? `new - old`, paired by task id.

    `metric` is one of `Evaluation.values`, or `pass`, `vote`, `strict` without `@`, which take `k`. The p value is
    McNemar's exact one for greedy right/wrong and a sign-flip permutation for the rest, the interval a paired
    bootstrap over problems; `settings` go to `core.intervals.paired_difference`.

    Raises DataError when the two were not evaluated on the same problems.
    """
    metric = f"{metric}@{k}" if metric in AT_K else metric
    values_new, values_old = new.values(metric), old.values(metric)
    place = {problem.task_id: i for i, problem in enumerate(old.problems)}
    only_new = [p.task_id for p in new.problems if p.task_id not in place]
    only_old = place.keys() - {p.task_id for p in new.problems}
    if only_new or only_old:
        raise DataError(
            f"got {len(new.problems)} and {len(old.problems)} problems, {len(only_new)} only in {new.name!r} and "
            f"{len(only_old)} only in {old.name!r} (such as {min([*only_new, *only_old])!r}); expected the same "
            "problems in both: evaluate both on the same taskset with the same limit"
        )
    order = [place[problem.task_id] for problem in new.problems]
    return paired_difference(
        values_new,
        values_old[order],
        test=mcnemar_test if metric in SINGLE else sign_flip,
        words=WORDS.get(metric, ("better", "worse")),
        bounds=None if metric in UNBOUNDED else (-1.0, 1.0),
        **settings,
    )


async def evaluate(
    sampler: Sampler,
    chat: Chat,
    taskset: Taskset,
    *,
    max_tokens: int,
    samples: int = 8,
    temperature: float = 1.0,
    greedy: bool = True,
    limit: int | None = None,
    seed: int = 0,
    concurrency: int = 256,
    name: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Ask the sampler every task (the first `limit`) and judge what it says with the taskset's own verifier and tool.

    Each task gets `samples` completions at `temperature` and, where `greedy`, one at temperature 0. At most
    `concurrency` tasks are in flight, enough for the engine behind the sampler to batch; `on_progress(done, total)` is
    called after each. A task's samples depend on `seed` and its id only, so two policies see the same random numbers.

    Raises ConfigError for settings that ask for nothing, and ModelError when the sampler returns another number of
    completions than asked for. A prompt that does not fit the model makes samples that finish with ERROR, are wrong and
    are counted (`errors`); what the verifier or sampler raises otherwise is not caught.
    """
    total = _check(taskset, samples, temperature, greedy, limit, concurrency, max_tokens)
    asking = asked(sampler, chat, taskset, max_tokens)
    room, done = asyncio.Semaphore(concurrency), 0

    async def ask(task: Task) -> Problem:
        nonlocal done
        key = f"{seed}/eval/{task.id}"
        async with room:
            sure, drawn = await together(
                [
                    asking.attempts(task, key, int(greedy), 0.0),
                    asking.attempts(task, key, samples, temperature),
                ]
            )
        done += 1
        if on_progress is not None:
            on_progress(done, total)
        return Problem(task.id, sure[0].sample if sure else None, tuple(one.sample for one in drawn))

    problems = await together([ask(taskset[i]) for i in range(total)])
    settings = {"taskset": taskset.name, "samples": samples, "temperature": temperature, "max_tokens": max_tokens}
    settings |= {"greedy": greedy, "limit": limit, "seed": seed}
    return Evaluation(name or taskset.name, tuple(problems), settings=settings)


def evaluate_sync(sampler: Sampler, chat: Chat, taskset: Taskset, *, max_tokens: int, **settings: Any) -> Evaluation:
    """`evaluate` from ordinary code, also where an event loop is already running (a notebook)."""
    return run_async(evaluate(sampler, chat, taskset, max_tokens=max_tokens, **settings))


def _check(
    taskset: Taskset, samples: int, temperature: float, greedy: bool, limit: int | None, concurrency: int, most: int
) -> int:
    """How many tasks to ask; raises ConfigError for settings that make no evaluation."""
    if samples < 0 or not (samples or greedy):
        raise ConfigError(f"evaluate: got samples={samples}, greedy={greedy}; expected at least one of the two")
    if samples and not temperature > 0:
        raise ConfigError(
            f"evaluate: got temperature={temperature} for {samples} samples, which would be all the same; "
            "expected a temperature above 0; for the greedy sample alone give samples=0, greedy=True"
        )
    if concurrency < 1 or most < 1 or (limit is not None and limit < 1):
        raise ConfigError(
            f"evaluate: got limit={limit}, concurrency={concurrency}, max_tokens={most}; expected at least 1 each "
            "(limit=None asks every task)"
        )
    return len(taskset) if limit is None else min(limit, len(taskset))


def _problem(row: Mapping[str, Any]) -> Problem:
    greedy = row["greedy"]
    samples = tuple(_sample(sample) for sample in row["samples"])
    return Problem(row["task_id"], None if greedy is None else _sample(greedy), samples)


def _sample(row: Mapping[str, Any]) -> Sample:
    finish = Finish(row["finish"])
    numbers = (row["tokens"], row.get("logprob"), row.get("turns"))
    return Sample(row["text"], row["answer"], row["correct"], finish, *numbers)


def _pass(problems: Sequence[Problem], k: int) -> Floats:
    return pass_at_k([len(p.samples) for p in problems], [p.correct for p in problems], k)


def _strict(problems: Sequence[Problem], k: int) -> Floats:
    return strict_majority_at_k([len(p.samples) for p in problems], [p.correct for p in problems], k)


def _vote(problems: Sequence[Problem], k: int, ties: Ties = Ties.EXPECTED, nulls: Nulls = Nulls.ABSTAIN) -> Floats:
    correct, wrong = [p.correct for p in problems], [p.wrong_answers() for p in problems]
    silent = [len(p.samples) - c - sum(w) for p, c, w in zip(problems, correct, wrong)]
    return vote_at_k(correct, wrong, k, ties=ties, nulls=silent, null_votes=nulls)


def _greedy(problems: Sequence[Problem]) -> Floats:
    missing = [p.task_id for p in problems if p.greedy is None]
    if missing:
        raise ConfigError(f"greedy: got no greedy sample of {missing[0]!r}; evaluate with greedy=True")
    return np.array([p.greedy is not None and p.greedy.correct for p in problems], dtype=float)


def _mean_of(number: Callable[[Sample], float], problems: Sequence[Problem]) -> Floats:
    return np.array([sum(map(number, p.all)) / len(p.all) for p in problems])


#: Metrics of k samples.
AT_K: Mapping[str, Callable[[Sequence[Problem], int], Floats]] = {
    "pass": _pass,
    "vote": _vote,
    "strict": _strict,
    "vote_optimistic": functools.partial(_vote, ties=Ties.OPTIMISTIC),
    "vote_pessimistic": functools.partial(_vote, ties=Ties.PESSIMISTIC),
    "vote_null_wrong": functools.partial(_vote, nulls=Nulls.WRONG_ANSWER),
}

#: Metrics of single samples.
PER_SAMPLE: Mapping[str, Callable[[Sequence[Problem]], Floats]] = {
    "greedy": _greedy,
    "truncated": functools.partial(_mean_of, lambda sample: sample.finish is Finish.LENGTH),
    "unparsed": functools.partial(_mean_of, lambda sample: sample.answer is None),
    "errors": functools.partial(_mean_of, lambda sample: sample.finish is Finish.ERROR),
    "length": functools.partial(_mean_of, lambda sample: sample.tokens),
    "turns": functools.partial(_mean_of, lambda sample: sample.turns or 0),
    "won": functools.partial(_mean_of, lambda sample: sample.correct),
}

#: Right or wrong, once a problem.
SINGLE = frozenset({"greedy"})

#: Not a share.
UNBOUNDED = frozenset({"length", "turns"})

#: What a positive and a negative difference mean, where not "better" and "worse".
WORDS: Mapping[str, tuple[str, str]] = {
    "truncated": ("worse", "better"),
    "unparsed": ("worse", "better"),
    "errors": ("worse", "better"),
    "length": ("longer", "shorter"),
    "turns": ("longer", "shorter"),
}
