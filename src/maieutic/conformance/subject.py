"""What is examined: a trainer, on rows, with a model small enough to enumerate.

    class Mine:
        def backward(self, model, rows, micro_batches):   # leave in .grad what ONE optimiser step on these rows uses
            ...
            return loss

    report = examine(Mine(), Claims(scale=1.0, kl="reverse", beta=0.05))

`model(input_ids, attention_mask=None).logits` are `[B, T, V]`, as of any Hugging Face decoder: logits at `t` predict
the token at `t + 1`. Everything else is token-aligned: column `t` speaks of `tokens[:, t]`, and column 0 is never
chosen.

Letters: `B` rows, `T` tokens, `V` vocabulary, `P` pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Rows:
    """One optimiser batch, right-padded. Filled by a check.

    tokens            [B, T]   prompt and completion; padding holds 0, which is a token too: `lengths` tell
    mask              [B, T]   True where the policy chose the token
    lengths           [B]      tokens of each row
    rewards           [B]      outcome of each row
    groups            [B]      rows of one task bear one number
    old_logprobs      [B, T]   of the policy before the update, nats, 0 off the mask
    sampler_logprobs  [B, T]   of the engine that sampled
    ref_logprobs      [B, T]   of the reference
    terminated        [B]      False where the length limit cut
    pairs             [P, 2]   row numbers (chosen, rejected), for losses of pairs
    temperature                at which the rows were sampled, and all log-probs are
    """

    tokens: Tensor
    mask: Tensor
    lengths: Tensor
    rewards: Tensor
    groups: Tensor
    old_logprobs: Tensor
    sampler_logprobs: Tensor
    ref_logprobs: Tensor
    terminated: Tensor
    pairs: Tensor
    temperature: float = 1.0

    def with_(self, **columns: Any) -> Rows:
        """The same rows with these columns replaced."""
        return replace(self, **columns)

    def take(self, order: Tensor) -> Rows:
        """The rows in this order; pairs of which both rows are there are kept and renumbered."""
        taken = {f.name: getattr(self, f.name)[order] for f in fields(self) if f.name not in ("pairs", "temperature")}
        number = self.pairs.new_full((len(self.rewards),), -1)
        number[order] = torch.arange(len(order))
        renamed = number[self.pairs]
        return Rows(**taken, pairs=renamed[(renamed >= 0).all(1)], temperature=self.temperature)

    def padded(self, columns: int) -> Rows:
        """The rows with so many more columns of padding."""
        wide: dict[str, Any] = {
            f.name: nn.functional.pad(getattr(self, f.name), (0, columns))
            for f in fields(self)
            if f.name not in ("pairs", "temperature") and getattr(self, f.name).dim() == 2
        }
        return replace(self, **wide)


class Trainer(Protocol):
    """What a library does with one optimiser batch."""

    def backward(self, model: TableModel, rows: Rows, micro_batches: int) -> float:
        """Leave in the parameters' `.grad` the gradient of one optimiser step on these rows, and return its loss.

        `micro_batches` is into how many pieces memory forces the rows to be split; the gradient is of all of them.
        Advantages are the trainer's to make, from `rows.rewards` and `rows.groups`.
        """
        ...


@dataclass(frozen=True, slots=True)
class Claims:
    """What a trainer says of itself; a check that speaks of something it does not claim is left out, and said so.

    rewards    it follows the rewards of single rows ("rows"), of pairs ("pairs"), or none, as fine-tuning ("none")
    baseline   whether rewards are compared with others of the group or batch; False: they are taken as they are
    scale      what its expected gradient is in units of −∇E[r], for groups of three rows of two tokens each: 1 for a
               leave-one-out baseline and a sum over tokens; None where a deviation or whitening makes it no constant
    kl         what its penalty pulls towards: "reverse" (KL(π ‖ ref)), "forward" (KL(ref ‖ π)), "nothing" (k1 in the
               loss), or None where it has none
    beta       the penalty's coefficient, a token
    clip       (epsilon, epsilon_high) of a ratio that is clipped a token at a time, as PPO does; None where it is not
    """

    rewards: str = "rows"
    baseline: bool = True
    scale: float | None = None
    kl: str | None = None
    beta: float = 0.0
    clip: tuple[float, float] | None = None


class TableModel(nn.Module):
    """A decoder that is a table: logits `table[position, token]`, values `value[position, token]`, in float64.

    Every completion of it can be written down. It takes whatever else is handed to a Hugging Face decoder.
    """

    def __init__(self, vocabulary: int = 4, positions: int = 32, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(
            torch.randn(positions, vocabulary, vocabulary, generator=generator, dtype=torch.float64)
        )
        self.value = nn.Parameter(torch.zeros(positions, vocabulary, dtype=torch.float64))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> Any:
        """`.logits [B, T, V]`."""
        return SimpleNamespace(logits=self.table[self._positions(input_ids, attention_mask), input_ids])

    def values(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`[B, T]`: the value of the state after each token."""
        return self.value[self._positions(input_ids, attention_mask), input_ids]

    @staticmethod
    def _positions(ids: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None:
            return torch.arange(ids.shape[1]).expand_as(ids)
        return (mask.long().cumsum(1) - 1).clamp(min=0)

    def logprobs(self, tokens: Tensor, temperature: float = 1.0) -> Tensor:
        """`[B, T]`, token-aligned, with gradient: what each token had after those before it; column 0 is 0."""
        scores = torch.log_softmax(self(tokens).logits / temperature, dim=-1)
        found = scores[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        return nn.functional.pad(found, (1, 0))

    def flat_gradient(self) -> Tensor:
        """The gradient that lies in the table, flat; 0 where there is none."""
        return torch.zeros_like(self.table).flatten() if self.table.grad is None else self.table.grad.flatten()


def gradient_of(trainer: Trainer, model: TableModel, rows: Rows, micro_batches: int = 1) -> Tensor:
    """The flat gradient that a trainer leaves, from a clean start."""
    model.zero_grad()
    trainer.backward(model, rows, micro_batches)
    return model.flat_gradient().clone()


class Differs(AssertionError):
    """The trainer does not do what it claims: what was got, what was expected, where to look."""
