"""Policy, reference, critic and teacher over one base in the local backend: the same numbers as with a base for each,
and the bytes of one.

    `B` rows, `T` tokens
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maieutic.algorithms import trpo
from maieutic.backends.local import (
    LocalBackend,
    LocalLearner,
    LocalScorer,
    LocalTeacher,
    Optimiser,
    ReferenceScorer,
    SeparateCritic,
    ValueHead,
)
from maieutic.core.kl import k3
from maieutic.errors import ConfigError, ModelError, RunError
from maieutic.models.adapters import adapter_weights, beside, copied, parameters_of, trained_weights
from maieutic.models.causal import BASE, CausalModel, load_causal, parameter_count, save_causal
from maieutic.models.lora import LoRA
from maieutic.models.reference import AdapterOff, FrozenAdapter, reference_of
from maieutic.pack import pack
from maieutic.protocols import Completion, Sampling
from maieutic.types import Batch, Example, Finish, Outputs, Rollout

Load = Callable[..., CausalModel]
RATE = Optimiser(learning_rate=1e-2)
SHAPE = LoRA(rank=4)
#: One that plugged attention serves, and one that runs through its own forward.
ARCHITECTURES = ("llama", "gemma2")


def make_batch(seed: int = 0) -> Batch:
    """Six rows of two prompts, of different lengths."""
    draw = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(5, 32, (length,), generator=draw).tolist() for length in (3, 6)]
    examples = []
    for row in range(6):
        prompt, length = prompts[row // 3], 2 + 2 * row
        chosen = torch.randint(5, 32, (length,), generator=draw).tolist()
        mask = (False,) * len(prompt) + (True,) * length
        rollout = Rollout("t", (*prompt, *chosen), mask, tuple(-1.0 * m for m in mask), Finish.STOP, temperature=0.9)
        examples.append(Example(rollout, float(row % 2), group=row // 3, unit=row))
    batch = pack(examples)
    return batch.with_(weights=batch.mask / batch.mask.sum(), advantages=torch.where(batch.mask, 0.5, -0.5))


def likelihood(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    return -outputs.logprobs, {}


def both(outputs: Outputs, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
    assert outputs.values is not None
    return -outputs.logprobs + (outputs.values - 1.0) ** 2, {}


def folder_of(load: Load, to: Path, seed: int, architecture: str = "llama", lora: LoRA = SHAPE) -> Path:
    """An adapter that has learned a little: `seed` says from what."""
    model = load(architecture, lora=lora)
    learner = LocalLearner(model, RATE)
    for step in range(3):
        learner.step(make_batch(seed + step), likelihood)
    return save_causal(model, to)


@pytest.fixture
def start(tiny: Load, tmp_path: Path) -> Callable[[str], CausalModel]:
    """Loads a policy that goes on from an adapter which was trained before."""
    made: dict[str, Path] = {}

    def load(architecture: str = "llama") -> CausalModel:
        if architecture not in made:
            made[architecture] = folder_of(tiny, tmp_path / f"start-{architecture}", 10, architecture)
        return load_causal(made[architecture], dtype="float32", device="cpu")

    return load


def sample(backend: LocalBackend, model: CausalModel) -> list[Completion]:
    sampler = backend.sampler(model)
    rows = [[7, 9, 11], [6, 5], [8]]

    async def together() -> list[list[Completion]]:
        calls = [sampler.sample(row, Sampling(12, 0.9, key=str(i)), 3) for i, row in enumerate(rows)]
        return await asyncio.gather(*calls)

    return [one for family in asyncio.run(together()) for one in family]


def batch_of(completions: list[Completion]) -> Batch:
    """What was sampled from the prompts of `sample`, as rows."""
    examples = []
    for row, one in enumerate(completions):
        prompt = [(7, 9, 11), (6, 5), (8,)][row // 3]
        examples.append(
            Example(
                Rollout(
                    "t", prompt + one.tokens, (False,) * len(prompt) + one.mask,
                    (0.0,) * len(prompt) + one.logprobs, one.finish, temperature=0.9,
                ),
                0.0, group=row // 3, unit=row,
            )
        )  # fmt: skip
    return pack(examples)


# ---- scorers beside the policy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_scorer_over_the_policys_base_says_what_one_of_its_own_says(
    tiny: Load, start: Callable[[str], CausalModel], tmp_path: Path, architecture: str
) -> None:
    """Reference, teacher and bare base, bit for bit, before and while the policy learns; and that learns as ever."""
    folder = folder_of(tiny, tmp_path / "teacher", 20, architecture, LoRA(rank=6, seed=3))
    policy, batch = start(architecture), make_batch()
    learner, alone = LocalLearner(policy, RATE), LocalLearner(start(architecture), RATE)
    teacher = beside(policy, folder, "teacher")
    pairs = [
        (LocalTeacher(teacher, policy, top_k=5), LocalTeacher(load_causal(folder, device="cpu"), policy, top_k=5)),
        (LocalScorer(beside(policy, tiny(architecture).source, "bare")), LocalScorer(tiny(architecture))),
        (LocalScorer(copied(policy, "reference")), LocalScorer(start(architecture))),
    ]
    for _ in range(2):
        for within, by_itself in pairs:
            assert torch.equal(within.logprobs(batch), by_itself.logprobs(batch))
            if isinstance(within, LocalTeacher) and isinstance(by_itself, LocalTeacher):
                assert all(map(torch.equal, within.top(batch), by_itself.top(batch)))
        assert torch.equal(learner.logprobs(batch), alone.logprobs(batch))
        for one in (learner, alone):
            one.step(batch, likelihood)
    assert learner.weights().keys() == alone.weights().keys()
    assert all(torch.equal(weight, alone.weights()[name]) for name, weight in learner.weights().items())


def test_a_policy_that_starts_from_an_adapter_has_it_for_a_reference(start: Callable[[], CausalModel]) -> None:
    """A15: KL 0 at first. Also of a fresh adapter that was moved before the stage began."""
    batch = make_batch()
    for model in (start(), start()):
        learner = LocalLearner(model, RATE)
        reference = ReferenceScorer(model)
        assert isinstance(reference.reference, FrozenAdapter)
        assert float(k3(learner.logprobs(batch), reference.logprobs(batch)).abs().max()) < 1e-6
        learner.step(batch, likelihood)
        assert float(k3(learner.logprobs(batch), reference.logprobs(batch)).max()) > 1e-4


def test_a_fresh_adapter_that_was_put_elsewhere_is_no_base(tiny: Load, tmp_path: Path) -> None:
    """A stage may restart from the base and begin with an adapter: the reference is where it begins."""
    folder = folder_of(tiny, tmp_path / "adapter", 10)
    assert isinstance(reference_of(tiny(lora=SHAPE)), AdapterOff)
    model = tiny(lora=SHAPE)
    LocalLearner(model, RATE).reset(folder)
    assert isinstance(reference_of(model), FrozenAdapter)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_adapter_beside_the_policy_can_be_sampled_from(
    tiny: Load, start: Callable[[str], CausalModel], tmp_path: Path, architecture: str
) -> None:
    backend = LocalBackend()
    folder = folder_of(tiny, tmp_path / "teacher", 20, architecture)
    policy = start(architecture)
    before = sample(backend, policy)
    within = sample(backend, beside(policy, folder, "teacher"))
    assert within == sample(backend, load_causal(folder, device="cpu"))
    assert within != before
    assert sample(backend, policy) == before


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("lora", [SHAPE, LoRA(rank=4, rslora=True)], ids=["plain", "rslora"])
def test_sampler_and_learner_agree(tiny: Load, tmp_path: Path, architecture: str, lora: LoRA) -> None:
    """Their log-probs within 1e-5, with the adapter beside its base: nothing is merged for sampling."""
    folder = folder_of(tiny, tmp_path / "adapter", 10, architecture, lora)
    policy = LocalBackend().policy(load_causal(folder, device="cpu"), RATE)
    learner = policy.learner
    assert isinstance(learner, LocalLearner)
    base = {n: w.clone() for n, w in learner.model.module.named_parameters() if not w.requires_grad}
    for _ in range(2):
        batch = batch_of(sample(LocalBackend(), learner.model))
        apart = (learner.logprobs(batch) - batch.sampler_logprobs)[batch.mask].abs()
        assert float(apart.max()) < 1e-5
        learner.step(replace(batch).with_(weights=batch.mask / batch.mask.sum()), likelihood)
    assert all(torch.equal(weight, dict(learner.model.module.named_parameters())[n]) for n, weight in base.items())


def test_an_adapter_of_the_variant_dora_is_right_though_slow(tiny: Load, tmp_path: Path) -> None:
    """No setting of ours makes one; a folder that holds one runs through peft's own forward."""
    import peft

    module = tiny().module
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], use_dora=True, task_type="CAUSAL_LM")
    peft.get_peft_model(module, settings).save_pretrained(tmp_path / "dora")
    model = load_causal(tmp_path / "dora", device="cpu")
    learner = LocalLearner(model, RATE)
    learner.step(make_batch(), likelihood)
    batch = batch_of(sample(LocalBackend(), model))
    apart = (learner.logprobs(batch) - batch.sampler_logprobs)[batch.mask].abs()
    assert float(apart.max()) < 1e-5


# ---- a critic over the policy's base


def with_critic(model: CausalModel, kind: str, again: CausalModel, **options: object) -> LocalLearner:
    critics = {
        "adapter": lambda: SeparateCritic(copied(model, "critic", trainable=True), 5e-3, 8),
        "separate": lambda: SeparateCritic(again, 5e-3, 8),
    }
    return LocalLearner(model, RATE, critic=critics[kind](), micro_batch_tokens=40, **options)  # type: ignore[arg-type]


def names(learner: LocalLearner) -> list[str]:
    """As a critic with a base of its own calls them."""
    return sorted(name.replace(".critic.", ".default.") for name in learner.weights())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_critic_over_the_policys_base_learns_as_one_with_its_own(
    start: Callable[[str], CausalModel], architecture: str
) -> None:
    """The same values and the same weights after some steps, bit for bit, of policy and critic."""
    made = {
        kind: with_critic(start(architecture), kind, start(architecture), restart=True)
        for kind in ("adapter", "separate")
    }
    assert names(made["adapter"]) == names(made["separate"])
    for seed in range(3):
        values = [learner.values(make_batch(seed)) for learner in made.values()]
        assert torch.equal(*values)
        metrics = [learner.step(make_batch(seed), both) for learner in made.values()]
        assert metrics[0] == metrics[1]
    assert values[0].any()
    found = {kind: dict(learner.weights()) for kind, learner in made.items()}
    for name, weight in found["adapter"].items():
        assert torch.equal(weight, found["separate"][name.replace(".critic.", ".default.")]), name
    held = made["adapter"].start
    assert held is not None
    assert held.keys() == found["adapter"].keys()  # restarting keeps adapters and heads, not the base


def test_a_separate_critic_has_no_place_without_an_adapter_of_its_own(
    tiny: Load, start: Callable[[], CausalModel]
) -> None:
    policy = start()
    for model in (policy, replace(policy, adapter_name=BASE)):
        with pytest.raises(ConfigError, match="got the policy itself as its separate critic"):
            LocalLearner(policy, RATE, critic=SeparateCritic(model))
    with pytest.raises(ConfigError, match="got the adapter 'critic' beside a policy to train as a policy"):
        LocalLearner(copied(policy, "critic", trainable=True), RATE)
    with pytest.raises(ConfigError, match=r"all weights of .* are trained"):
        beside(tiny(), tiny().source, "critic", trainable=True)


def test_a_critic_and_a_policy_do_not_move_each_other(start: Callable[[], CausalModel]) -> None:
    """And a following reference mixes the policy's weights alone."""
    learner = with_critic(start(), "adapter", start())
    module = learner.model.module
    reference = LocalBackend(micro_batch_tokens=40).following(learner.model, learner, every=1, mix=1.0)
    assert reference.weights.keys() == trained_weights(module).keys()
    assert not any("critic" in name for name in reference.weights)

    def kept(name: str) -> dict[str, Tensor]:
        return {each: weight.detach().clone() for each, weight in adapter_weights(module, name).items()}

    base = {n: w.clone() for n, w in module.named_parameters() if "lora_" not in n}
    before = {name: kept(name) for name in ("default", "critic", "reference")}
    learner.step(make_batch(), lambda outputs, batch: ((outputs.values - 1.0) ** 2, {}))
    learner.step(make_batch(), lambda outputs, batch: ((outputs.values - 1.0) ** 2, {}))
    assert all(torch.equal(weight, before["default"][name]) for name, weight in kept("default").items())
    assert not all(torch.equal(weight, before["critic"][name]) for name, weight in kept("critic").items())
    critic = kept("critic")
    learner.step(make_batch(), likelihood)
    assert all(torch.equal(weight, critic[name]) for name, weight in kept("critic").items())
    assert not all(torch.equal(weight, before["default"][name]) for name, weight in kept("default").items())
    assert torch.equal(reference.logprobs(make_batch()), learner.logprobs(make_batch()))
    assert all(torch.equal(w, base[n]) for n, w in module.named_parameters() if n in base)


@pytest.mark.parametrize("stop", [1, 2])
def test_stopping_changes_no_bit(tiny: Load, start: Callable[[], CausalModel], tmp_path: Path, stop: int) -> None:
    """Policy, critic and a reference that follows, one base; what is written are adapters, heads and their moments."""

    def made() -> tuple[LocalLearner, object]:
        learner = with_critic(start(), "adapter", start())
        return learner, LocalBackend().following(learner.model, learner, every=2, mix=0.5)

    def steps(learner: LocalLearner, reference, seeds: range) -> list[Tensor]:
        found = []
        for seed in seeds:
            found += [reference.logprobs(make_batch(seed)), learner.values(make_batch(seed))]
            learner.step(make_batch(seed), both)
        return found

    whole = made()
    expected = steps(*whole, range(4))
    learner, reference = made()
    steps(learner, reference, range(stop))
    learner.save(tmp_path / "saved")
    reference.save(tmp_path / "saved")  # type: ignore[attr-defined]
    learner, reference = made()
    learner.load(tmp_path / "saved")
    reference.load(tmp_path / "saved")  # type: ignore[attr-defined]
    found = steps(learner, reference, range(stop, 4))
    assert all(map(torch.equal, found, expected[2 * stop :]))
    assert all(torch.equal(weight, whole[0].weights()[name]) for name, weight in learner.weights().items())
    adapter = sum(weight.nbytes for weight in trained_weights(learner.model.module).values())
    head = 4 * (8 * 32 + 8 + 8 + 1)
    files = [load_file(path) for path in (tmp_path / "saved").rglob("*.safetensors")]
    written = sum(value.nbytes for file in files for value in file.values() if value.dim())
    assert written == 3 * adapter + adapter + 3 * (adapter + head)  # policy and moments, reference, critic and moments
    assert not list((tmp_path / "saved" / "model").rglob("critic*"))


def test_a_critic_with_other_weights_is_not_read(start: Callable[[], CausalModel], tmp_path: Path) -> None:
    LocalLearner(start(), RATE, critic=ValueHead()).save(tmp_path)
    with pytest.raises(RunError, match="resume with the critic of the saved run"):
        with_critic(start(), "adapter", start()).load(tmp_path)


def test_a_round_that_restarts_refuses_an_adapter_of_another_rank(tiny: Load, tmp_path: Path) -> None:
    learner = LocalLearner(tiny(lora=SHAPE), RATE)
    with pytest.raises(ModelError, match=r"does not fit.*got \(7, .*expected \(4, "):
        learner.reset(folder_of(tiny, tmp_path / "other", 10, lora=LoRA(rank=7)))


def test_a_trust_region_leaves_adapters_beside_the_policy_alone(start: Callable[[], CausalModel]) -> None:
    """TRPO's second derivatives and steps are of the policy's weights; a critic over its base is carried along."""
    row, batch = trpo(), make_batch()
    plain, learner = LocalLearner(start(), RATE, micro_batch_tokens=40), with_critic(start(), "adapter", start())
    copied(learner.model, "reference")
    assert "trust_region" in learner.capabilities
    critic = {n: w.detach().clone() for n, w in learner.weights().items() if n.startswith("critic.")}
    found = []
    for each in (plain, learner):
        noise = torch.randn(batch.mask.shape, generator=torch.Generator().manual_seed(1))
        given = batch.with_(old_logprobs=each.logprobs(batch), advantages=noise * batch.mask)
        found.append(row.update(each, given, row))
    assert found[0]["trpo/accepted"] == found[1]["trpo/accepted"] == 1.0
    for name, weight in plain.weights().items():
        torch.testing.assert_close(learner.weights()[name], weight, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(learner.weights()[n], weight) for n, weight in critic.items())


# ---- what it takes


def parameters() -> list[nn.Parameter]:
    gc.collect()
    return [one for one in gc.get_objects() if isinstance(one, nn.Parameter)]


def test_four_models_take_the_bytes_of_one_base(tiny: Load, start: Callable[[], CausalModel], tmp_path: Path) -> None:
    """Every parameter in this process by its storage: base + 4 adapters + a head, whoever holds them."""
    folder = folder_of(tiny, tmp_path / "teacher", 20)
    start()  # its folder is made
    before = parameters()
    known = {id(one) for one in before}
    policy = start()
    backend = LocalBackend()
    critic = SeparateCritic(copied(policy, "critic", trainable=True))
    whole = backend.policy(policy, RATE, critic=critic, restart=True)
    reference = backend.reference(policy)
    teacher = backend.teacher(beside(policy, folder, "teacher"), policy)
    batch = make_batch()
    for model in (reference, teacher):
        assert model.logprobs(batch).any()
    whole.learner.step(batch, both)
    found = [one.untyped_storage() for one in parameters() if id(one) not in known]
    held = sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())

    base = sum(weight.nbytes for weight in tiny().module.parameters())
    adapter = sum(weight.nbytes for weight in adapter_weights(policy.module, "default").values())
    head = 4 * (32 + 1)
    assert held == base + 4 * adapter + head
    assert parameters_of(policy) == parameter_count(tiny(lora=SHAPE).module)  # what lies beside is not counted
    trained = sum(weight.nbytes for weight in whole.learner.weights().values())
    assert trained == 2 * adapter + head
    updater = whole.learner.updater  # type: ignore[attr-defined]
    moments = sum(value.nbytes for name, value in updater.state().items() if "exp_avg" in name)
    assert moments == 2 * trained
