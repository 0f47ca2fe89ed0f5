"""Critics of the local backend: what gives a learner values.

    ValueHead()                        one more output of the policy: a head on its last hidden states
    SeparateCritic(load_causal(…))     a backbone of its own with a head, of which the policy feels nothing
    SeparateCritic(copied(model, …))   the same over the policy's base: an adapter of its own (`models.adapters`)

A head is zero at the start, weights and biases, so the first values are exactly 0: it does not disturb the first
advantages with noise. It computes in float32 at least: a value is a sum of many small corrections, and bfloat16 keeps
three digits.

    `B` rows, `T` tokens · `M` chosen tokens · `E` width of a hidden state
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from maieutic.backends.local.check import forward_for
from maieutic.backends.local.evaluate import Forward
from maieutic.backends.local.switched import forward_of
from maieutic.backends.local.trunk import bare
from maieutic.errors import ConfigError
from maieutic.models.adapters import adapter_weights
from maieutic.models.causal import BASE, CausalModel, without_dropout
from maieutic.types import Batch, Outputs


class Critic(Protocol):
    """A critic that was not yet joined to a policy: what `LocalBackend.policy(critic=...)` takes."""

    def join(self, policy: CausalModel) -> JoinedCritic:
        """The critic at work beside this policy, its values 0."""
        ...


@dataclass(frozen=True)
class ValueHead:
    """A head on the policy's own last hidden states; the loss of its values trains the policy's weights too.

    Cheap: nothing is computed twice. The coefficient of `value_loss` then says how much of the policy is given to the
    critic, so keep it small (0.1).

    learning_rate   of the head (None: the policy's). A new head may learn ten times as fast and more.
    hidden          units of a hidden layer (None: the head is linear).
    """

    learning_rate: float | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        _check(self.learning_rate, self.hidden)

    def join(self, policy: CausalModel) -> JoinedCritic:
        """See `Critic`."""
        return SharedTrunk(head_for(policy.module, self.hidden), self.learning_rate)


@dataclass(frozen=True)
class SeparateCritic:
    """A critic with a model of its own: twice the memory and time, and the policy is left alone.

    model           a model loaded for this purpose alone, with the policy's tokenizer: what the policy starts from, or
                    a reward model's backbone. All of it that is trainable is trained (with LoRA: its adapter). Or an
                    adapter beside the policy's (`copied`, `beside`): it takes the memory of an adapter.
    learning_rate   of all its weights (None: the policy's); between 2 and 10 times the policy's is usual.
    hidden          as in `ValueHead`.
    """

    model: CausalModel
    learning_rate: float | None = None
    hidden: int | None = None

    def __post_init__(self) -> None:
        _check(self.learning_rate, self.hidden)

    def join(self, policy: CausalModel) -> JoinedCritic:
        """See `Critic`. Raises `ConfigError` for the policy's own weights, or a model that reads other tokens."""
        within = self.model.module is policy.module
        if within and self.model.adapter_name in (policy.adapter_name, BASE):
            raise ConfigError(
                "got the policy itself as its separate critic, or its bare base: a step of one would move the other. "
                "Load the model once more for the critic, give it an adapter of its own (copied(model, 'critic', "
                "trainable=True)), or take ValueHead(), which shares the policy's weights"
            )
        if self.model.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
            raise ConfigError(
                f"got a critic ({self.model.source}) whose tokenizer is not that of the policy ({policy.source}); "
                "expected the same tokens, because the critic reads what the policy wrote"
            )
        self.model.module.to(next(policy.module.parameters()).device)
        head = head_for(self.model.module, self.hidden)
        if within:
            return OwnAdapter(self.model, head, self.learning_rate)
        return OwnTrunk(self.model.module, head, self.learning_rate, self.model.precision)


class JoinedCritic(Protocol):
    """A critic beside a policy: parameters of its own, and how values are computed.

    `forward` is the policy's way of running its module; `learning_rate` is that of the critic's parameters (None: the
    policy's).
    """

    learning_rate: float | None

    def recompute(self) -> None:
        """Learn with gradient checkpointing from now on, as the policy does."""
        ...

    def values(self, forward: Forward, batch: Batch) -> Tensor:
        """`[B, T]` values of the states in which the chosen tokens were chosen, 0 elsewhere, with gradient."""
        ...

    def outputs(self, forward: Forward, batch: Batch, entropy: bool) -> Outputs:
        """What the policy says of the batch, and the values beside it."""
        ...

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


class SharedTrunk(nn.Module):
    """A head on the policy's states; see `JoinedCritic`."""

    def __init__(self, head: Head, learning_rate: float | None) -> None:
        super().__init__()
        self.head = head
        self.learning_rate = learning_rate

    def recompute(self) -> None:
        """The layers are the policy's."""

    def values(self, forward: Forward, batch: Batch) -> Tensor:
        """The language-model head is not run."""
        return forward.values(batch, self.head)

    def outputs(self, forward: Forward, batch: Batch, entropy: bool) -> Outputs:
        """One pass for both."""
        return forward.outputs(batch, entropy, self.head)


class OwnTrunk(nn.Module):
    """A backbone of its own, run as fast as its architecture allows, and a head on its states; see `JoinedCritic`."""

    def __init__(self, module: nn.Module, head: Head, learning_rate: float | None, precision: str = "auto") -> None:
        super().__init__()
        self.module = without_dropout(module).eval()
        self.head = head
        self.learning_rate = learning_rate
        self.precision = precision
        self.own_forward = forward_for(module, precision=precision)
        freeze_language_head(module)

    def recompute(self) -> None:
        """See `JoinedCritic`."""
        self.own_forward = forward_for(self.module, recompute=True, precision=self.precision)

    def values(self, forward: Forward, batch: Batch) -> Tensor:  # noqa: ARG002 - the policy is not run
        """From its own states."""
        return self.own_forward.values(batch, self.head)

    def outputs(self, forward: Forward, batch: Batch, entropy: bool) -> Outputs:
        """A pass of the policy and one of its own."""
        return dataclasses.replace(forward.outputs(batch, entropy), values=self.values(forward, batch))


class OwnAdapter:
    """An adapter of its own over the policy's base, and a head on its states; see `JoinedCritic`.

    The module is the policy's and belongs to it, so this is no `nn.Module` that would hold it.
    """

    def __init__(self, model: CausalModel, head: Head, learning_rate: float | None) -> None:
        self.model = model
        self.head = head
        self.learning_rate = learning_rate
        self.own_forward = forward_of(model)
        whole: Any = bare(model.module)
        unread = {id(weight) for weight in whole.get_output_embeddings().parameters()}
        for weight in adapter_weights(model.module, model.adapter_name).values():
            if id(weight) in unread:
                weight.requires_grad_(False)

    def recompute(self) -> None:
        """See `JoinedCritic`."""
        self.own_forward = forward_of(self.model, recompute=True)

    def values(self, forward: Forward, batch: Batch) -> Tensor:  # noqa: ARG002 - the policy is not run
        """From the states of its adapter."""
        return self.own_forward.values(batch, self.head)

    def outputs(self, forward: Forward, batch: Batch, entropy: bool) -> Outputs:
        """A pass of the policy and one of its own."""
        return dataclasses.replace(forward.outputs(batch, entropy), values=self.values(forward, batch))

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of its adapter and of its head, and no others of the module."""
        own = adapter_weights(self.model.module, self.model.adapter_name)
        yield from ((f"module.{name}", weight) for name, weight in own.items())
        yield from ((f"head.{name}", weight) for name, weight in self.head.named_parameters())


class Head(nn.Module):
    """Hidden states `[M, E]` → values `[M, 1]`, in float32 at least; all 0 before it has learned."""

    def __init__(self, width: int, hidden: int | None, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.dtype = torch.promote_types(dtype, torch.float32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = [] if hidden is None else [nn.Linear(width, hidden), nn.Tanh()]
            last = nn.Linear(hidden or width, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last).to(device, self.dtype)

    def forward(self, states: Tensor) -> Tensor:
        """`[M, E]` → `[M, 1]`."""
        return self.layers(states.to(self.dtype))


def head_for(module: nn.Module, hidden: int | None) -> Head:
    """A head that fits the last hidden states of a module, where its weights are."""
    whole: Any = bare(module)
    weight: Tensor = whole.get_output_embeddings().weight
    return Head(int(weight.shape[1]), hidden, weight.dtype, weight.device)


def freeze_language_head(module: nn.Module) -> None:
    """Take a head that nothing reads out of training; one that is tied to the embedding is read as that."""
    whole: Any = bare(module)
    head, embedding = whole.get_output_embeddings(), whole.get_input_embeddings()
    for weight in head.parameters():
        if weight is not embedding.weight:
            weight.requires_grad_(False)


def _check(learning_rate: float | None, hidden: int | None) -> None:
    if (learning_rate is not None and learning_rate <= 0) or (hidden is not None and hidden < 1):
        raise ConfigError(
            f"got a critic with learning_rate={learning_rate}, hidden={hidden}; expected more than 0, or None"
        )
