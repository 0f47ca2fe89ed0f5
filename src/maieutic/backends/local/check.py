"""Can the plug serve this model? Decided when it is loaded, by what its config says and by comparing numbers.

An architecture that cannot be served runs through its own forward instead (`OrdinaryDecoder`, `PaddedForward`): slower,
equally right, and said once in the log.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from maieutic.backends.local.attention import Layout, Unservable
from maieutic.backends.local.cache import Admission
from maieutic.backends.local.coarse import has_units
from maieutic.backends.local.decoder import Decoder, OrdinaryDecoder, SlotDecoder
from maieutic.backends.local.evaluate import Forward, PackedForward, PaddedForward
from maieutic.backends.local.narrow import narrow_for
from maieutic.backends.local.packing import pack_tokens
from maieutic.backends.local.recompute import decoder_layers
from maieutic.backends.local.replay import ReplayedDecoder
from maieutic.backends.local.segments import serves
from maieutic.backends.local.trunk import Trunk, bare
from maieutic.errors import ConfigError, UnknownName
from maieutic.models.precision import SAMPLED_IN, computed_in

log = logging.getLogger("maieutic.backends.local")

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4}
"""Largest accepted difference of logits, relative to their spread; on a GPU, whose products of different shapes differ
more, ten times that."""
COARSE = 5e-2
"""The same of half precisions, which round at about 1e-2 in every layer: there of a token's logits taken together (the
root of the mean square), for the largest of 10⁵ rounding errors says little."""

_reasons: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
_said: set[tuple[str, str]] = set()


def forward_for(module: nn.Module, recompute: bool = False, precision: str = "auto") -> Forward:
    """The way to run this module over batches. `recompute`: with gradient checkpointing (see `recompute`).

    `precision`: see `maieutic.models.precision`. Raises `ConfigError` for one that the device has not, and for a module
    of which the layers cannot be run one by one, where that is asked.
    """
    if recompute:
        decoder_layers(bare(module))
    numbers = computed_in(precision, next(module.parameters()))
    if why_not(module):
        return PaddedForward(module, recompute, numbers)
    return PackedForward(Trunk(module), recompute=recompute, numbers=numbers)


def decoder_for(module: nn.Module, precision: str = "auto", sampling: str = "same") -> Decoder:
    """The way to sample from this module: on a GPU in steps that are captured, where its layers allow it.

    `sampling`: coarser numbers for it than `precision`, on a CPU: "bfloat16" or "int8" (see `coarse`). Raises
    `UnknownName` for another, `ConfigError` where that cannot be.
    """
    weight = next(module.parameters())
    if sampling not in SAMPLED_IN:
        raise UnknownName("precision to sample in", sampling, SAMPLED_IN)
    learned_in, asked = computed_in(precision, weight), SAMPLED_IN[sampling]
    if asked is None or asked == learned_in:
        return _decoder_in(module, weight, learned_in)
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not has_units(asked):
        raise ConfigError(
            f"got sampling_precision = {sampling!r} for weights in {weight.dtype} on {weight.device}; expected float32 "
            "weights on a CPU with units for such numbers (bfloat16: AVX-512 BF16 or AMX; int8: AVX2). Leave it out"
        )
    if not why_not(module):
        decoder = SlotDecoder(Trunk(module), weight.device, numbers=asked)
        if decoder.numbers == asked:
            decoder.off_policy = True
            return decoder
    raise ConfigError(
        f"got sampling_precision = {sampling!r} for {type(bare(module)).__name__}, which is sampled as it stands; "
        "expected layers of the common form (Llama, Qwen2, Qwen3, …) with linear parts of less than 1 GiB in these "
        "numbers. Leave it out"
    )


def _decoder_in(module: nn.Module, weight: Tensor, numbers: torch.dtype) -> Decoder:
    if why_not(module):
        return OrdinaryDecoder(module, weight.device)
    trunk = Trunk(module)
    if weight.device.type != "cuda":
        coarse = numbers != weight.dtype and has_units(numbers)
        return SlotDecoder(trunk, weight.device, numbers=numbers if coarse else None)
    narrow = narrow_for(trunk, numbers)
    return SlotDecoder(trunk, weight.device) if narrow is None else ReplayedDecoder(trunk, narrow, weight.device)


def why_not(module: nn.Module) -> str:
    """Why plugged attention cannot serve a module, or an empty string. Found out once a module, logged once."""
    if module not in _reasons:
        _reasons[module] = _find_reason(module)
        said = (type(bare(module)).__name__, _reasons[module])
        if _reasons[module] and said not in _said:
            _said.add(said)
            log.warning(
                "%s cannot use the fast engine: %s. It runs through its own forward and cache instead: the same "
                "numbers, several times slower.",
                *said,
            )
    return _reasons[module]


def why_not_by_config(module: nn.Module) -> str:
    """As much of `why_not` as is known without running the module: of an outline, which has no weights."""
    try:
        _check_config(module)
        Trunk(module)
    except Unservable as reason:
        return str(reason)
    config: Any = bare(module).config
    slides = getattr(config, "sliding_window", None) and not getattr(config, "layer_types", None)
    return "its attention asks for sliding_window" if slides else ""


def _find_reason(module: nn.Module) -> str:
    training = module.training
    module.eval()
    try:
        _check_config(module)
        trunk = Trunk(module)
        with torch.no_grad():
            _check_head(module, trunk)
            _check_numbers(module, trunk)
    except Unservable as reason:
        return str(reason)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        # The module was run in a way that it was not written for; whatever it tripped over, it cannot be served.
        return f"it fails when run over packed rows ({type(error).__name__}: {error})"
    finally:
        module.train(training)
    return ""


def _check_config(module: nn.Module) -> None:
    """What numbers on a short random text might not show."""
    wrapped: Any = module
    settings = getattr(wrapped, "peft_config", {})
    if any(getattr(one, "is_prompt_learning", False) for one in settings.values()):
        raise Unservable("its adapter writes into the prompt")
    config: Any = bare(module).config
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = {one.get("rope_type") for one in (rope, *rope.values()) if isinstance(one, dict)}
    if kinds & {"dynamic", "longrope"}:
        raise Unservable("its rotary frequencies depend on the length of the text")
    if getattr(config, "is_encoder_decoder", False):
        raise Unservable("it is not a decoder")
    layers = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if layers:
        raise Unservable(f"it has layers of type {', '.join(sorted(layers))}")


def _check_head(module: nn.Module, trunk: Trunk) -> None:
    """Are logits what the head returns, neither scaled nor capped? Large numbers are put in its place to see it."""
    replaced: list[Tensor] = []

    def exaggerate(_part: nn.Module, _inputs: object, out: Tensor) -> Tensor:
        replaced.append(torch.linspace(-300, 300, out.numel(), dtype=out.dtype, device=out.device).view(out.shape))
        return replaced[-1]

    hook = trunk.head.register_forward_hook(exaggerate)
    try:
        tokens = torch.zeros(1, 2, dtype=torch.long, device=_device(module))
        logits = module(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits
    finally:
        hook.remove()
    if len(replaced) != 1 or not torch.equal(logits, replaced[0]):
        raise Unservable("it changes logits after its head (a scale or a soft cap)")


def _check_numbers(module: nn.Module, trunk: Trunk) -> None:
    """A packed batch and a few decoding steps against the ordinary forward of each row by itself."""
    device = _device(module)
    size = bare(module).get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    numbers = np.random.default_rng(0).integers(0, size, 20).tolist()
    # Two prompts of 5 and 2 tokens; two rows share the first, with completions of 4, 6 and 3 tokens.
    rows = [(numbers[:5], numbers[7:11]), (numbers[:5], numbers[11:17]), (numbers[5:7], numbers[17:20])]
    expected = [_ordinary(module, prompt + completion) for prompt, completion in rows]
    allowed = TOLERANCE.get(expected[0].dtype, COARSE) * float(torch.cat(expected).float().std())
    allowed *= 10 if device.type == "cuda" and expected[0].dtype in TOLERANCE else 1
    layout_calls: list[int] = []
    found = _packed(trunk, rows, layout_calls)
    if sorted(layout_calls) != list(range(int(getattr(trunk.config, "num_hidden_layers", 0)))):
        raise Unservable("not every layer attends through transformers' attention interface")
    wanted = [whole[len(prompt) - 1 : -1] for (prompt, _), whole in zip(rows, expected, strict=True)]
    _compare("a packed batch", torch.cat(wanted), found, allowed)
    decoder = SlotDecoder(trunk, device)
    admissions = [Admission(rows[0][0], [0, 1], 8, siblings=4), Admission(rows[2][0], [2], 8)]
    after = decoder.admit(admissions, 16, 3)
    _compare("a prompt", torch.stack([expected[0][4], expected[2][1]]), after, allowed)
    for step in range(3):
        fed = np.array([completion[step] for _, completion in rows])
        at = np.array([len(prompt) + step for prompt, _ in rows])
        logits = decoder.decode(fed, at, np.ones(3, np.bool_))
        whole = torch.stack([row[place] for row, place in zip(expected, at.tolist(), strict=True)])
        _compare("decoding", whole, logits, allowed)


def _ordinary(module: nn.Module, tokens: list[int]) -> Tensor:
    """Logits `[T, V]` of one sequence by the module's own forward."""
    given = torch.tensor([tokens], device=_device(module))
    return module(input_ids=given, attention_mask=torch.ones_like(given), use_cache=False).logits[0]


@dataclass(frozen=True)
class _Counted:
    """A layout that notes the layers which attend through it."""

    layout: Layout
    calls: list[int]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.calls.append(layer)
        return self.layout.attend(layer, query, key, value, scaling)


def _packed(trunk: Trunk, rows: list[tuple[list[int], list[int]]], calls: list[int]) -> Tensor:
    """Logits of the completions' tokens, row after row, by a packed forward."""
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    device = next(trunk.head.parameters()).device
    tokens = torch.zeros(len(rows), width, dtype=torch.long, device=device)
    mask = torch.zeros(len(rows), width, dtype=torch.bool, device=device)
    for row, (prompt, completion) in enumerate(rows):
        stop = len(prompt) + len(completion)
        tokens[row, :stop] = torch.tensor(prompt + completion)
        mask[row, len(prompt) : stop] = True
    packed = pack_tokens(tokens, mask, segments=serves(next(trunk.head.parameters())))
    assert packed is not None, "every row has a completion"
    hidden = trunk.hidden(packed.tokens, packed.positions, _Counted(packed.layout, calls))
    return trunk.logits(hidden[packed.sources])


def _compare(what: str, expected: Tensor, found: Tensor, allowed: float) -> None:
    apart = (expected.float() - found.float()).abs()
    coarse = expected.dtype not in TOLERANCE
    difference = float(apart.square().mean(dim=-1).max().sqrt() if coarse else apart.max())
    if not difference <= allowed:
        raise Unservable(f"{what} gives logits that differ by {difference:.2g} (accepted: {allowed:.2g})")


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
