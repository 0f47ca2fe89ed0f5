"""Studies small enough to be carried out in a test, and results written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from maieutic.compare.plan import ComparisonConfig, Plan, comparison
from maieutic.compare.results import Results, Trial
from maieutic.config import parse_table
from maieutic.evaluate import Evaluation, Problem, Sample
from maieutic.types import Finish

COMPARISON: dict[str, Any] = {
    "name": "tiny",
    "seeds": [1, 2],
    "budget": {"samples": 8},
    "model": {"small": {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "context": 96}},
    "tasks": {
        "train": {"taskset": "arithmetic", "difficulty": 1, "size": 64},
        "test": {"taskset": "arithmetic", "split": "test", "difficulty": 1, "size": 6},
    },
    "start": [{"algorithm": "sft", "steps": 2, "prompts": 4, "optimiser": {"learning_rate": 1e-3}}],
    "stage": {
        "prompts": 2,
        "num_generations": 2,
        "max_completion_length": 6,
        "checkpoint_every": 1,
        "optimiser": {"learning_rate": 1e-3},
    },
    "arms": [{"name": "a", "algorithm": "reinforce"}, {"name": "b", "algorithm": "rloo"}],
    "evaluation": {"tasks": "test", "samples": 4, "k": 2, "max_completion_length": 6},
}


def sample(correct: bool, text: str = "", logprob: float | None = None) -> Sample:
    """A sample that answers 1 where it is right and 0 where it is wrong."""
    return Sample(text or str(int(correct)), str(int(correct)), correct, Finish.STOP, 4, logprob)


def evaluation(correct: Sequence[int], n: int, name: str = "test") -> Evaluation:
    """Problem i has n samples, the first correct[i] of which are right; the greedy one is, where most are."""
    problems = tuple(
        Problem(f"p{i}", sample(2 * c > n), tuple(sample(j < c) for j in range(n))) for i, c in enumerate(correct)
    )
    return Evaluation(name, problems)


@pytest.fixture(scope="session")
def comparison_tables() -> dict[str, Any]:
    """A comparison file as tables, not to be changed."""
    return COMPARISON


@pytest.fixture
def tables() -> dict[str, Any]:
    """A comparison file as tables, to be changed."""
    return copy.deepcopy(COMPARISON)


@pytest.fixture
def make_plan(tables: dict[str, Any]) -> Callable[..., Plan]:
    """`make_plan(seeds=[1])`: the plan of the tiny comparison, with these tables in place of its own."""

    def make(**changes: Any) -> Plan:
        return comparison(parse_table(ComparisonConfig, {**tables, **changes}, "tiny.toml"), "tiny.toml")

    return make


@pytest.fixture
def make_results(make_plan: Callable[..., Plan]) -> Callable[..., Results]:
    """`make_results({"a": [[4, 0], …], "b": …}, start=[[…]])`: for each arm, correct samples by seed and problem."""

    def make(
        arms: Mapping[str, Sequence[Sequence[int]]], start: Sequence[Sequence[int]] = (), n: int = 4, **changes: Any
    ) -> Results:
        seeds = list(range(1, 1 + max(len(rows) for rows in arms.values())))
        named = [{"name": arm, "algorithm": "rloo"} for arm in arms]
        evaluation_ = {**COMPARISON["evaluation"], "samples": n}
        plan = make_plan(**{"seeds": seeds, "arms": named, "evaluation": evaluation_, **changes})
        costs = {"samples": 8.0, "generated_tokens": 40.0, "prompt_tokens": 9.0, "trained_tokens": 49.0, "flops": 1e6}
        trials = {
            arm: {
                seed: Trial(seed, arm, {"test": evaluation(row, n)}, costs, 1.5, (2.0, 1.0), CURVE, [], 0)
                for seed, row in zip(seeds, rows)
            }
            for arm, rows in arms.items()
        }
        starts = {seed: {"test": evaluation(row, n)} for seed, row in zip(seeds, start)}
        return Results(plan, trials, starts)

    return make


CURVE = [(4.0, 0.25), (8.0, 0.5)]


@pytest.fixture
def drawn() -> Callable[..., list[list[int]]]:
    """`drawn(rng, chances [N], n, seeds, shift)`: correct samples of n, by seed and problem, at these chances.

    Each seed's model is a little better or worse than the chances say, by a normal number of that deviation (on the
    log-odds): what training with another seed does.
    """

    def draw(
        rng: np.random.Generator, logits: np.ndarray, n: int, seeds: int, deviation: float, shift: float = 0.0
    ) -> list[list[int]]:
        luck = shift + deviation * rng.standard_normal((seeds, 1))
        return rng.binomial(n, 1 / (1 + np.exp(-(logits[None] + luck)))).tolist()

    return draw
