"""The learner: the same gradient however a batch is split, ordered, padded or run; bad gradients are skipped."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maieutic.backends.local import LocalLearner, LocalScorer, Optimiser, ReferenceScorer, ValueHead
from maieutic.backends.local.evaluate import Forward, PackedForward, PaddedForward
from maieutic.backends.local.packing import pack_tokens, split
from maieutic.backends.local.trunk import Trunk
from maieutic.errors import DataError, NumericalError
from maieutic.models.causal import CausalModel, load_causal, selected_logprobs_and_entropy, token_logprobs
from maieutic.models.lora import LoRA
from maieutic.types import Batch, Outputs

Load = Callable[..., CausalModel]
SERVED = ("llama", "qwen2", "qwen3", "gemma", "gpt2")
UNSERVED = ("mistral_sliding", "gemma2", "gemma3_text")


def make_batch(dtype: torch.dtype = torch.float32, *, seed: int = 0) -> Batch:
    """14 rows in 4 groups. Prompts of 4, 9, 1 and 40 tokens; in group 1 one row has another prompt; completions of 1
    to 40 tokens with holes (inserted tokens); one row without a chosen token; rows 2 and 3 are a pair (one unit)."""
    draw = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(5, 32, (count,), generator=draw).tolist()

    prompts = [tokens(n) for n in (4, 9, 1, 40)]
    groups = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    lengths = [5, 1, 12, 3, 7, 2, 4, 40, 1, 6, 2, 3, 33, 9]
    width = 90
    rows = torch.zeros(14, width, dtype=torch.long)
    mask = torch.zeros(14, width, dtype=torch.bool)
    ends = []
    for row, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        prompt = prompts[group] if row != 5 else tokens(6)
        text = prompt + tokens(length)
        rows[row, : len(text)] = torch.tensor(text)
        mask[row, len(prompt) : len(text)] = True
        ends.append(len(text))
    mask[2, 6:9] = False  # inserted by the environment
    mask[7, 40:] = False  # the row ends in inserted tokens
    mask[13] = False  # nothing was chosen
    noise = torch.randn(14, width, generator=draw, dtype=dtype)
    return Batch(
        tokens=rows,
        mask=mask,
        lengths=torch.tensor(ends),
        sampler_logprobs=torch.where(mask, -noise.abs(), 0.0),
        rewards=torch.zeros(14),
        token_rewards=torch.zeros(14, width),
        terminated=torch.ones(14, dtype=torch.bool),
        groups=torch.tensor(groups),
        units=torch.tensor([0, 1, 2, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13]),
        temperature=0.8,
        columns={
            "advantages": noise,
            "weights": torch.where(mask, 1.0 / 114, 0.0).to(dtype),
            "pairs": torch.tensor([[2, 3]]),
        },
    )


def rich_loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Uses everything: ratios, entropy with gradient, and a coupling of the two rows of each pair."""
    ratio = (outputs.logprobs - batch.old_logprobs).exp()
    assert outputs.entropy is not None
    value = -ratio * batch.advantages - 0.1 * outputs.entropy
    sums = torch.where(batch.mask, outputs.logprobs, 0.0).sum(1)
    for better, worse in batch.pairs.tolist():
        both = -torch.nn.functional.logsigmoid(sums[better] - sums[worse])
        value = value.index_add(0, torch.tensor([better, worse]), both.expand(2, value.shape[1]))
    return value, {"ratio": ratio.detach()}


def gradients(
    model: CausalModel, batch: Batch, *, budget: int = 10**6, forward: Forward | None = None
) -> dict[str, Tensor]:
    """The gradient that a step sums up, by name."""
    learner = LocalLearner(model, Optimiser(), micro_batch_tokens=budget, forward=forward)
    model.module.zero_grad()
    learner.accumulate(batch, rich_loss, needs=frozenset({"old_logprobs"}))
    return {name: weight.grad.clone() for name, weight in learner.weights().items() if weight.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    scale = torch.cat([g.flatten() for g in expected.values()]).norm()
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in expected]).norm()
    assert scale > 0
    assert difference / scale < 1e-6  # RMS norms compute in float32 inside a float64 model


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma", "gpt2"])
def test_gradient_is_the_same_packed_and_padded(tiny: Load, architecture: str) -> None:
    batch = make_batch(torch.float64)
    model = tiny(architecture, "float64")
    assert_same(gradients(model, batch), gradients(model, batch, forward=PaddedForward(model.module)))


@pytest.mark.parametrize(
    ("architecture", "budget", "count"),
    [("llama", 90, 3), ("llama", 40, 7), ("gemma2", 200, 3), ("gemma2", 60, 7)],
)
def test_gradient_is_the_same_for_any_number_of_micro_batches(
    tiny: Load, architecture: str, budget: int, count: int
) -> None:
    batch = make_batch(torch.float64)
    model = tiny(architecture, "float64")
    forward = LocalLearner(model, Optimiser()).forward
    assert len(forward.split(batch, 10**6)) == 1
    assert len(forward.split(batch, budget)) == count
    assert_same(gradients(model, batch, budget=budget), gradients(model, batch))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_gradient_is_the_same_in_any_order_and_with_more_padding(tiny: Load, architecture: str) -> None:
    batch = make_batch(torch.float64)
    model = tiny(architecture, "float64")
    order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(1))
    shuffled = batch.rows(order)
    assert shuffled.pairs.tolist() == [[order.tolist().index(2), order.tolist().index(3)]]
    assert_same(gradients(model, shuffled, budget=100), gradients(model, batch))
    wide = {
        name: torch.nn.functional.pad(getattr(batch, name), (0, 13))
        for name in ("tokens", "mask", "sampler_logprobs", "token_rewards", "advantages", "weights")
    }
    assert_same(gradients(model, batch.with_(**wide)), gradients(model, batch))


def test_lora_gradient_is_the_same_packed_and_padded(tiny: Load) -> None:
    batch = make_batch(torch.float64)
    model = tiny("llama", "float64", lora=LoRA(rank=4))
    found = gradients(model, batch)
    assert found
    assert all("lora_" in name for name in found)
    assert_same(found, gradients(model, batch, forward=PaddedForward(model.module)))


def test_gradient_is_the_same_when_logits_are_made_in_chunks(tiny: Load) -> None:
    # 32 logits a prediction, so 32 * 7 are 7 predictions of more than a hundred.
    model = tiny("llama", "float64")
    batch = make_batch(torch.float64)
    chunked = PackedForward(Trunk(model.module), held=32 * 7)
    assert_same(gradients(model, batch, forward=chunked), gradients(model, batch))
    with torch.no_grad():
        outputs = chunked.outputs(batch, entropy=True)
        whole = PackedForward(Trunk(model.module)).outputs(batch, entropy=True)
    torch.testing.assert_close(outputs.logprobs, whole.logprobs)
    torch.testing.assert_close(outputs.entropy, whole.entropy)


@pytest.mark.parametrize("architecture", [*SERVED, *UNSERVED])
def test_logprobs_entropy_and_zeros_off_the_mask(tiny: Load, architecture: str) -> None:
    model, batch = tiny(architecture), make_batch()
    learner = LocalLearner(model, Optimiser(), micro_batch_tokens=100)
    found = learner.logprobs(batch)
    outputs = learner.outputs(batch)
    assert outputs.entropy is not None
    for row in range(batch.size):  # each row by itself, by the module's own forward
        tokens = batch.tokens[row : row + 1, : int(batch.lengths[row])]
        with torch.no_grad():
            logits = model.module(tokens, attention_mask=torch.ones_like(tokens)).logits
        alone = token_logprobs(logits, tokens, 0.8)[0]
        spread = selected_logprobs_and_entropy(logits[0, :-1], tokens[0, 1:], 0.8)[1]
        mask = batch.mask[row, : tokens.shape[1]]
        torch.testing.assert_close(found[row, : len(mask)], torch.where(mask, alone, 0.0), atol=1e-5, rtol=0)
        expected = torch.where(mask[1:], spread, 0.0)
        torch.testing.assert_close(outputs.entropy[row, 1 : len(mask)], expected, atol=1e-5, rtol=0)
        assert not found[row, len(mask) :].any()
    torch.testing.assert_close(outputs.logprobs, found, atol=1e-5, rtol=0)
    torch.testing.assert_close(LocalScorer(model, micro_batch_tokens=70).logprobs(batch), found, atol=1e-5, rtol=0)


def test_what_follows_the_last_chosen_token_does_not_matter(tiny: Load) -> None:
    batch = make_batch(torch.float64)
    tokens = batch.tokens.clone()
    last = batch.mask.shape[1] - 1 - batch.mask.flip(1).int().argmax(1)
    after = (torch.arange(90)[None, :] > last[:, None]) & batch.mask.any(1, keepdim=True)
    tokens[after] = 31 - tokens[after]
    assert after.any()
    model = tiny("llama", "float64")
    assert_same(gradients(model, batch.with_(tokens=tokens)), gradients(model, batch))


def test_nan_off_the_mask_leaks_nowhere(tiny: Load) -> None:
    batch = make_batch(torch.float64)
    spoiled = batch.with_(advantages=torch.where(batch.mask, batch.advantages, torch.nan))
    model = tiny("llama", "float64")
    assert_same(gradients(model, spoiled, budget=100), gradients(model, batch))


def test_prompts_are_run_once_and_the_last_token_never() -> None:
    batch = make_batch()
    packed = pack_tokens(batch.tokens, batch.mask)
    assert packed is not None
    # Prompts: 4 + 9 + 6 (row 5's own) + 1 + 40. Completions without their last chosen token, rows 0 to 12:
    # 4+0+11+2, 6+1+3, and row 7 (chosen: columns 1 to 39, so 38 are fed) 38+0+5+1, 2+32.
    assert len(packed.tokens) == (4 + 9 + 6 + 1 + 40) + (17 + 10 + 44 + 34)
    assert len(packed.targets) == int(batch.mask.sum())


def test_split_keeps_units_together_and_groups_where_they_fit() -> None:
    batch = make_batch()
    for budget in (1, 20, 50, 100, 1000):
        parts = [part.tolist() for part in split(batch, budget)]
        assert sorted(row for part in parts for row in part) == list(range(14))
        assert any(2 in part and 3 in part for part in parts)
    assert len(split(batch, 1)) == 13  # every unit by itself
    # Group 0 has 4 + 21 tokens, group 1 at most 9 + 13 + ..., so a budget of 60 keeps both whole.
    by_group = [set(batch.groups[part].tolist()) for part in split(batch, 60)]
    assert sum(0 in groups for groups in by_group) == 1
    assert sum(1 in groups for groups in by_group) == 1


def test_pairs_across_units_stay_together() -> None:
    batch = make_batch().with_(pairs=torch.tensor([[0, 13], [13, 8]]))
    for part in split(batch, 1):
        assert len({0, 8, 13} & set(part.tolist())) in (0, 3)
    part = batch.rows(torch.tensor([8, 13, 4]))
    assert part.pairs.tolist() == [[1, 0]]


def nll(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    return -outputs.logprobs, {"chosen": outputs.logprobs.detach()}


def test_metrics(tiny: Load) -> None:
    batch = make_batch()
    model = tiny()
    learner = LocalLearner(model, Optimiser(learning_rate=1e-3, warmup_steps=4), micro_batch_tokens=100)
    before = learner.logprobs(batch)
    gap = (before - batch.sampler_logprobs)[batch.mask].abs()
    metrics = learner.step(batch, nll)
    chosen = int(batch.mask.sum())
    assert metrics["loss"] == pytest.approx(float(-before.sum() / 114), rel=1e-5)  # every weight is 1 / 114
    assert metrics["chosen"] == pytest.approx(float(before.sum() / chosen), rel=1e-5)
    assert metrics["policy/sampler_mismatch_nats"] == pytest.approx(float(gap.mean()), rel=1e-5)
    assert metrics["policy/sampler_mismatch_max"] == pytest.approx(float(gap.max()), rel=1e-5)
    assert 0 < metrics["policy/entropy"] < 3.5  # log 32 = 3.47
    assert metrics["optim/learning_rate"] == pytest.approx(1e-3 / 4)  # the first of 4 warm-up steps
    assert metrics["optim/skipped"] == 0
    assert learner.version == 1


def test_on_policy_ratio_is_exactly_one(tiny: Load) -> None:
    learner = LocalLearner(tiny(), Optimiser(), micro_batch_tokens=100)
    seen: list[Tensor] = []

    def loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        seen.append((outputs.logprobs - batch.old_logprobs).exp().detach())
        return -(outputs.logprobs - batch.old_logprobs).exp(), {}

    metrics = learner.step(make_batch(), loss, needs=frozenset({"old_logprobs"}))
    assert all(bool((ratio == 1).all()) for ratio in seen)
    assert metrics["optim/grad_norm"] > 0


def test_training_lowers_the_loss_and_clipping_bounds_the_gradient(tiny: Load) -> None:
    learner = LocalLearner(tiny(), Optimiser(learning_rate=3e-3, max_grad_norm=0.5))
    losses = [learner.step(make_batch(), nll)["loss"] for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    weights = list(learner.weights().values())
    for weight in weights:
        weight.grad = torch.full_like(weight, 3.0)
    assert learner.updater.clip() == pytest.approx(3.0 * sum(w.numel() for w in weights) ** 0.5, rel=1e-4)
    assert sum(float(w.grad.square().sum()) for w in weights) ** 0.5 == pytest.approx(0.5, rel=1e-4)  # type: ignore[union-attr]


def test_a_gradient_that_is_not_finite_is_skipped_counted_and_in_the_end_refused(tiny: Load) -> None:
    learner = LocalLearner(tiny(), Optimiser(learning_rate=0.1), max_skips=2)
    before = {name: weight.detach().clone() for name, weight in learner.weights().items()}

    def broken(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        return outputs.logprobs * torch.inf, {}

    for _ in range(2):
        metrics = learner.step(make_batch(), broken)
        assert metrics["optim/skipped"] == 1
        assert metrics["optim/learning_rate"] == 0
    assert learner.version == 0
    assert all(torch.equal(weight, before[name]) for name, weight in learner.weights().items())
    learner.step(make_batch(), nll)  # a good one starts the count anew
    assert learner.version == 1
    learner.step(make_batch(), broken)
    learner.step(make_batch(), broken)
    with pytest.raises(NumericalError, match="3 times in a row"):
        learner.step(make_batch(), broken)


def test_a_batch_without_chosen_tokens(tiny: Load) -> None:
    learner = LocalLearner(tiny(), Optimiser())
    empty = make_batch().with_(mask=torch.zeros(14, 90, dtype=torch.bool))
    with pytest.raises(DataError, match="no token was chosen"):
        learner.step(empty, nll)
    assert not learner.logprobs(empty).any()


def test_a_row_without_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="first token"):
        pack_tokens(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_values(tiny: Load, architecture: str) -> None:
    # A linear head on hidden states: values at chosen tokens are of the state before the token, trained with the rest.
    model, batch = tiny(architecture), make_batch()
    learner = LocalLearner(model, Optimiser(learning_rate=1e-2), critic=ValueHead(), micro_batch_tokens=100)
    assert not learner.values(batch).any()  # a new critic says 0 of every state
    head = dict(learner.weights())["critic.head.layers.0.weight"]
    with torch.no_grad():
        head.copy_(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)))
    found = learner.values(batch)
    tokens = batch.tokens[:1, : int(batch.lengths[0])]
    with torch.no_grad():
        hidden = model.module(tokens, output_hidden_states=True).hidden_states[-1]
        expected = (hidden @ head.T)[0, :-1, 0]
    torch.testing.assert_close(found[0, 4:9], expected[3:8], atol=1e-5, rtol=0)  # prompt of 4, completion of 5
    assert not found[~batch.mask].any()

    def loss(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert outputs.values is not None
        return (outputs.values - 1) ** 2, {}

    losses = [learner.step(batch, loss)["loss"] for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_a_reference_stays_while_the_policy_learns(tiny: Load, lora: LoRA | None) -> None:
    model, batch = tiny("llama", lora=lora), make_batch()
    reference = ReferenceScorer(model)
    learner = LocalLearner(model, Optimiser(learning_rate=0.01))
    start = learner.logprobs(batch)
    assert torch.equal(reference.logprobs(batch), start)  # KL at step 0 is exactly 0
    for _ in range(3):
        learner.step(batch, nll)
    assert torch.equal(reference.logprobs(batch), start)
    assert (learner.logprobs(batch) - start).abs().max() > 0.01
    assert len(learner.weights()) > 1


def test_the_reference_of_a_loaded_adapter_is_that_adapter(tiny: Load, tmp_path: Path) -> None:
    """A15: by the learner's own log-probs; the base model, without the adapter, would be another start."""
    batch = make_batch()
    first = LocalLearner(tiny(lora=LoRA(rank=4)), Optimiser(learning_rate=0.01))
    first.step(batch, nll)
    first.step(batch, nll)
    first.save(tmp_path)
    model = load_causal(tmp_path / "model", device="cpu")
    reference, learner = ReferenceScorer(model), LocalLearner(model, Optimiser(learning_rate=0.01))
    start = learner.logprobs(batch)
    torch.testing.assert_close(start, first.logprobs(batch), atol=1e-6, rtol=0)
    assert torch.equal(reference.logprobs(batch), start)
    learner.step(batch, nll)
    assert torch.equal(reference.logprobs(batch), start)
    assert not torch.equal(learner.logprobs(batch), start)


def test_trained_weights_in_half_precision_are_warned_of(tiny: Load, caplog: pytest.LogCaptureFixture) -> None:
    """A23: neighbours of a bfloat16 number are 2^-8 of it apart, so a step of 1e-6 moves nothing."""
    weight = torch.tensor(1.0, dtype=torch.bfloat16)
    assert weight - 1e-6 == weight
    LocalLearner(tiny("llama", "float32"), Optimiser())
    assert not caplog.records
    LocalLearner(tiny("llama", "bfloat16"), Optimiser())
    assert "small steps round to nothing" in caplog.text
