"""Which architectures the plug serves, and that the others are noticed, said once, and run right."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from maieutic.backends.local import LocalBackend, LocalSampler, Optimiser, why_not
from maieutic.backends.local.attention import PackedLayout, plugged
from maieutic.backends.local.check import decoder_for
from maieutic.backends.local.decoder import OrdinaryDecoder
from maieutic.backends.local.evaluate import PackedForward, PaddedForward
from maieutic.errors import ModelError
from maieutic.models.causal import CausalModel, token_logprobs
from maieutic.models.lora import LoRA
from maieutic.protocols import Completion, Sampling

Load = Callable[..., CausalModel]
SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def build(kind: str, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **settings})).eval()


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_served(tiny: Load, architecture: str, dtype: str) -> None:
    assert why_not(tiny(architecture, dtype).module) == ""


def test_lora_is_served(tiny: Load) -> None:
    assert why_not(tiny("qwen2", lora=LoRA(rank=2)).module) == ""
    assert why_not(tiny("gpt2", lora=LoRA(rank=2)).module) == ""


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("mistral", {"sliding_window": 4}, "sliding_window"),
        ("mistral", {"sliding_window": 64}, "sliding_window"),  # no text here is long enough to show it in numbers
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding_attention"),
        ("gemma2", {"head_dim": 8}, "sliding_attention"),
        ("gemma2", {"head_dim": 8, "layer_types": ["full_attention"] * 2}, "soft cap"),
        ("granite", {"logits_scaling": 4.0}, "scale or a soft cap"),
        ("cohere", {"logit_scale": 0.5}, "scale or a soft cap"),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1,
                     "layer_types": ["full_attention"] * 2}, "s_aux"),
        ("bloom", {"n_layer": 2, "n_head": 4}, "not every layer"),
        ("rwkv", {"attention_hidden_size": 32}, ""),
        ("mamba", {"state_size": 4}, ""),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rotary"),
    ],
)  # fmt: skip
def test_not_served(kind: str, settings: dict[str, object], said: str) -> None:
    reason = why_not(build(kind, **settings))
    assert reason
    assert said in reason


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("mistral", {"sliding_window": 4}),
        ("cohere", {"logit_scale": 0.5}),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4}),
        ("bloom", {"n_layer": 2, "n_head": 4}),
        ("lfm2", {"layer_types": ["conv", "full_attention"]}),
        ("mamba", {"state_size": 4}),  # its cache has a form of its own
    ],
)
def test_not_served_but_run_right(kind: str, settings: dict[str, object]) -> None:
    module = build(kind, **settings)
    assert isinstance(decoder_for(module), OrdinaryDecoder)
    engine = LocalSampler(module, decoder_for(module), max_rows=4)
    prompts = [(5, 6, 7, 8, 9, 10), (11,), (12, 13)]

    async def together() -> list[list[Completion]]:
        calls = [engine.sample(p, Sampling(9, stop_ids=frozenset({2, 3}), key=str(p)), 3) for p in prompts]
        return await asyncio.gather(*calls)

    for prompt, completions in zip(prompts, asyncio.run(together()), strict=True):
        for completion in completions:
            tokens = torch.tensor([[*prompt, *completion.tokens]])
            with torch.no_grad():
                expected = token_logprobs(module(tokens).logits, tokens)[0, len(prompt) :]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


def test_served_without_being_listed() -> None:
    # Nothing in the check is a list of names: any decoder whose attention is plain goes through.
    for kind, settings in {
        "olmo2": {},
        "phi": {},
        "starcoder2": {"sliding_window": None},
        "mistral": {"sliding_window": None},
        "smollm3": {"no_rope_layers": [1, 0], "use_sliding_window": False},
    }.items():
        assert why_not(build(kind, **settings)) == "", kind


def test_the_reason_is_said_once(tiny: Load, caplog: pytest.LogCaptureFixture) -> None:
    # Starcoder2 with a sliding window occurs in no other test: what was said once is not said again in this process.
    with caplog.at_level(logging.INFO, "maieutic.backends.local"):
        for _ in range(2):  # policy and reference are two modules of one architecture
            model = replace(tiny("llama"), module=build("starcoder2", sliding_window=5))
            backend = LocalBackend()
            backend.policy(model, Optimiser())
            backend.frozen(model)
            backend.sampler(model)
    assert len(caplog.records) == 1
    assert "Starcoder2ForCausalLM" in caplog.text
    assert "sliding_window" in caplog.text


def test_forwards_follow_the_check(tiny: Load) -> None:
    backend = LocalBackend()
    assert isinstance(backend.frozen(tiny("llama")).forward, PackedForward)
    assert isinstance(backend.frozen(tiny("gemma3_text")).forward, PaddedForward)


def test_the_module_is_ordinary_outside_the_engine(tiny: Load) -> None:
    model = tiny("llama")
    tokens = torch.arange(5, 15)[None]
    before = model.module(tokens).logits
    policy = LocalBackend().policy(model, Optimiser())
    asyncio.run(policy.sampler.sample([5, 6, 7], Sampling(5), 2))
    assert model.module.config._attn_implementation == "sdpa"
    assert torch.equal(model.module(tokens).logits, before)
    made = model.module.generate(tokens, max_new_tokens=3, do_sample=False)  # type: ignore[operator]
    assert made.shape[1] > 10


def test_attention_outside_a_forward_of_ours_is_an_error_not_nonsense(tiny: Load) -> None:
    module = tiny("llama").module
    module.config._attn_implementation = "maieutic"  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="outside a maieutic forward"):
        module(torch.arange(5, 15)[None])


def test_the_plug_is_pulled_when_a_forward_fails(tiny: Load) -> None:
    module = tiny("llama").module
    with pytest.raises(ZeroDivisionError), plugged(module.config, PackedLayout(())):  # type: ignore[arg-type]
        raise ZeroDivisionError
    assert module.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


def test_backend_moves_and_shares(tiny: Load, tmp_path: Path) -> None:
    model = tiny("llama")
    policy = LocalBackend(device="cpu", max_rows=4).policy(model, Optimiser(learning_rate=0.1))
    assert policy.chat is model.chat
    first = asyncio.run(policy.sampler.sample([5, 6, 7], Sampling(8, key="k"), 2))
    with torch.no_grad():
        for weight in policy.learner.weights().values():
            weight.mul_(1.5)
    policy.publish()
    second = asyncio.run(policy.sampler.sample([5, 6, 7], Sampling(8, key="k"), 2))
    assert first != second  # one set of weights: nothing had to be copied
