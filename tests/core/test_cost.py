"""What a step costs, in numbers worked by hand."""

from __future__ import annotations

import pytest
import torch

from maieutic.core.cost import Meter, Metered, step_cost
from maieutic.types import Batch, Finish, Group, Rollout, Score, Step, Task

N = 1000  # parameters


def rollout(prompt: int, chosen: int, tool: int = 0, finish: Finish = Finish.STOP) -> Rollout:
    mask = (False,) * prompt + (True,) * chosen + (False,) * tool
    return Rollout("t", (1,) * len(mask), mask, (0.0,) * len(mask), finish)


def step(*groups: tuple[Rollout, ...]) -> Step:
    made = tuple(
        Group(Task("t", ()), rollouts, tuple(Score(0.0) for _ in rollouts), id=i) for i, rollouts in enumerate(groups)
    )
    return Step(0, made, (), None, {})


def batch(*lengths: int) -> Batch:
    shape = (len(lengths), max(lengths))
    zeros, row = torch.zeros(shape), torch.zeros(len(lengths))
    return Batch(
        tokens=zeros.long(), mask=zeros.bool(), lengths=torch.tensor(lengths), sampler_logprobs=zeros, rewards=row,
        token_rewards=zeros, terminated=row.bool(), groups=row.long(), units=row.long(),
    )  # fmt: skip


class Model:
    """A learner that remembers what it was asked."""

    version = 7

    def __init__(self) -> None:
        self.asked: list[str] = []

    def step(self, batch: Batch, loss: object, *, needs: frozenset[str]) -> str:
        del batch, loss, needs
        self.asked.append("step")
        return "metrics"

    def logprobs(self, batch: Batch) -> str:
        del batch
        self.asked.append("logprobs")
        return "logprobs"


def test_samples_and_tokens_of_two_groups():
    # group 1: prompts of 3, completions of 4 and 2, a tool wrote 5: chosen 6, read 3 + 3 + 5 = 11
    # group 2 was drawn and gave no signal: it cost prompt 2, completion 1 all the same
    # one rollout could not be made: a sample without tokens
    made = step((rollout(3, 4), rollout(3, 2, 5)), (rollout(2, 1), rollout(9, 0, finish=Finish.ERROR)))
    # trained 13 tokens in each of two passes: the meter says 26 and 6 · 1000 · 26 = 156,000
    # sampling: 2 · 1000 · (7 + 13) = 40,000
    assert step_cost(made, True, N, (26, 156_000.0)) == {
        "cost/samples": 4.0,
        "cost/generated_tokens": 7.0,
        "cost/prompt_tokens": 13.0,
        "cost/trained_tokens": 26.0,
        "cost/flops": 196_000.0,
    }


def test_demonstrations_cost_what_training_on_them_costs():
    assert step_cost(step((rollout(3, 4),)), False, N, (7, 42_000.0)) == {
        "cost/samples": 0.0,
        "cost/generated_tokens": 0.0,
        "cost/prompt_tokens": 0.0,
        "cost/trained_tokens": 7.0,
        "cost/flops": 42_000.0,
    }


def test_a_meter_counts_every_pass_and_no_padding():
    meter, model, reference = Meter(), Model(), Model()
    learner, scorer = Metered(model, N, meter), Metered(reference, 10, meter)
    rows = batch(3, 5)  # 8 tokens, padded to 10
    assert scorer.logprobs(rows) == "logprobs"  # 2 · 10 · 8 = 160
    for _ in range(3):  # three epochs: 3 · 8 tokens, 6 · 1000 · 24 = 144,000
        assert learner.step(rows, None, needs=frozenset()) == "metrics"
    learner.logprobs(rows)  # the old policy: 2 · 1000 · 8 = 16,000
    assert meter.read() == (24, 160_160.0)
    assert meter.read() == (0, 0.0)
    assert (learner.version, model.asked) == (7, ["step"] * 3 + ["logprobs"])
    with pytest.raises(AttributeError, match="values"):
        learner.values(rows)


class Near:
    """A neighbourhood."""

    def fisher_product(self, vector: float) -> float:
        return 2 * vector

    def kl(self) -> float:
        return 0.5

    def objective(self, loss: object) -> float:
        del loss
        return 0.25


class Natural(Model):
    """A learner that can take natural steps."""

    def gradient(self, batch: Batch, loss: object) -> str:
        del batch, loss
        return "slope"

    def neighbourhood(self, batch: Batch, tokens: object) -> Near:
        del batch, tokens
        return Near()


def test_a_trust_region_is_counted_too():
    # rows of 3 and 5 tokens, policies compared in the second: a gradient 6 · 1000 · 8 = 48,000; four Fisher products
    # 4 · 12 · 1000 · 5 = 240,000; a KL 2 · 1000 · 5 = 10,000; the objective, of all rows, 2 · 1000 · 8 = 16,000
    meter = Meter()
    learner = Metered(Natural(), N, meter)
    rows = batch(3, 5)
    assert learner.gradient(rows, None) == "slope"
    near = learner.neighbourhood(rows, torch.tensor([[False, False], [False, True]]))
    assert [near.fisher_product(v) for v in range(4)] == [0, 2, 4, 6]
    assert (near.kl(), near.objective(None)) == (0.5, 0.25)
    assert meter.read() == (8, 314_000.0)


def test_parameters_are_counted_without_embeddings_and_head(tmp_path):
    # one layer of width 16, two heads, one key-value head (head width 8), MLP 32:
    # q 16·16, k and v 8·16 each, o 16·16: 768; gate, up, down 3 · 16 · 32 = 1536; three norms of 16: 48. In all 2352
    from maieutic.models.causal import load_causal, parameter_count
    from maieutic.models.lora import LoRA
    from maieutic.models.small import SmallModel, build_small

    spec = SmallModel(layers=1, width=16, heads=2, kv_heads=1, mlp=32, context=32)
    for tied in (True, False):
        folder = build_small(tmp_path / str(tied), SmallModel(**{**vars(spec), "tied": tied}), ["a b c"])
        assert parameter_count(load_causal(folder).module) == 2352
    # an adapter of rank 2 on q (2·16 + 16·2), v (2·16 + 8·2): 64 + 48 more, on top of the frozen weights
    lora = LoRA(rank=2, targets=["q_proj", "v_proj"])
    assert parameter_count(load_causal(folder, lora=lora).module) == 2352 + 112
