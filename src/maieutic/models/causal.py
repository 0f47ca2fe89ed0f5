"""Causal language models: load any Hugging Face decoder, save it as the plain folder it was, score tokens.

    model = load_causal("Qwen/Qwen2.5-0.5B-Instruct", lora=LoRA(rank=16))
    logits = model.module(tokens).logits                          [B, T, V]
    token_logprobs(logits, tokens, temperature=1.0)               [B, T]
    save_causal(model, "checkpoints/last")

Letters: `B` rows, `T` tokens, `V` vocabulary, `N` gathered positions. Log-probs are natural logarithms (nats).
"""

from __future__ import annotations

import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from maieutic.errors import ConfigError, ModelError
from maieutic.models.chat import ChatFormat, chat_format
from maieutic.models.find import adapter_base, adapter_revision, find_model, holds, unreadable
from maieutic.models.lora import LoRA, add_lora, load_adapter
from maieutic.models.precision import numbers_of
from maieutic.models.progress import no_progress_bars

#: The adapter that is trained, and the name that stands for the base without one.
POLICY, BASE = "default", ""

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class CausalModel:
    """A loaded model with what is needed to speak to it.

    `module(tokens [B, T]).logits` are `[B, T, V]`. `adapter` says whether `module` is a PEFT model whose adapter is
    what is trained; `adapter_source` is the folder that adapter was read from (empty for a fresh one, which changes
    nothing until it is trained). `source` is the path or id that was asked for. `adapter_name` says which adapter of
    the module is meant: others may lie beside the policy's (`maieutic.models.adapters`). `precision` names what its
    products are computed in (`maieutic.models.precision`).
    """

    module: nn.Module
    tokenizer: Any
    chat: ChatFormat
    source: str
    adapter: bool = False
    adapter_source: str = ""
    adapter_name: str = POLICY
    precision: str = "auto"


def parameter_count(module: nn.Module, leave_out: Set[int] = frozenset()) -> int:
    """Parameters without the embeddings and the language-model head: the `N` of estimates of cost. Nor are those
    counted whose `id` is in `leave_out`."""
    whole: Any = module
    outer: list[Any] = [part for part in module.modules() if isinstance(part, nn.Embedding)]
    outer += [whole.get_output_embeddings()] if hasattr(whole, "get_output_embeddings") else []
    left_out = leave_out | {id(weight) for part in outer if part is not None for weight in part.parameters()}
    return sum(weight.numel() for weight in module.parameters() if id(weight) not in left_out)


def load_causal(
    source: str | Path,
    *,
    lora: LoRA | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    attention: str | None = None,
    revision: str | None = None,
    template: str | Path = "auto",
    dropout: bool = False,
    precision: str = "auto",
) -> CausalModel:
    """Load a decoder by Hugging Face id, by model folder, or by PEFT adapter folder (its base model is found inside).

    lora        add a fresh adapter and train only that. Not together with an adapter folder.
    dtype       "auto": float32 on a CPU (bfloat16 is several times slower on most), bfloat16 elsewhere; or a name such
                as "float32".
    device      None: "cuda" if there is one, else "cpu".
    attention   the name of a transformers attention implementation ("sdpa", "eager", a registered one, …); None: the
                fastest of PyTorch's that the architecture allows ("sdpa", but "eager" for Gemma 2).
    template    see `maieutic.models.chat.chat_format`.
    dropout     keep the model's own dropout, for fine-tuning. By default every dropout is 0, because two passes over
                the same tokens must give the same log-probs.
    precision   of the products of float32 weights: "auto" (float32 on a CPU, bfloat16 on a GPU that has it), "float32"
                or "bfloat16"; see `maieutic.models.precision`.

    Raises `ModelError` when there is no such model, it cannot be read, or it has no usable tokenizer;
    `ConfigError` for an impossible combination of settings.
    """
    place = place_of(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    numbers_of(precision, place)
    name = find_model(source)
    adapter = name if holds(name, "adapter_config.json") else ""
    if adapter and lora is not None:
        raise ConfigError(
            f"got lora settings for {adapter}, which is an adapter already; leave them out to go on training it, or "
            "merge it into its base first (`maieutic.models.lora.merged`)"
        )
    home = find_model(adapter_base(Path(adapter))) if adapter else name
    options = {"revision": adapter_revision(Path(adapter)) if adapter else revision}
    try:
        with no_progress_bars():
            module = AutoModelForCausalLM.from_pretrained(
                home, dtype=_dtype(dtype, place), attn_implementation=attention, **options
            )
            tokenizer = load_tokenizer(adapter if holds(adapter, "tokenizer_config.json") else home, **options)
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(home, error) from error
    if getattr(module, "_hf_peft_config_loaded", False):
        raise ModelError(f"{name} is an adapter on the Hub; download it (`hf download {name}`) and give its folder")
    chat = chat_format(tokenizer, template, getattr(module, "generation_config", None))
    if adapter:
        module = load_adapter(module, Path(adapter))
    elif lora is not None:
        module = add_lora(module, lora, revision)
    if not dropout:
        without_dropout(module)
    trained, home = bool(adapter or lora), str(source)
    return CausalModel(module.to(place), tokenizer, chat, home, trained, adapter, precision=precision)


def place_of(device: str | torch.device) -> torch.device:
    """The device of that name. Raises `ConfigError` for one that torch does not know or that is not here."""
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"got device {str(device)!r}; expected a name such as cpu, cuda or cuda:1") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"got device {str(device)!r}; this torch sees {torch.cuda.device_count()} CUDA devices. Take device = "
            "'cpu', or install torch for CUDA and see that the driver runs (nvidia-smi)"
        )
    return place


def save_causal(model: CausalModel, folder: str | Path) -> Path:
    """Write a plain Hugging Face folder (a PEFT folder for an adapter) with the tokenizer; `load_causal` reads it.

    Weights are written in their own precision, so loading them in it gives them back bit for bit.
    Raises `ConfigError` for an adapter that lies beside a policy: a checkpoint keeps what of it can change.
    """
    if model.adapter_name != POLICY:
        raise ConfigError(
            f"got the adapter {model.adapter_name!r} beside a policy to save; expected the policy. What is trained "
            "beside it is in the checkpoint of its learner, and what is not is where it was read from"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    module: Any = model.module
    with no_progress_bars():
        if model.adapter:
            module.save_pretrained(folder, selected_adapters=[POLICY])
        else:
            module.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    _forget_reading(folder / "tokenizer_config.json")
    return folder


def _forget_reading(config: Path) -> None:
    """Leave out how the tokenizer was read (from a folder or the Hub): of one tokenizer all folders are alike."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    kept = {name: value for name, value in settings.items() if name not in ("is_local", "local_files_only")}
    config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-prob of each token given those before it: `[B, T]` from logits `[B, T, V]` and tokens `[B, T]`.

        out[b, t] = log softmax(logits[b, t-1] / temperature)[tokens[b, t]],    out[b, 0] = 0

    The only place where logits and tokens are shifted against each other. Computed in float32 at least.
    Raises ValueError for shapes that do not fit, or a temperature that is not positive.
    """
    if logits.shape[:-1] != tokens.shape or tokens.dim() != 2:
        raise ValueError(
            f"got logits {tuple(logits.shape)} for tokens {tuple(tokens.shape)}; expected [B, T, V] and [B, T]"
        )
    flat = selected_logprobs(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), temperature)
    return nn.functional.pad(flat.view(tokens.shape[0], -1), (1, 0))


def selected_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-prob of `tokens [N]` under `logits [N, V]` that belong to them already (no shift): `[N]`.

    log softmax(z)[token] = z[token] - logsumexp(z) with z = logits / temperature, in float32 at least; the softmax
    itself is never stored. Raises ValueError as `token_logprobs` does.
    """
    return _selected(_scaled(logits, tokens, temperature), tokens)[0]


def selected_logprobs_and_entropy(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """As `selected_logprobs`, with the entropy of each distribution from the same pass: `[N]` and `[N]`, both in nats.

    H = logsumexp(z) - sum(softmax(z) * z), at the same temperature.
    """
    scaled = _scaled(logits, tokens, temperature)
    chosen, total = _selected(scaled, tokens)
    expected = ((scaled - total.unsqueeze(-1)).exp() * scaled).sum(dim=-1)
    return chosen, total - expected


def candidate_logprobs(logits: Tensor, candidates: Tensor, temperature: float = 1.0) -> Tensor:
    """As `selected_logprobs`, of several tokens for each position: `candidates [N, K]` → `[N, K]`."""
    scaled = _scaled(logits, candidates[:, 0], temperature)
    return scaled.gather(-1, candidates) - torch.logsumexp(scaled, dim=-1, keepdim=True)


def likeliest(logits: Tensor, k: int, vocabulary: int, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The `k` likeliest of the first `vocabulary` tokens under `logits [N, V]`: ids and log-probs `[N, k]`, falling.

    Log-probs are those of the whole distribution, not renormalised: what other tokens have is missing from their sum.
    """
    scaled = _scaled(logits, logits.new_zeros(len(logits), dtype=torch.long), temperature)
    found, ids = scaled[:, :vocabulary].topk(k, dim=-1)
    return ids, found - torch.logsumexp(scaled, dim=-1, keepdim=True)


def without_dropout(module: AnyModule) -> AnyModule:
    """Set every dropout inside to 0, LoRA's included, in place; returns the module.

    The probability itself is set, not only `eval()`: some features (gradient checkpointing) need training mode.
    The config is left as it is, so a saved model keeps its author's setting.
    """
    for part in module.modules():
        if isinstance(part, nn.modules.dropout._DropoutNd):
            part.p = 0.0
        for name, value in list(vars(part).items()):
            if isinstance(value, float) and ("dropout" in name or name == "layerdrop"):
                setattr(part, name, 0.0)
    return module


def load_tokenizer(source: str | Path, revision: str | None = None) -> Any:
    """The tokenizer of a model folder or Hub id, as its files declare it.

    transformers 5 picks the class by the model's type for some types ("qwen2"), which would cut text by other rules
    than the folder's own `tokenizer.json`; a folder that declares the general class gets that class here.
    """
    declared = get_tokenizer_config(source, revision=revision).get("tokenizer_class")
    if declared in ("PreTrainedTokenizerFast", "TokenizersBackend"):
        return PreTrainedTokenizerFast.from_pretrained(source, revision=revision)
    return AutoTokenizer.from_pretrained(source, revision=revision)


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ConfigError(f'got dtype {dtype!r}; expected "auto", "float32", "bfloat16", "float16" or "float64"')
    return found


def _scaled(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    if logits.dim() != 2 or tokens.shape != logits.shape[:1]:
        raise ValueError(f"got logits {tuple(logits.shape)} for tokens {tuple(tokens.shape)}; expected [N, V] and [N]")
    if not temperature > 0:
        raise ValueError(
            f"got temperature {temperature}; expected a positive one (greedy sampling is scored at temperature 1)"
        )
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature == 1 else wide / temperature


def _selected(scaled: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    total = torch.logsumexp(scaled, dim=-1)
    return scaled.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - total, total
