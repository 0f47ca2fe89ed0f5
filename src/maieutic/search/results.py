"""What searches of many problems found, as rows that are stored, and what follows from them.

    Found + verdicts ─► Solved (a problem) ─► rows of a file ─► summarise ─► Summary (a method at a budget)

Methods are compared at equal budgets, problem by problem, with the vote that had as many tokens to spend: a search that
beats one sample has shown nothing yet.

Letters: `N` problems, `R` rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from maieutic.core.intervals import Difference, Interval, bootstrap, mcnemar_test, paired_difference
from maieutic.core.sequential import control, performance, scaling
from maieutic.core.transitions import Transitions, rounds
from maieutic.errors import DataError
from maieutic.protocols import Verifier
from maieutic.search.found import Candidate, Cost, Found
from maieutic.types import Finish, Group, Rollout, Score, Task

#: What every method is compared with.
BASELINE = "vote"


@dataclass(frozen=True, slots=True)
class Tried:
    """A candidate with its verdict. `mask` says, for each token, "1" where the model chose it."""

    text: str
    answer: str | None
    correct: bool
    score: float | None
    finish: Finish
    tokens: tuple[int, ...]
    mask: str


@dataclass(frozen=True, slots=True)
class Solved:
    """A problem after a search: the candidates, the one it answers with, what it cost. `error` says why there is none;
    such a problem counts as wrong."""

    task_id: str
    chosen: int
    tried: tuple[Tried, ...]
    cost: Cost
    log: tuple[Mapping[str, Any], ...] = ()
    error: str = ""

    @property
    def correct(self) -> bool:
        """Whether the answer is."""
        return bool(self.tried) and self.tried[self.chosen].correct

    def to_row(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Solved:
        """What `to_row` made."""
        tried = tuple(
            Tried(**{**each, "finish": Finish(each["finish"]), "tokens": tuple(each["tokens"])})
            for each in row["tried"]
        )
        return Solved(row["task_id"], row["chosen"], tried, Cost(**row["cost"]), tuple(row["log"]), row["error"])

    def group(self, task: Task, prompt: Sequence[int], number: int = 0) -> Group:
        """The candidates as rollouts (`search.data.group_of`), as far as a row tells: without log-probs."""
        order = sorted(range(len(self.tried)), key=lambda i: i != self.chosen)
        size = len(prompt)
        rollouts, scores = [], []
        for place, each in enumerate(self.tried[i] for i in order):
            mask = (False,) * size + tuple(digit == "1" for digit in each.mask)
            tokens = (*prompt, *each.tokens)
            zeros = (0.0,) * len(tokens)
            rollouts.append(Rollout(task.id, tokens, mask, zeros, each.finish, each.text, sibling=place))
            parts = {} if each.score is None else {"search": each.score}
            failed = each.finish is Finish.ERROR
            scores.append(
                Score(None, note="the completion failed")
                if failed
                else Score(float(each.correct), each.correct, parts, answer=each.answer)
            )
        return Group(task, tuple(rollouts), tuple(scores), id=number)


def solved(task: Task, found: Found, verifier: Verifier) -> Solved:
    """What a search found of a task, judged."""

    def tried(each: Candidate) -> Tried:
        made = each.completion
        failed = made.finish is Finish.ERROR
        verdict = None if failed else verifier(task, each.text)
        mask = "".join("01"[chosen] for chosen in made.mask)
        answer, right = (verdict.answer, verdict.correct) if verdict is not None else (None, False)
        return Tried(each.text, answer, right, each.score, made.finish, made.tokens, mask)

    return Solved(task.id, found.chosen, tuple(map(tried, found.candidates)), found.cost, found.log)


@dataclass(frozen=True)
class Summary:
    """A method at a budget. `cost` are means a problem; `against` is the difference to the vote at the same budget."""

    method: str
    budget: int
    problems: int
    accuracy: Interval
    cost: Mapping[str, float]
    against: Difference | None = None
    errors: int = 0
    control: float | None = None
    """Of methods that think within a budget of their own, the share of problems in which they did."""
    transitions: tuple[Transitions, ...] = field(default=())
    """Of methods that revise, the table of each round."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "method": self.method,
            "budget": self.budget,
            "problems": self.problems,
            "accuracy": self.accuracy.to_dict(),
            "cost": dict(self.cost),
            "against": None if self.against is None else self.against.to_dict(),
            "errors": self.errors,
            "control": self.control,
            "transitions": [each.to_dict() for each in self.transitions],
        }


def summarise(arms: Mapping[tuple[str, int], Sequence[Solved]]) -> list[Summary]:
    """A summary of each (method, budget), in their order. Intervals are the bootstrap over problems, as for any metric.

    Raises DataError for an arm without problems.
    """
    made = []
    for (method, budget), rows in arms.items():
        if not rows:
            raise DataError(f"{method} at {budget} tokens: got no problems; expected at least one")
        values = [float(row.correct) for row in rows]
        other = None if method == BASELINE else arms.get((BASELINE, budget))
        made.append(
            Summary(
                method,
                budget,
                len(rows),
                bootstrap(values, bounds=(0.0, 1.0)),
                _means(rows),
                None if not other else _against(rows, other),
                sum(bool(row.error) for row in rows),
                _control(rows),
                tuple(_rounds(rows)),
            )
        )
    return made


def sequential(summaries: Sequence[Summary]) -> dict[str, dict[str, float]]:
    """Of each method with several budgets, `scaling` (accuracy a token, over tokens generated) and `performance`."""
    points: dict[str, list[tuple[float, float]]] = {}
    for each in summaries:
        points.setdefault(each.method, []).append((each.cost["generated"], each.accuracy.value))
    return {
        method: {"scaling": scaling(found), "performance": performance(found)}
        for method, found in points.items()
        if len({tokens for tokens, _ in found}) == len(found) > 1
    }


def _means(rows: Sequence[Solved]) -> dict[str, float]:
    total = sum((row.cost for row in rows), Cost())
    return {name: value / len(rows) for name, value in asdict(total).items()}


def _against(rows: Sequence[Solved], other: Sequence[Solved]) -> Difference | None:
    """On the problems that both have."""
    known = {row.task_id: row.correct for row in other}
    both = [(row.correct, known[row.task_id]) for row in rows if row.task_id in known]
    if not both:
        return None
    new, old = zip(*both, strict=True)
    return paired_difference([float(x) for x in new], [float(x) for x in old], test=mcnemar_test)


def _control(rows: Sequence[Solved]) -> float | None:
    told = [row.log[0] for row in rows if row.log and {"thinking", "budget"} <= row.log[0].keys()]
    return control([t["thinking"] for t in told], 0, [t["budget"] for t in told]) if told else None


def _rounds(rows: Sequence[Solved]) -> list[Transitions]:
    """A search that has ended keeps its answer in later rounds."""
    revised = [row for row in rows if row.log and "round" in row.log[0]]
    most = max((len(row.tried) for row in revised), default=0)
    if most < 2:
        return []
    return rounds([[row.tried[min(t, len(row.tried) - 1)].correct for row in revised] for t in range(most)])
