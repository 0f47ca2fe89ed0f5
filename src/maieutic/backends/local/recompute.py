"""Gradient checkpointing: keep only what goes into each decoder layer, and run the layer again in the backward pass.

A third more arithmetic, and of all that layers keep for the backward pass one hidden state a layer remains.

transformers' own needs a module in training mode, and its second run would find the module as it is by then: without
the layout that says who sees whom, perhaps with another adapter at work. Here a layer runs the second time within what
it ran in the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from maieutic.errors import ConfigError
from maieutic.models.lora import switches

#: Makes what a layer is to run in; entered anew for every layer.
Within = Callable[[], AbstractContextManager[Any]]

#: Calls a function with what follows it.
Run = Callable[..., Any]


def decoder_layers(body: nn.Module) -> list[nn.Module]:
    """The layers of a decoder, in order. Raises `ConfigError` where a module does not tell which they are."""
    config: Any = getattr(body, "config", None)
    count = getattr(config, "num_hidden_layers", None)
    lists = (part for part in body.modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    found = next(lists, None)
    if found is None:
        raise ConfigError(
            f"got gradient_checkpointing = true for {type(body).__name__}, which does not hold its {count or ''} "
            "layers in a list, so they cannot be run one by one; expected a decoder of the usual form. Leave it out, "
            "and lower micro_batch_tokens instead"
        )
    return list(found)


def runner(module: nn.Module, within: Within = nullcontext) -> Run:
    """What runs a layer so that it keeps its input alone: `runner(module)(layer.forward, states)`.

    `within` is what the module is run in; the adapters that are at work in `module` now will be so in the second run.
    """
    adapters = _adapters_as_now(module)

    @contextmanager
    def second() -> Iterator[None]:
        with adapters(), within():
            yield

    return partial(
        checkpoint,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing in it is random
        context_fn=lambda: (nullcontext(), second()),
    )


@contextmanager
def recomputing(layers: list[nn.Module], run: Run) -> Iterator[None]:
    """Within, the forward of each of the layers is run by `run`."""
    own = [(vars(layer), vars(layer).get("forward"), layer.forward) for layer in layers]
    for kept, _, forward in own:
        kept["forward"] = partial(run, forward)
    try:
        yield
    finally:
        for kept, before, _ in own:
            if before is None:
                del kept["forward"]
            else:
                kept["forward"] = before


def _adapters_as_now(module: nn.Module) -> Within:
    """What puts the adapters that are at work now to work again."""
    parts = [vars(part) for part in switches(module)]
    now = [(kept["_active_adapter"], kept["_disable_adapters"]) for kept in parts]

    @contextmanager
    def again() -> Iterator[None]:
        before = [(kept["_active_adapter"], kept["_disable_adapters"]) for kept in parts]
        _switch(parts, now)
        try:
            yield
        finally:
            _switch(parts, before)

    return again


def _switch(parts: list[dict[str, Any]], states: list[tuple[Any, Any]]) -> None:
    for kept, (adapter, disabled) in zip(parts, states, strict=True):
        kept.update(_active_adapter=adapter, _disable_adapters=disabled)
