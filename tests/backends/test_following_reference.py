"""References that follow the policy: when and how far they move, and that a resumed one goes on to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from maieutic.algorithms import grpo
from maieutic.backends.local import FollowingReference, LocalBackend, LocalLearner, Optimiser
from maieutic.backends.toy import ToyChat, ToyFollower, ToySums, toy_policy
from maieutic.core.following import Following, blend
from maieutic.core.kl import k3
from maieutic.errors import RunError
from maieutic.models.causal import CausalModel, load_causal, save_causal
from maieutic.models.lora import LoRA
from maieutic.rollout import Roller
from maieutic.sources import Sampled
from maieutic.train import train
from maieutic.types import Batch, Score

Load = Callable[..., CausalModel]


def weight(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value], dtype=torch.float64)}


def test_the_mixture() -> None:
    # α = .6 of the policy: .6 · 10 + .4 · 2 = 6.8; again, .6 · 10 + .4 · 6.8 = 8.72
    reference = weight(2.0)
    blend(reference, weight(10.0), 0.6)
    assert reference["w"].item() == pytest.approx(6.8)
    blend(reference, weight(10.0), 0.6)
    assert reference["w"].item() == pytest.approx(8.72)
    blend(reference, weight(0.1), 1.0)
    assert reference["w"].item() == 0.1


def test_when_it_moves() -> None:
    rule, reference = Following(every=3, mix=0.9), weight(1.0)
    for version, policy, expected in [
        (0, 5.0, 1.0),
        (2, 5.0, 1.0),
        (3, 2.0, 1.9),  # .9 · 2 + .1 · 1
        (3, 100.0, 1.9),  # asked again without an update in between, it stays
        (5, 100.0, 1.9),
        (13, 2.0, 1.9999),  # 6, 9 and 12 have passed: 1 − .1³ = .999 of 2 and .001 of 1.9
        (14, 9.0, 1.9999),
        (15, 3.0, 2.89999),  # .9 · 3 + .1 · 1.9999
    ]:
        rule.move(version, reference, weight(policy))
        assert reference["w"].item() == pytest.approx(expected, abs=1e-12), version


def test_a_count_that_does_not_begin_at_zero() -> None:
    rule, reference = Following(every=10, mix=0.5, version=25), weight(0.0)
    rule.move(29, reference, weight(1.0))
    assert reference["w"].item() == 0.0
    rule.move(30, reference, weight(1.0))
    assert reference["w"].item() == 0.5


@pytest.mark.parametrize(("every", "mix"), [(0, 0.5), (1, 0.0), (1, 1.1)])
def test_what_is_no_following(every: int, mix: float) -> None:
    with pytest.raises(ValueError, match=f"every={every}, mix={mix}"):
        Following(every, mix)


# ---- the local backend ---------------------------------------------------------------------------------------------


def make_batch(seed: int = 0) -> Batch:
    tokens = torch.randint(5, 32, (4, 10), generator=torch.Generator().manual_seed(seed))
    mask = (torch.arange(10) >= 3).expand(4, 10)
    zeros = torch.zeros(4, 10)
    return Batch(
        tokens=tokens, mask=mask, lengths=torch.full((4,), 10), sampler_logprobs=zeros, rewards=zeros[:, 0],
        token_rewards=zeros, terminated=mask.any(1), groups=torch.arange(4), units=torch.arange(4),
        columns={"weights": mask / mask.sum()},
    )  # fmt: skip


def loss(outputs, batch):
    return -outputs.logprobs, {}


@pytest.fixture
def starts(tiny: Load, tmp_path: Path) -> Callable[[str], CausalModel]:
    """Models to start from: all weights, a fresh adapter, and one that has been trained already."""

    def make(start: str) -> CausalModel:
        if start == "all weights":
            return tiny()
        if start == "fresh adapter":
            return tiny(lora=LoRA(rank=2))
        folder = tmp_path / "adapter"
        if not folder.exists():
            trained = tiny(lora=LoRA(rank=2))
            learner = LocalLearner(trained, Optimiser(learning_rate=1e-2))
            learner.step(make_batch(9), loss)
            save_causal(trained, folder)
        return load_causal(folder, dtype="float32", device="cpu")

    return make


every_start = pytest.mark.parametrize("start", ["all weights", "fresh adapter", "loaded adapter"])


@every_start
def test_it_begins_at_the_policy_and_comes_after_it(starts, start: str) -> None:
    """A15: KL 0 before the first update, for an adapter that was trained before too; then as the numbers say."""
    model, batch = starts(start), make_batch()
    learner = LocalLearner(model, Optimiser(learning_rate=1e-2))
    reference = LocalBackend().following(model, learner, every=2, mix=0.75)
    first = {name: value.clone() for name, value in learner.weights().items()}
    here = reference.logprobs(batch)
    assert float(k3(learner.logprobs(batch), here).abs().max()) < 1e-6

    learner.step(batch, loss)
    assert torch.equal(reference.logprobs(batch), here)  # one optimiser step: not yet
    assert float(k3(learner.logprobs(batch), here).max()) > 1e-4
    learner.step(batch, loss)
    moved = reference.logprobs(batch)
    assert not torch.equal(moved, here)
    now = learner.weights()
    assert reference.weights.keys() == now.keys()
    for name, value in reference.weights.items():
        torch.testing.assert_close(value, 0.75 * now[name] + 0.25 * first[name], rtol=1e-6, atol=1e-8)
    assert torch.equal(reference.logprobs(batch), moved)
    # nearer to the policy, and the policy is as it was: the same weights are trained, and nothing else
    assert float(k3(learner.logprobs(batch), moved).mean()) < 0.5 * float(k3(learner.logprobs(batch), here).mean())
    assert learner.weights().keys() == first.keys()
    assert not any(value.requires_grad for value in reference.weights.values())


@every_start
def test_with_all_of_the_policy_it_is_the_policy(starts, start: str) -> None:
    """A38: bit for bit, so a second adapter is scaled (alpha / rank) as the trained one is."""
    model, batch = starts(start), make_batch()
    learner = LocalLearner(model, Optimiser(learning_rate=1e-2))
    reference = LocalBackend().following(model, learner, every=1, mix=1.0)
    for _ in range(2):
        learner.step(batch, loss)
        assert torch.equal(reference.logprobs(batch), learner.logprobs(batch))


def local(starts, start: str) -> tuple[LocalLearner, FollowingReference]:
    model = starts(start)
    learner = LocalLearner(model, Optimiser(learning_rate=1e-2))
    return learner, LocalBackend().following(model, learner, every=2, mix=0.6)


def steps(learner: LocalLearner, reference: FollowingReference, seeds: range) -> list[torch.Tensor]:
    found = []
    for seed in seeds:
        found.append(reference.logprobs(make_batch(seed)))
        learner.step(make_batch(seed), loss)
    return found


@every_start
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_stopping_changes_no_bit(starts, tmp_path: Path, start: str, stop: int) -> None:
    """A39: stopped before, at and after a move, the reference's weights and counter go on as they were."""
    whole, whole_reference = local(starts, start)
    expected = steps(whole, whole_reference, range(6))

    learner, reference = local(starts, start)
    assert all(map(torch.equal, steps(learner, reference, range(stop)), expected))
    learner.save(tmp_path / "saved")
    reference.save(tmp_path / "saved")
    assert not list((tmp_path / "saved" / "model").rglob("reference*"))  # a plain model folder all the same

    learner, reference = local(starts, start)
    learner.load(tmp_path / "saved")
    reference.load(tmp_path / "saved")
    found = steps(learner, reference, range(stop, 6))
    assert all(map(torch.equal, found, expected[stop:]))
    assert reference.weights.keys() == whole_reference.weights.keys()
    assert all(torch.equal(value, whole_reference.weights[name]) for name, value in reference.weights.items())
    assert reference.rule.moves == whole_reference.rule.moves == 2


def test_what_cannot_be_resumed(starts, tmp_path: Path) -> None:
    _, reference = local(starts, "all weights")
    with pytest.raises(RunError, match="cannot resume the reference that follows"):
        reference.load(tmp_path)
    reference.save(tmp_path)
    with pytest.raises(RunError, match="of another model"):
        local(starts, "fresh adapter")[1].load(tmp_path)


# ---- in the loop ---------------------------------------------------------------------------------------------------


async def short(_task, rollouts):
    return [Score(1.0 / len(r.tokens)) for r in rollouts]


def toy():
    tasks = ToySums(limit=3)
    chat = ToyChat(tasks.vocabulary)
    policy = toy_policy(chat, length=3, buckets=32, learning_rate=0.1, seed=1)
    roller = Roller(policy.sampler, chat, short, max_completion_length=3, seed=7)
    return Sampled(tasks, roller, prompts=9, num_generations=4), policy  # every task at every step


def test_in_the_loop_it_moves_before_the_update_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    """Two optimiser steps a step of the loop, a move every three: before the third, fourth, sixth step, and so on."""
    algorithm = grpo(beta=0.1, epochs=2)
    source, policy = toy()
    follower = ToyFollower(policy.learner, every=3, mix=0.5)
    whole = list(train(source, policy, algorithm, steps=6, reference=follower))
    # at the first step the reference is the policy: KL 0 exactly, up to the second epoch's
    assert whole[0].batch is not None
    assert torch.equal(whole[0].batch.ref_logprobs, whole[0].batch.old_logprobs)
    gaps = [float((s.batch.ref_logprobs - s.batch.old_logprobs).abs().sum()) for s in whole]
    assert all(gap > 0 for gap in gaps[1:])

    source, policy = toy()
    follower = ToyFollower(policy.learner, every=3, mix=0.5)
    first = list(train(source, policy, algorithm, steps=4, reference=follower))
    policy.learner.save(tmp_path)
    follower.save(tmp_path)
    state = source.state()

    source, policy = toy()
    follower = ToyFollower(policy.learner, every=3, mix=0.5)
    policy.learner.load(tmp_path)
    follower.load(tmp_path)
    source.restore(state)
    rest = list(train(source, policy, algorithm, steps=6, start=4, reference=follower))
    assert [s.metrics for s in first + rest] == [s.metrics for s in whole]
    assert torch.equal(rest[-1].batch.ref_logprobs, whole[-1].batch.ref_logprobs)
