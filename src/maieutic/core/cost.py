"""What a step cost: samples, tokens and an estimate of the arithmetic, so that algorithms are compared at equal cost.

    cost/samples             rollouts drawn, those of groups that were drawn again for (dynamic sampling) too
    cost/generated_tokens    tokens that the model chose in them, and in what a reward sampled beside them
    cost/prompt_tokens       tokens that it read in all these: prompts, and what tools wrote
    cost/trained_tokens      tokens (prompt and completion) through forward and backward, each pass of an update counted
    cost/flops               2·N·(generated + prompt) + 6·N·trained + 2·N·(tokens scored by a learner, reference, …)

`N` is the number of a model's parameters without its embeddings; 2 and 6 are the multiplications and additions of a
forward pass, and of a forward and backward pass, for each token and parameter (Kaplan et al., arXiv 2001.08361).
It is an estimate, the same for every algorithm: attention over long contexts and the language-model head are left out,
an adapter counts as if all weights were trained, and every row counts as if it stood alone (an engine that reads a
group's prompt once does less). Demonstrations were sampled by nobody: they cost what training on them costs.
Evaluations are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from maieutic.clock import costing
from maieutic.types import Batch, Step

if TYPE_CHECKING:  # costs are shown where there is no torch
    from torch import Tensor

#: The costs of a step as metrics, by the name under which a budget asks for them.
COSTS: Mapping[str, str] = {
    name: f"cost/{name}" for name in ("samples", "generated_tokens", "prompt_tokens", "trained_tokens", "flops")
}

#: Floating-point operations for each token and parameter. A product with second derivatives takes a gradient and
#: differentiates it once more, which is as much again.
FORWARD, FORWARD_AND_BACKWARD, SECOND_DERIVATIVE = 2.0, 6.0, 12.0

#: Methods of learners, scorers and teachers that take a batch through the model, and what that costs.
PASSES: Mapping[str, float] = {
    "logprobs": FORWARD,
    "values": FORWARD,
    "top": FORWARD,
    "step": FORWARD_AND_BACKWARD,
    "gradient": FORWARD_AND_BACKWARD,
}

#: Methods of a neighbourhood (of policies, in a trust region) over the batch that it was made for, …
PASSES_AROUND: Mapping[str, float] = {"objective": FORWARD}
#: … and over those of its rows at which policies are compared.
PASSES_COMPARED: Mapping[str, float] = {"kl": FORWARD, "fisher_product": SECOND_DERIVATIVE}


class Spent(NamedTuple):
    """What a reward sampled beside the rollouts (continuations): tokens that a model chose, and those it read."""

    generated: int = 0
    read: int = 0

    def plus(self, other: Spent, times: int = 1) -> Spent:
        """self + times · other."""
        return Spent(self.generated + times * other.generated, self.read + times * other.read)


class Meter:
    """Counts the tokens that go through models between two readings."""

    def __init__(self) -> None:
        self.trained, self.flops = 0, 0.0

    def count(self, tokens: int, parameters: int, per_token: float) -> None:
        """So many tokens went through a model of so many parameters, at so many operations for each of both."""
        self.trained += tokens if per_token == FORWARD_AND_BACKWARD else 0
        self.flops += per_token * parameters * tokens

    def read(self) -> tuple[int, float]:
        """Tokens trained on and operations since the last reading."""
        found = (self.trained, self.flops)
        self.trained, self.flops = 0, 0.0
        return found


class Metered:
    """A learner, scorer or teacher whose passes over batches a meter counts; in all else it is the model itself.

    `around` holds, of the methods of a neighbourhood, which are not given a batch again, what a token costs and how
    many tokens go through the model.
    """

    def __init__(
        self, model: Any, parameters: int, meter: Meter, around: Mapping[str, tuple[float, int]] | None = None
    ) -> None:
        self._model, self._parameters, self._meter, self._around = model, parameters, meter, around

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if self._around is None and name in PASSES:
            return lambda batch, *given, **named: self._counted(
                PASSES[name], int(batch.lengths.sum()), lambda: found(batch, *given, **named)
            )
        if self._around is not None and name in self._around:
            per_token, tokens = self._around[name]
            return lambda *given, **named: self._counted(per_token, tokens, lambda: found(*given, **named))
        return found

    def neighbourhood(self, batch: Batch, tokens: Tensor) -> Metered:
        """What a learner with a trust region gives, whose methods are passes over the same batch again."""
        whole, compared = int(batch.lengths.sum()), int(batch.lengths[tokens.any(1)].sum())
        around = {name: (per_token, whole) for name, per_token in PASSES_AROUND.items()}
        around |= {name: (per_token, compared) for name, per_token in PASSES_COMPARED.items()}
        return Metered(self._model.neighbourhood(batch, tokens), self._parameters, self._meter, around)

    def _counted(self, per_token: float, tokens: int, work: Callable[[], Any]) -> Any:
        self._meter.count(tokens, self._parameters, per_token)
        with costing(per_token * self._parameters):
            return work()


def step_cost(
    step: Step, sampled: bool, parameters: int, passed: tuple[int, float], beside: Spent | None = None
) -> dict[str, float]:
    """The costs of a step as metrics. `passed` is what the meter read; `sampled`: the policy wrote its rollouts;
    `beside`: what the policy wrote for a reward's sake, which is no sample of a task.

    A rollout that could not be made (no token was chosen) is a sample without tokens: its prompt was never read.
    """
    beside = beside or Spent()
    rollouts = [r for group in step.groups for r in group.rollouts] if sampled else []
    generated = beside.generated + sum(r.completion_length for r in rollouts)
    read = beside.read + sum(len(r.tokens) - r.completion_length for r in rollouts if r.completion_length)
    trained, flops = passed
    return {
        COSTS["samples"]: float(len(rollouts)),
        COSTS["generated_tokens"]: float(generated),
        COSTS["prompt_tokens"]: float(read),
        COSTS["trained_tokens"]: float(trained),
        COSTS["flops"]: FORWARD * parameters * (generated + read) + flops,
    }
