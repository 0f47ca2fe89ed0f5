"""Critics of the local backend: values of the right states, weights of their own, saved and restored to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from maieutic.annotate import values
from maieutic.backends.local import LocalBackend, LocalLearner, Optimiser, SeparateCritic, ValueHead
from maieutic.backends.local.critic import Critic, head_for
from maieutic.backends.local.evaluate import PackedForward, PaddedForward
from maieutic.core.critic import gae, value_loss
from maieutic.errors import ConfigError, RunError
from maieutic.models.causal import CausalModel, load_causal
from maieutic.models.lora import LoRA
from maieutic.models.small import SmallModel, build_small
from maieutic.pack import pack
from maieutic.types import Batch, Example, Finish, Outputs, Rollout

Load = Callable[..., CausalModel]
RATE = Optimiser(learning_rate=1e-3)


def make_batch(dtype: torch.dtype = torch.float32) -> Batch:
    """Six rows, prompts of 3 and 5 tokens, of different lengths; rows 1 and 4 end in a tool's tokens, and rows 1, 2 and
    5 were cut by the length limit (row 2 is the longest)."""
    draw = torch.Generator().manual_seed(2)
    stop, cut = Finish.STOP, Finish.LENGTH
    shapes = [
        (3, 4, 0, stop),
        (3, 2, 3, cut),
        (3, 11, 0, cut),
        (5, 1, 0, stop),
        (5, 4, 2, Finish.ENVIRONMENT),
        (5, 6, 0, cut),
    ]
    prompts = {n: torch.randint(5, 32, (n,), generator=draw).tolist() for n in (3, 5)}
    examples = []
    for number, (before, chosen, tool, finish) in enumerate(shapes):
        tokens = prompts[before] + torch.randint(5, 32, (chosen + tool,), generator=draw).tolist()
        mask = (False,) * before + (True,) * chosen + (False,) * tool
        rollout = Rollout("t", tuple(tokens), mask, tuple(-1.0 * m for m in mask), finish, temperature=0.8)
        examples.append(Example(rollout, float(number % 2), group=before, unit=number))
    batch = pack(examples)
    wide = {n: getattr(batch, n).to(dtype) for n in ("sampler_logprobs", "rewards", "token_rewards")}
    weights = batch.mask.to(dtype) / batch.mask.sum()
    return batch.with_(weights=weights, advantages=torch.where(batch.mask, 0.5, 0.0).to(dtype), **wide)


KINDS = ["head", "hidden head", "separate", "separate, of another architecture"]


def critic_of(kind: str, load: Load, **options: object) -> Critic:
    """A critic of that kind for tiny models; `options` go to `load`."""
    made: dict[str, Callable[[], Critic]] = {
        "head": lambda: ValueHead(learning_rate=0.02),
        "hidden head": lambda: ValueHead(learning_rate=0.02, hidden=8),
        "separate": lambda: SeparateCritic(load("llama", **options), learning_rate=5e-3),
        "separate, of another architecture": lambda: SeparateCritic(load("gemma2", **options)),
    }
    return made[kind]()


def taught(learner: LocalLearner, seed: int = 0) -> LocalLearner:
    """The learner, its head filled with numbers that are not 0."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in learner.weights().items():
            if name.startswith("critic.head."):
                weight.copy_(torch.randn(weight.shape, generator=draw, dtype=torch.float64))
    return learner


def both(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Policy and critic: a likelihood and the distance of values from 1."""
    assert outputs.values is not None
    return -outputs.logprobs + (outputs.values - 1.0) ** 2, {"value": outputs.values.detach()}


def only_values(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    assert outputs.values is not None
    return (outputs.values - 1.0) ** 2, {}


def bits(learner: LocalLearner) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in learner.weights().items()}


# ---- values


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_new_critic_says_exactly_nothing(tiny: Load, architecture: str, kind: str) -> None:
    """A24: weights and bias of the last layer are 0, so the first values are."""
    learner = LocalLearner(tiny(architecture), RATE, critic=critic_of(kind, tiny))
    assert learner.capabilities == LocalLearner(tiny(architecture), RATE).capabilities | {"values"}
    assert torch.equal(learner.values(make_batch()), torch.zeros(6, make_batch().mask.shape[1]))
    loss = learner.step(make_batch(), only_values)
    assert loss["loss"] == 1.0  # (0 − 1)², all weights together 1
    assert learner.values(make_batch()).any()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_values_are_those_of_the_states_before_the_chosen_tokens(tiny: Load, architecture: str, kind: str) -> None:
    learner = taught(LocalLearner(tiny(architecture), RATE, critic=critic_of(kind, tiny), micro_batch_tokens=30))
    batch = make_batch()
    found = learner.values(batch)
    assert not found[~batch.mask].any()
    torch.testing.assert_close(learner.outputs(batch).values, found, atol=1e-5, rtol=0)
    critic = learner.critic
    assert critic is not None
    module = getattr(critic, "module", learner.model.module)
    for row in range(batch.size):  # each by itself, by the module's own forward
        tokens = batch.tokens[row : row + 1, : int(batch.lengths[row])]
        with torch.no_grad():
            hidden = module(tokens, output_hidden_states=True).hidden_states[-1]
            said = critic.head(hidden)[0, :, 0]  # type: ignore[attr-defined]
        for t in batch.mask[row].nonzero().flatten().tolist():
            assert float(found[row, t]) == pytest.approx(float(said[t - 1]), abs=1e-4)


@pytest.mark.parametrize("kind", ["head", "separate"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_a_cut_row_gets_the_value_of_the_state_after_its_last_token(tiny: Load, architecture: str, kind: str) -> None:
    """A25: also where a tool wrote last; a row that ended has none, whatever the critic would say."""
    learner = taught(LocalLearner(tiny(architecture), RATE, critic=critic_of(kind, tiny), micro_batch_tokens=30))
    batch = make_batch()
    found = values(learner, batch)
    torch.testing.assert_close(found["old_values"], learner.values(batch), atol=1e-5, rtol=0)
    assert found["final_values"].shape == (6,)
    critic = learner.critic
    module = getattr(critic, "module", learner.model.module)
    for row in range(batch.size):
        tokens = batch.tokens[row : row + 1, : int(batch.lengths[row])]
        with torch.no_grad():
            last = module(tokens, output_hidden_states=True).hidden_states[-1][0, -1]
            said = float(critic.head(last[None])[0, 0])  # type: ignore[union-attr]
        assert said != 0
        wanted = said if row in (1, 2, 5) else 0.0
        assert float(found["final_values"][row]) == pytest.approx(wanted, abs=1e-4), row


def test_packed_and_padded_forward_give_the_same_values(tiny: Load) -> None:
    model, batch = tiny("llama", "float64"), make_batch(torch.float64)
    packed = taught(LocalLearner(model, RATE, critic=ValueHead()))
    padded = taught(LocalLearner(model, RATE, critic=ValueHead(), forward=PaddedForward(model.module)))
    assert isinstance(packed.forward, PackedForward)
    ours, theirs = values(packed, batch), values(padded, batch)
    for name in ("old_values", "final_values"):
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-6, rtol=0)


def test_a_batch_without_a_chosen_token_has_no_values(tiny: Load) -> None:
    for architecture in ("llama", "gemma2"):
        learner = taught(LocalLearner(tiny(architecture), RATE, critic=ValueHead()))
        empty = replace(make_batch(), mask=torch.zeros_like(make_batch().mask))
        assert not learner.values(empty).any()


def test_without_a_critic_values_are_refused(tiny: Load) -> None:
    learner = LocalLearner(tiny(), RATE)
    assert "values" not in learner.capabilities
    assert learner.outputs(make_batch()).values is None
    with pytest.raises(ConfigError, match=r"no critic.*ValueHead"):
        learner.values(make_batch())


@pytest.mark.parametrize("kind", ["head", "separate"])
def test_a_critic_has_no_dropout(tiny: Load, kind: str) -> None:
    """A22: a state has one value, also of an architecture that comes with dropout and a module in training mode."""
    loose = load_causal(tiny("gpt2").source, device="cpu", dtype="float32", dropout=True)
    assert any(isinstance(part, torch.nn.Dropout) and part.p > 0 for part in loose.module.modules())
    critic = SeparateCritic(loose) if kind == "separate" else ValueHead()
    learner = taught(LocalLearner(tiny("gpt2"), RATE, critic=critic))
    loose.module.train()
    assert torch.equal(learner.values(make_batch()), learner.values(make_batch()))
    before = learner.outputs(make_batch()).values
    assert before is not None
    torch.testing.assert_close(before, learner.values(make_batch()), atol=1e-6, rtol=0)


def test_values_are_made_in_float32(tiny: Load) -> None:
    """A23: a head on bfloat16 states is held and computed in float32, and takes steps that bfloat16 would lose."""
    learner = LocalLearner(tiny("llama", "bfloat16"), Optimiser(learning_rate=1e-6), critic=ValueHead(1e-6))
    head = {name: weight for name, weight in learner.weights().items() if name.startswith("critic.")}
    assert {weight.dtype for weight in head.values()} == {torch.float32}
    taught(learner)
    before = {name: weight.detach().clone() for name, weight in head.items()}
    assert learner.values(make_batch()).dtype == torch.float32
    learner.step(make_batch(), only_values)
    moved = [(head[name] - before[name]).detach().abs().max() for name in head]
    assert all(0 < float(by) < 1e-5 for by in moved)
    assert head_for(tiny("llama", "float64").module, None).dtype == torch.float64


# ---- training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_any_number_of_micro_batches_gives_the_same_gradient(tiny: Load, kind: str, lora: LoRA | None) -> None:
    batch = make_batch(torch.float64)
    critic = critic_of(kind, tiny, dtype="float64")
    learner = taught(LocalLearner(tiny("llama", "float64", lora=lora), RATE, critic=critic))
    found = {}
    for budget in (10**6, 25, 1):
        learner.micro_batch_tokens = budget
        learner.updater.forget_gradients()
        learner.accumulate(batch, both)
        grads = [torch.zeros_like(w) if w.grad is None else w.grad for w in learner.weights().values()]
        found[budget] = torch.cat([g.flatten().clone() for g in grads])
    assert len(learner.forward.split(batch, 25)) > 1
    for budget in (25, 1):
        assert float((found[budget] - found[10**6]).norm() / found[10**6].norm()) < 1e-6


def test_a_head_moves_the_policy_and_a_separate_critic_leaves_it_alone(tiny: Load) -> None:
    batch = make_batch()
    for kind, moves in (("head", True), ("separate", False)):
        learner = taught(LocalLearner(tiny(), RATE, critic=critic_of(kind, tiny)))
        before, logprobs = bits(learner), learner.logprobs(batch)
        for _ in range(3):
            learner.step(batch, only_values)
        own = {name for name in before if name.startswith("critic.")}
        changed = {name for name, weight in bits(learner).items() if not torch.equal(weight, before[name])}
        assert own & changed
        assert bool(changed - own) is moves
        assert torch.equal(learner.logprobs(batch), logprobs) is not moves


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_learns_a_constant(tiny: Load, kind: str) -> None:
    learner = LocalLearner(tiny(), Optimiser(learning_rate=1e-2), critic=critic_of(kind, tiny))
    batch = make_batch()
    for _ in range(60):
        learner.step(batch, only_values)
    found = learner.values(batch)[batch.mask]
    assert float((found - 1).abs().max()) < 0.2


def test_a_critic_has_its_own_learning_rate(tiny: Load) -> None:
    """A24: AdamW's first step is as long as the rate, so the rate shows in the weights."""
    for optimiser in (RATE, Optimiser(kind="muon", learning_rate=1e-3)):
        for rate, wanted in ((0.05, 0.05), (None, 1e-3)):
            learner = LocalLearner(tiny(), optimiser, critic=ValueHead(learning_rate=rate))
            bias = dict(learner.weights())["critic.head.layers.0.bias"]
            metrics = learner.step(make_batch(), both)
            assert float(bias.detach().abs()) == pytest.approx(wanted, rel=1e-3)
            assert metrics["optim/learning_rate"] == pytest.approx(1e-3)  # the policy's
    warm = Optimiser(learning_rate=1e-3, warmup_steps=4)
    learner = LocalLearner(tiny(), warm, critic=ValueHead(learning_rate=0.05))
    learner.step(make_batch(), both)
    bias = dict(learner.weights())["critic.head.layers.0.bias"]
    assert float(bias.detach().abs()) == pytest.approx(0.05 / 4, rel=1e-3)  # the schedule is the same


def test_a_critic_that_is_far_off_does_not_shorten_the_policys_step(tiny: Load) -> None:
    learner = LocalLearner(tiny(), Optimiser(max_grad_norm=1.0), critic=ValueHead())
    for name, weight in learner.weights().items():
        weight.grad = torch.full_like(weight, 1e6 if name.startswith("critic.") else 1e-5)
    small = torch.cat([w.grad.flatten() for n, w in learner.weights().items() if not n.startswith("critic.")])  # type: ignore[union-attr]
    assert float(small.norm()) < 1
    assert learner.updater.clip() > 1e6
    for name, weight in learner.weights().items():
        assert weight.grad is not None
        if not name.startswith("critic."):
            assert torch.equal(weight.grad, torch.full_like(weight, 1e-5))
    own = torch.cat([w.grad.flatten() for n, w in learner.weights().items() if n.startswith("critic.")])  # type: ignore[union-attr]
    assert float(own.norm()) == pytest.approx(1.0, rel=1e-4)


def test_a_separate_critic_does_not_train_the_head_that_nothing_reads(tiny: Load, tmp_path: Path) -> None:
    for tied in (True, False):
        folder = build_small(
            tmp_path / str(tied), SmallModel(layers=1, width=16, heads=2, kv_heads=1, tied=tied), ["a b"]
        )
        learner = LocalLearner(
            load_causal(folder, device="cpu"), RATE, critic=SeparateCritic(load_causal(folder, device="cpu"))
        )
        own = [name for name in learner.weights() if name.startswith("critic.module.")]
        assert any("embed_tokens" in name for name in own)
        assert not any("lm_head" in name for name in own)


# ---- saving


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora", [None, LoRA(rank=4)], ids=["full", "lora"])
def test_a_resumed_learner_goes_on_to_the_bit(tiny: Load, tmp_path: Path, kind: str, lora: LoRA | None) -> None:
    def learner() -> LocalLearner:
        return LocalLearner(tiny(lora=lora), RATE, critic=critic_of(kind, tiny, lora=lora))

    batch, whole, first, second = make_batch(), learner(), learner(), learner()
    for _ in range(4):
        whole.step(batch, both)
    for _ in range(2):
        first.step(batch, both)
    first.save(tmp_path)
    second.load(tmp_path)
    assert torch.equal(second.values(batch), first.values(batch))
    for _ in range(2):
        second.step(batch, both)
    assert second.version == whole.version == 4
    for name, weight in bits(whole).items():
        assert torch.equal(weight, second.weights()[name]), name
    assert torch.equal(second.values(batch), whole.values(batch))
    assert load_causal(tmp_path / "model", device="cpu").adapter is (
        lora is not None
    )  # a plain folder without the critic


def test_another_critic_than_the_saved_one_is_refused(tiny: Load, tmp_path: Path) -> None:
    LocalLearner(tiny(), RATE, critic=ValueHead()).save(tmp_path)
    for other in (None, ValueHead(hidden=4), SeparateCritic(tiny())):
        with pytest.raises(RunError, match="resume with the critic of the saved run"):
            LocalLearner(tiny(), RATE, critic=other).load(tmp_path)


def test_reset_takes_the_critic_back_with_the_policy(tiny: Load, tmp_path: Path) -> None:
    learner = LocalLearner(tiny(), RATE, critic=ValueHead(0.1), restart=True)
    start = bits(learner)
    learner.step(make_batch(), both)
    learner.save(tmp_path)
    kept = bits(learner)
    learner.step(make_batch(), both)
    learner.reset(tmp_path)
    assert all(torch.equal(weight, kept[name]) for name, weight in bits(learner).items())
    later = bits(learner)["critic.head.layers.0.bias"]
    learner.reset(tmp_path / "model")  # a plain model has no critic: it stays as it is
    assert torch.equal(bits(learner)["critic.head.layers.0.bias"], later)
    learner.reset()
    assert all(torch.equal(weight, start[name]) for name, weight in bits(learner).items())
    assert not learner.updater.state()


# ---- what cannot be


def test_impossible_critics_are_refused(tiny: Load, tmp_path: Path) -> None:
    model = tiny()
    with pytest.raises(ConfigError, match="the policy itself as its separate critic"):
        LocalLearner(model, RATE, critic=SeparateCritic(model))
    shape = SmallModel(layers=1, width=16, heads=2, kv_heads=1)
    other = load_causal(build_small(tmp_path / "other", shape, ["other words altogether"]), device="cpu")
    with pytest.raises(ConfigError, match="tokenizer is not that of the policy"):
        LocalLearner(model, RATE, critic=SeparateCritic(other))
    for wrong in ({"learning_rate": 0.0}, {"hidden": 0}):
        with pytest.raises(ConfigError, match="expected more than 0"):
            ValueHead(**wrong)


def test_ppo_parts_run_on_the_local_backend(tiny: Load) -> None:
    """gae on what the critic says, value_loss on what it says then: the clip acts at the second step, not the first."""
    policy = LocalBackend().policy(tiny(), Optimiser(learning_rate=1e-3), critic=ValueHead(learning_rate=0.5))
    batch = make_batch()
    batch = gae(lam=1.0)(batch.with_(**values(policy.learner, batch)))
    wanted = torch.where(batch.mask, batch.rewards[:, None], 0.0)  # V = 0 at first, so returns are the outcome
    torch.testing.assert_close(batch.returns, wanted)
    loss = value_loss(0.2)
    first = policy.learner.step(batch, loss.terms, needs=loss.needs)
    second = policy.learner.step(batch, loss.terms, needs=loss.needs)
    assert first["critic/clip_fraction"] == 0.0
    assert second["critic/clip_fraction"] > 0.0
    assert first["critic/value"] == 0.0
