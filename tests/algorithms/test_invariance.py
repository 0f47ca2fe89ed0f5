"""Every row of the table on a real decoder in float64: what must not change a gradient does not.

The gradient is that of sum(weights * loss) over a batch of nine groups with prompts of 1 to 7 tokens, completions of 1
to 12 tokens, tool tokens inside some rows, truncated rows, an unscorable one, and a group whose rewards are all equal.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch.nn.functional import pad

from maieutic.algorithms import ALGORITHMS, make_algorithm
from maieutic.annotate import values
from maieutic.backends.local import LocalLearner, Optimiser, ValueHead
from maieutic.backends.local.evaluate import PackedForward
from maieutic.core.corrections import filtered
from maieutic.core.kl import k2
from maieutic.models.causal import load_causal, token_logprobs
from maieutic.models.small import tiny_folder
from maieutic.pack import pack
from maieutic.types import ROW_COLUMNS, SHAPES, Finish, Group, Outputs, Rollout, Score, Task

#: Name of a row → the options it is tested with. A row of the table that is not here fails the last test.
OPTIONS = {
    "sft": [{}],
    "rejection_sampling": [{}],
    "star": [{}],
    "rest_em": [{}],
    "expert_iteration": [{}],
    "rcrl": [
        {"good": "<think>", "bad": "</think>", "delimiter": " ;"},  # words of the tiny model
        {"good": "<think>", "bad": "</think>", "delimiter": " ;", "threshold": 0.15, "loss_on_labels": True},
    ],
    "reinforce": [{}, {"gamma": 0.9, "entropy": 0.01}],
    "reinforce_plus_plus": [{}, {"beta": 0.5, "gamma": 0.9, "correction": "sequence_truncate"}],
    "reinforce_plus_plus_baseline": [{}, {"beta": 0.5, "kl": "k3_plus", "correction": "token_mask"}],
    "rloo": [{}, {"beta": 0.1}],
    "trpo": [{}],
    "grpo": [
        {},
        {"beta": 0.04},
        {"beta": 0.5, "kl": k2, "epsilon_high": 0.4},
        {"beta": 0.5, "kl": "corrected_k3", "scale": "batch", "entropy": 0.01},
        {"correction": "token_truncate", "ratio_anchor": "ref", "scale": "none"},
        {"beta_first_turn": 0.5, "kl": k2},
    ],
    "ppo": [
        {},
        {"lam": 0.5, "gamma": 0.9, "value_lam": 1.0, "entropy": 0.01, "dual_clip": 1.2, "value_coefficient": 1.0},
        {"beta": 0.0, "bootstrap": False, "value_clip": None},
    ],
    "dr_grpo": [{}],
    "dapo": [{}],
    "gspo": [{}, {"epsilon": 0.2, "epsilon_high": 0.28}],
    "gspo_token": [{}, {"epsilon": 0.2, "epsilon_high": 0.28}],
    "cispo": [{}, {"cap": 0.9, "correction": "off_policy_mask"}],
    "lite_ppo": [{}],
    "gdpo": [{}, {"reward_weights": {"answer": 1.0, "format": 0.1}}],
    "sapo": [{}, {"tau_positive": 2.0, "correction": filtered(0.2, 5.0)}],
    "orpo": [{"pairs": "all"}, {"pairs": {"mode": "all", "after_prefix": True}}],
    "dpo": [{"pairs": "all"}, {"pairs": "all", "label_smoothing": 0.1}],
    "ipo": [{"pairs": "all"}, {"pairs": "all", "average": True}],
    "simpo": [{"pairs": "all"}],
    "rpo": [{"pairs": "all"}],
    "distil": [{}, {"divergence": "reverse_kl", "temperature": 2.0, "renormalise": True, "nll_coef": 0.1}],
    "gkd": [{}, {"beta": 0.1, "scaled": True}],
    "on_policy_distillation": [{}, {"task_reward": True, "discount": 0.5}],
}
CASES = [
    pytest.param(name, options, id=name + "".join(f"-{key}" for key in options))
    for name in ALGORITHMS
    for options in OPTIONS.get(name, [{}])
]
every_row = pytest.mark.parametrize(("name", "options"), CASES)

#: RMS norms compute in float32 inside a float64 model, so gradients agree to about 1e-7 and not to 1e-15.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_causal(tiny_folder("llama", tmp_path_factory.mktemp("tiny")), dtype="float64", device="cpu")


def rollout(draw, prompt, length, *, tool=(), finish=Finish.STOP, sibling=0):
    """`length` tokens after the prompt, those at the places `tool` written by a tool."""
    mask = [False] * len(prompt) + [place not in tool for place in range(length)]
    tokens = prompt + [draw.randrange(5, 32) for _ in range(length)]
    logprobs = [-draw.uniform(0.5, 5) if chosen else 0.0 for chosen in mask]
    text = " ".join(map(str, tokens))
    return Rollout("t", tuple(tokens), tuple(mask), tuple(logprobs), finish, text, sibling=sibling, temperature=0.9)


def parts_of(reward, sibling):
    """An answer and, in two rows of three, a format."""
    return {} if reward is None else {"answer": reward} | ({"format": sibling / 2} if sibling != 2 else {})


def make_groups():
    """Nine groups; in group 1 all rewards are equal, in group 4 one rollout is unscorable."""
    draw = random.Random(5)
    cut = {"finish": Finish.LENGTH}
    shapes = [
        # prompt, (length, options) of each rollout, rewards
        (3, [(5, {}), (2, {}), (9, {"tool": (3, 4)}), (1, {})], (1.0, 0.0, 1.0, 0.0)),
        (6, [(4, {}), (7, {"tool": (1,)}), (2, {})], (0.7, 0.7, 0.7)),
        (2, [(12, cut), (3, {})], (0.0, 1.0)),
        (1, [(6, {"tool": (5,)}), (4, {}), (3, {})], (1.0, 1.0, 0.0)),
        (5, [(8, {}), (2, {}), (5, {})], (1.0, None, -1.0)),
        (7, [(3, {}), (10, {"tool": (2, 3, 6), **cut})], (0.2, 0.1)),
        (4, [(2, {}), (2, {}), (2, {}), (11, {})], (0.0, 0.0, 0.0, 1.0)),
        (2, [(7, {}), (1, {})], (0.0, 2.0)),
        (3, [(4, {}), (6, {})], (1.0, 0.0)),
    ]
    groups = []
    for number, (width, rows, rewards) in enumerate(shapes):
        prompt = [draw.randrange(5, 32) for _ in range(width)]
        rollouts = tuple(rollout(draw, prompt, length, sibling=i, **more) for i, (length, more) in enumerate(rows))
        scores = tuple(Score(r, parts=parts_of(r, i)) for i, r in enumerate(rewards))
        groups.append(Group(Task(f"t{number}", ()), rollouts, scores, id=number))
    return groups


def noise(shape, seed):
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


TEACHER = {"teacher_logprobs", "teacher_top_ids", "teacher_top_logprobs"}


def taught(batch):
    """What a teacher that is random, and not uniform, says of the batch: 5 candidates of 32 tokens."""
    whole = torch.log_softmax(10 * noise((*batch.mask.shape, 32), 8), -1)
    logprobs, ids = whole.topk(5)
    chosen = whole.gather(-1, batch.tokens[..., None])[..., 0]
    return {
        "teacher_logprobs": torch.where(batch.mask, chosen, 0.0),
        "teacher_top_ids": ids * batch.mask[..., None],
        "teacher_top_logprobs": logprobs * batch.mask[..., None],
    }


def packed(algorithm, learner, *, later):
    """The row's batch in float64, with the columns it asks models for.

    At a `later` optimiser step the old policy is not the present one, so ratios are not 1 and some are clipped.
    """
    batch = pack(algorithm.select(make_groups()))
    batch = batch.with_(**{n: getattr(batch, n).double() for n in ("sampler_logprobs", "rewards", "token_rewards")})
    known = {"old_logprobs", "ref_logprobs", "old_values", "final_values", *TEACHER}
    assert algorithm.asks <= known, "teach this test to fill the other columns"
    now = learner.logprobs(batch)
    old = torch.where(batch.mask, now + noise(now.shape, 1), 0.0) if later else now
    if later or "old_logprobs" in algorithm.asks:
        batch = batch.with_(old_logprobs=old)
    if "ref_logprobs" in algorithm.asks:
        batch = batch.with_(ref_logprobs=torch.where(batch.mask, now + noise(now.shape, 2), 0.0))
    batch = batch.with_(**{name: column for name, column in taught(batch).items() if name in algorithm.asks})
    if "old_values" in algorithm.asks:
        found = values(learner, batch)
        moved = torch.where(batch.mask, noise(now.shape, 6), 0.0) if later else 0.0
        batch = batch.with_(final_values=found["final_values"], old_values=found["old_values"] + moved)
    return batch


def finished(algorithm, batch):
    """With credit and weights, as `train` and `sgd` would give them."""
    batch = algorithm.credit(batch)
    return batch.with_(weights=algorithm.weigh(batch))


def gradient(algorithm, learner, batch, *, budget=10**6):
    """The flat gradient that one optimiser step would use, and the step's metrics."""
    learner.micro_batch_tokens = budget
    learner.updater.forget_gradients()
    metrics = learner.accumulate(batch, algorithm.loss.terms, needs=algorithm.loss.needs)
    return flat_gradient(learner), metrics


def flat_gradient(learner):
    return torch.cat([weight.grad.flatten() for weight in learner.weights().values()])


def assert_same(found, expected):
    assert float(expected.norm()) > 1e-6
    assert float((found - expected).norm() / expected.norm()) < TOLERANCE


def made(model, name, options):
    algorithm = make_algorithm(name, options, max_completion_length=16).bind(model.chat)
    if "values" not in algorithm.requires:
        return algorithm, LocalLearner(model, Optimiser())
    learner = LocalLearner(model, Optimiser(), critic=ValueHead())
    with torch.no_grad():  # a new head says 0 of every state, whatever it reads
        head = learner.weights()["critic.head.layers.0.weight"]
        head.copy_(noise(head.shape, 5))
    return algorithm, learner


def budget_for(learner, batch, count):
    """The largest budget of tokens that splits the batch into `count` micro-batches."""
    return next(b for b in range(600, 0, -1) if len(learner.forward.split(batch, b)) == count)


@every_row
@pytest.mark.parametrize("later", [False, True], ids=["first step", "later step"])
@pytest.mark.parametrize("own_units", [False, True], ids=["group is a unit", "row is a unit"])
def test_any_number_of_micro_batches(model, name, options, later, own_units):
    """A2: the denominator is that of the optimiser batch, whatever it is split into."""
    algorithm, learner = made(model, name, options)
    batch = finished(algorithm, packed(algorithm, learner, later=later))
    if own_units:
        batch = batch.with_(units=torch.arange(batch.size))  # siblings may then be parted: credit is given already
    whole, _ = gradient(algorithm, learner, batch)
    for count in (1, 3, 7):
        found, _ = gradient(algorithm, learner, batch, budget=budget_for(learner, batch, count))
        assert_same(found, whole)


@every_row
@pytest.mark.parametrize("later", [False, True], ids=["first step", "later step"])
def test_padding_columns(model, name, options, later):
    algorithm, learner = made(model, name, options)
    batch = packed(algorithm, learner, later=later)
    columns = [n for n in (*ROW_COLUMNS, *batch.columns) if n not in SHAPES and getattr(batch, n).dim() == 2]
    wide = {n: pad(getattr(batch, n), (0, 5)) for n in columns}
    wide |= {n: pad(c, (0, 0, 0, 5)) for n, c in batch.columns.items() if c.dim() == 3}  # a teacher's candidates
    assert {"tokens", "mask", "token_rewards"} <= wide.keys()
    wider = finished(algorithm, batch.with_(**wide))
    assert wider.weights.shape == (batch.size, batch.tokens.shape[1] + 5)
    assert_same(gradient(algorithm, learner, wider)[0], gradient(algorithm, learner, finished(algorithm, batch))[0])


@every_row
@pytest.mark.parametrize("later", [False, True], ids=["first step", "later step"])
def test_order_of_rows(model, name, options, later):
    algorithm, learner = made(model, name, options)
    batch = packed(algorithm, learner, later=later)
    order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(3))
    assert not torch.equal(order, torch.arange(batch.size))
    permuted = finished(algorithm, batch.rows(order))
    assert_same(
        gradient(algorithm, learner, permuted, budget=60)[0],
        gradient(algorithm, learner, finished(algorithm, batch))[0],
    )


def plain_gradient(algorithm, learner, batch, *, spoil=False):
    """By the Hugging Face module's own padded forward; `spoil` adds to every logit that predicts no chosen token."""
    learner.updater.forget_gradients()
    attention = torch.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    said = learner.model.module(
        batch.tokens, attention_mask=attention.long(), use_cache=False, output_hidden_states=True
    )
    logits, found = said.logits, None
    if learner.critic is not None:
        found = pad(learner.critic.head(said.hidden_states[-1])[:, :-1, 0], (1, 0))
    if spoil:
        predicts = batch.mask.roll(-1, dims=1)  # entry 0 is never chosen, so the last column predicts nothing
        junk = 100 * noise(logits.shape, 7) + logits.sum()
        logits = torch.where(predicts[..., None], logits, junk)
    whole = torch.log_softmax(logits / batch.temperature, -1)
    entropy = pad(-(whole.exp() * whole).sum(-1)[:, :-1], (1, 0))
    top = pad(whole[:, :-1], (0, 0, 1, 0)).gather(-1, batch.teacher_top_ids) if batch.has("teacher_top_ids") else None
    outputs = Outputs(token_logprobs(logits, batch.tokens, batch.temperature), entropy, found, top)
    if "old_logprobs" in algorithm.loss.needs and not batch.has("old_logprobs"):
        batch = batch.with_(old_logprobs=outputs.logprobs.detach())
    (batch.weights * algorithm.loss(outputs, batch)).sum().backward()
    return flat_gradient(learner)


@every_row
@pytest.mark.parametrize("later", [False, True], ids=["first step", "later step"])
def test_packed_and_ordinary_forward(model, name, options, later):
    algorithm, learner = made(model, name, options)
    assert isinstance(learner.forward, PackedForward)  # and not what replaces it where its numbers are wrong
    batch = finished(algorithm, packed(algorithm, learner, later=later))
    ordinary = plain_gradient(algorithm, learner, batch)
    assert_same(gradient(algorithm, learner, batch)[0], ordinary)
    assert_same(plain_gradient(algorithm, learner, batch, spoil=True), ordinary)


@every_row
def test_tokens_after_a_row_and_columns_off_the_mask(model, name, options):
    algorithm, learner = made(model, name, options)
    batch = finished(algorithm, packed(algorithm, learner, later=True))
    expected, metrics = gradient(algorithm, learner, batch)
    beyond = torch.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    assert beyond.any()
    spoiled = {"tokens": torch.where(beyond, 17, batch.tokens)}
    for column in {"sampler_logprobs", *algorithm.loss.needs} - SHAPES.keys():
        spoiled[column] = torch.where(batch.mask, getattr(batch, column), torch.nan)
    if "teacher_top_logprobs" in algorithm.loss.needs:
        where = batch.mask[..., None]
        spoiled["teacher_top_logprobs"] = torch.where(where, batch.teacher_top_logprobs, torch.nan)
        spoiled["teacher_top_ids"] = torch.where(where, batch.teacher_top_ids, 31)
    found, spoiled_metrics = gradient(algorithm, learner, batch.with_(**spoiled))
    assert torch.equal(found, expected)
    assert spoiled_metrics == metrics


@every_row
def test_a_tool_token_is_context_and_nothing_else(model, name, options):
    """Another token in a tool's place changes what the row learns; the tool's own tokens weigh nothing."""
    algorithm, learner = made(model, name, options)
    batch = finished(algorithm, packed(algorithm, learner, later=True))
    written = batch.mask.cumsum(1).bool() & ~batch.mask & (batch.tokens != 0)  # after the first chosen token, not by it
    assert int(written.sum()) >= 3  # 2 + 1 + 1 + 3; without group 1's, or of the correct and whole rows alone
    assert not batch.weights[written].any()
    tokens = torch.where(written, 5 + (batch.tokens - 4) % 27, batch.tokens)
    expected, _ = gradient(algorithm, learner, batch)
    other, _ = gradient(algorithm, learner, batch.with_(tokens=tokens))
    assert float((other - expected).norm() / expected.norm()) > 1e-3


def alone(algorithm, learner, group):
    """The gradient of a batch that is one group."""
    batch = pack(algorithm.select([group]))
    if "ref_logprobs" in algorithm.asks:
        batch = batch.with_(ref_logprobs=torch.where(batch.mask, learner.logprobs(batch) - 0.3, 0.0))
    return gradient(algorithm, learner, finished(algorithm, batch))[0]


@pytest.mark.parametrize("name", ["reinforce", "rloo", "grpo", "dr_grpo"])
def test_a_group_with_equal_rewards_moves_nothing(model, name):
    algorithm, learner = made(model, name, {})
    assert not alone(algorithm, learner, make_groups()[1]).any()
    assert alone(algorithm, learner, make_groups()[0]).any()


def test_a_kl_pulls_whatever_the_rewards_are(model):
    algorithm, learner = made(model, "grpo", {"beta": 0.04})
    assert alone(algorithm, learner, make_groups()[1]).any()


def test_dapo_leaves_a_group_with_equal_rewards_out(model):
    algorithm, _ = made(model, "dapo", {})
    assert algorithm.select([make_groups()[1]]) == []
    # 4 + 3 + 2 + 3 + 3 + 2 + 4 + 2 + 2 = 25 rollouts, one unscorable; GRPO counts the 3 equal ones, DAPO does not
    assert len(make_algorithm("grpo", {}).select(make_groups())) == 24
    assert len(algorithm.select(make_groups())) == 21


def has_ratio(algorithm):
    return any(name in algorithm.loss.label for name in ("surrogate", "soft_gate", "clipped_weight"))


@every_row
def test_the_ratio_is_exactly_one_at_the_first_step(model, name, options):
    """A8: on-policy the ratio is 1, the loss may be near 0, and the gradient is not."""
    algorithm, learner = made(model, name, options)
    batch = finished(algorithm, packed(algorithm, learner, later=False))
    value, metrics = gradient(algorithm, learner, batch, budget=60)
    to_old = "policy/kl_to_old" in metrics  # and not to the reference
    assert to_old is (has_ratio(algorithm) and "anchor=ref" not in algorithm.loss.label)
    if to_old:
        assert metrics["policy/ratio"] == 1.0
        assert metrics["policy/kl_to_old"] == 0.0
        if "cap=0.9" not in algorithm.loss.label:  # a cap below 1 is reached at once
            assert metrics.get("clip_ratio/low", 0.0) == metrics.get("clip_ratio/high", 0.0) == 0.0
        assert value.any()  # a loss near 0 with a gradient that is not
    if "clipped_sequence" in algorithm.loss.label:
        assert metrics["policy/sequence_ratio"] == 1.0
        assert value.any()


@every_row
def test_at_a_later_step_some_tokens_are_clipped(model, name, options):
    algorithm, learner = made(model, name, options)
    _, metrics = gradient(algorithm, learner, finished(algorithm, packed(algorithm, learner, later=True)))
    if "clipped_surrogate" in algorithm.loss.label:
        assert metrics["clip_ratio/low"] > 0
        assert metrics["clip_ratio/high"] > 0
        assert metrics["policy/ratio"] != 1.0
    assert ("policy/ratio" in metrics) is has_ratio(algorithm)


def test_every_row_of_the_table_is_covered():
    assert set(OPTIONS) == set(ALGORITHMS), "give the new row the options that it is tested with"
    labels = {
        name: {make_algorithm(name, o, max_completion_length=16).loss.label for o in OPTIONS[name]} for name in OPTIONS
    }
    assert len(labels["grpo"]) == len(OPTIONS["grpo"])  # options really reach the row
