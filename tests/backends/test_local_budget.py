"""Where memory runs out the batch begins anew in smaller micro-batches: the same gradient, said once, and kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from maieutic.backends.local import LocalLearner, Optimiser, ValueHead
from maieutic.backends.local.budget import Budget, in_parts, is_out_of_memory
from maieutic.backends.local.evaluate import PackedForward
from maieutic.backends.local.trunk import Trunk
from maieutic.errors import ConfigError
from maieutic.models.causal import CausalModel
from maieutic.types import Batch, Outputs

Load = Callable[..., CausalModel]
CPU = "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"


@dataclass
class Tight:
    """A forward with room for so many rows: beyond that, memory runs out in the forward or in the backward pass."""

    inner: PackedForward
    rows: int
    error: Exception = field(default_factory=lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    late: bool = False
    ran: list[int] = field(default_factory=list)

    def split(self, batch: Batch, budget: int) -> list[Tensor]:
        return self.inner.split(batch, budget)

    def outputs(self, batch: Batch, entropy: bool, value_head: nn.Module | None = None) -> Outputs:
        self.ran.append(batch.size)
        outputs = self.inner.outputs(batch, entropy, value_head)
        if batch.size > self.rows and self.late and outputs.logprobs.requires_grad:
            # After the head has its gradient, before the layers have theirs.
            self.inner.trunk.body.get_input_embeddings().weight.register_hook(self.fail)  # type: ignore[operator]
        elif batch.size > self.rows:
            raise self.error
        return outputs

    def values(self, batch: Batch, value_head: nn.Module) -> Tensor:
        self.ran.append(batch.size)
        if batch.size > self.rows:
            raise self.error
        return self.inner.values(batch, value_head)

    def top(self, batch: Batch, k: int, vocabulary: int) -> tuple[Tensor, Tensor]:
        return self.inner.top(batch, k, vocabulary)

    def logits(self, batch: Batch, at: Tensor) -> Tensor:
        return self.inner.logits(batch, at)

    def fail(self, gradient: Tensor) -> Tensor:
        if self.ran[-1] > self.rows:
            raise self.error
        return gradient


def tight(model: CausalModel, rows: int, **options: object) -> Tight:
    return Tight(PackedForward(Trunk(model.module)), rows, **options)  # type: ignore[arg-type]


def make_batch(pair: tuple[int, int] | None = None) -> Batch:
    """12 rows in 3 groups: prompts of 4 tokens, completions of 2 to 13."""
    draw = torch.Generator().manual_seed(0)
    lengths = torch.arange(12) + 6
    tokens = torch.randint(5, 32, (12, 20), generator=draw)
    for group in range(3):
        tokens[4 * group : 4 * group + 4, :4] = tokens[4 * group, :4]
    places = torch.arange(20)[None]
    mask = (places >= 4) & (places < lengths[:, None])
    zeros, rows = torch.zeros(12, 20, dtype=torch.float64), torch.arange(12)
    noise = torch.randn(12, 20, generator=draw, dtype=torch.float64)
    columns = {"advantages": noise, "weights": mask / mask.sum()}
    if pair is not None:
        columns["pairs"] = torch.tensor([pair])
    return Batch(
        tokens, mask, lengths, zeros, zeros[:, 0], zeros, rows >= 0, rows // 4, rows, temperature=0.9, columns=columns
    )


def loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    assert outputs.entropy is not None
    return -(outputs.logprobs - batch.old_logprobs).exp() * batch.advantages - 0.1 * outputs.entropy, {}


NEEDS = frozenset({"old_logprobs"})


def gradients(learner: LocalLearner, batch: Batch) -> tuple[dict[str, Tensor], dict[str, float]]:
    metrics = learner.accumulate(batch, loss, needs=NEEDS)
    return {n: w.grad.clone() for n, w in learner.weights().items() if w.grad is not None}, metrics


@pytest.mark.parametrize("late", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), MemoryError()], ids=["gpu", "cpu", "py"]
)
def test_the_gradient_is_the_same(tiny: Load, rows: int, late: bool, error: Exception) -> None:
    model, batch = tiny("llama", "float64"), make_batch()
    expected, plain = gradients(LocalLearner(model, Optimiser()), batch)
    forward = tight(model, rows, late=late, error=error)
    learner = LocalLearner(model, Optimiser(), forward=forward)
    found, metrics = gradients(learner, batch)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-7, rtol=0)  # norms compute in float32
    assert metrics["loss"] == pytest.approx(plain["loss"], abs=1e-7)
    assert metrics["policy/entropy"] == pytest.approx(plain["policy/entropy"], abs=1e-7)
    assert forward.ran[0] == 12
    failed = sum(size > rows for size in forward.ran)
    assert failed >= 1
    last = len(forward.ran) - forward.ran[::-1].index(max(s for s in forward.ran if s > rows))
    assert sum(forward.ran[last:]) >= 12  # after the last failure every row was run again


def test_the_smaller_budget_is_kept_and_said_once(tiny: Load, caplog: pytest.LogCaptureFixture) -> None:
    model, batch = tiny("llama", "float64"), make_batch()
    forward = tight(model, 4)
    learner = LocalLearner(model, Optimiser(), forward=forward)
    with caplog.at_level(logging.WARNING):
        first = learner.step(batch, loss, needs=NEEDS)
        said = len(caplog.records)
        assert said == 2  # 12 rows, and of their halves one of more than 4
        assert f"set micro_batch_tokens = {learner.micro_batch_tokens} to begin" in caplog.text
        forward.ran.clear()
        second = learner.step(batch, loss, needs=NEEDS)
        learner.logprobs(batch)
        assert len(caplog.records) == said
    assert max(forward.ran) <= 4
    assert (
        first["memory/micro_batch_tokens"] == second["memory/micro_batch_tokens"] == learner.micro_batch_tokens < 16384
    )
    roomy = LocalLearner(tiny("llama", "float64"), Optimiser())
    assert "memory/micro_batch_tokens" not in roomy.step(batch, loss, needs=NEEDS)


def test_passes_without_gradient_are_the_same(tiny: Load) -> None:
    model, batch = tiny("llama", "float64"), make_batch()
    roomy = LocalLearner(model, Optimiser(), critic=ValueHead())
    learner = LocalLearner(model, Optimiser(), critic=ValueHead(), forward=tight(model, 2))
    torch.testing.assert_close(learner.logprobs(batch), roomy.logprobs(batch), atol=1e-7, rtol=0)
    torch.testing.assert_close(learner.values(batch), roomy.values(batch), atol=1e-7, rtol=0)
    forward, budget = tight(model, 3), Budget(1000)
    (found,) = in_parts(budget, batch, forward.split, lambda rows: (forward.outputs(rows, False).logprobs.detach(),))
    torch.testing.assert_close(found, roomy.logprobs(batch), atol=1e-7, rtol=0)
    assert budget.lowered
    assert budget.tokens < 1000


def test_rows_that_belong_together_are_run_together(tiny: Load) -> None:
    model, batch = tiny("llama", "float64"), make_batch(pair=(1, 10))
    seen: list[list[int]] = []

    def watch(outputs: Outputs, part: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        seen.append(part.units.tolist())
        return -outputs.logprobs, {}

    learner = LocalLearner(model, Optimiser(), forward=tight(model, 2))
    learner.accumulate(batch, watch)
    assert sorted(unit for units in seen[-11:] for unit in units) == list(range(12))
    assert [1, 10] in seen


def test_what_cannot_be_split_is_refused_with_the_remedy(tiny: Load) -> None:
    model = tiny("llama", "float64")
    learner = LocalLearner(model, Optimiser(), forward=tight(model, 1))
    with pytest.raises(ConfigError, match=r"on 2 rows of up to 16 tokens .* gradient_checkpointing"):
        learner.accumulate(make_batch(pair=(1, 10)), loss, needs=NEEDS)


def test_other_errors_are_raised_as_they_are(tiny: Load) -> None:
    model = tiny("llama", "float64")
    learner = LocalLearner(model, Optimiser(), forward=tight(model, 4, error=RuntimeError("shapes do not match")))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        learner.accumulate(make_batch(), loss, needs=NEEDS)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(ValueError("not enough memory"))
    with pytest.raises(ConfigError, match="micro_batch_tokens=0; expected at least 1"):
        Budget(0)


def test_what_a_real_allocator_says_is_understood() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
