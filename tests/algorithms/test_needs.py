"""`needs` is what a part reads: no column more, none less. Columns that record who asks for them say so."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from maieutic.algorithms import ALGORITHMS, make_algorithm
from maieutic.backends.toy import ToyChat, ToyCritic, ToyLearner, ToyModel
from maieutic.core import (
    adaptive,
    conditioned,
    corrections,
    credit,
    critic,
    distillation,
    losses,
    pairs,
    preference,
    select,
    self_training,
    weights,
)
from maieutic.core.kl import corrected_k2, corrected_k3, k2
from maieutic.core.parts import Credit, Loss, Select
from maieutic.errors import MissingColumn
from maieutic.pack import pack
from maieutic.types import PROVIDERS, SHAPES, Batch, Finish, Group, Outputs, Rollout, Score, Task


class Columns(dict):
    """Columns that note the names by which they are read, but for those that a part has filled itself."""

    def __init__(self, columns, read=None, filled=frozenset()):
        super().__init__(columns)
        self.read = set() if read is None else read
        self.filled = filled

    def __getitem__(self, name):
        if name not in self.filled:
            self.read.add(name)
        return super().__getitem__(name)


class Watched(Batch):
    """A batch that goes on noting when a part of a chain has filled something."""

    __slots__ = ()

    def with_(self, **columns):
        made = super().with_(**columns)
        return replace(made, columns=Columns(made.columns, self.columns.read, self.columns.filled | columns.keys()))


def make_groups():
    """Two groups of two rows, (2, 3, stop) and (4, stop) after the prompt (5,)."""
    bodies = [(2, 3, 0), (4, 0)]
    made = []
    for number, rewards in enumerate([(1.0, 0.0), (0.0, 0.5)]):
        rollouts = [
            Rollout("t", (5, *b), (False, *[True] * len(b)), (0.0, *[-1.0] * len(b)), Finish.STOP) for b in bodies
        ]
        scores = tuple(Score(r, parts={"answer": r, "format": 1.0}) for r in rewards)
        made.append(Group(Task("t", ()), tuple(rollouts), scores, id=number))
    return made


#: Letters of `types.SHAPES` → sizes; the others are the batch's.
SIZES = {"F": 1, "P": 1, "R": 2, "K": 3}


def filled(name, batch):
    """Random numbers in the column's shape; row numbers for pairs, ids for the teacher's candidates."""
    sizes = {**SIZES, "B": batch.size, "T": batch.tokens.shape[1]}
    shape = [sizes.get(part.strip()) or int(part) for part in SHAPES.get(name, "[B, T]").strip("[]").split(",")]
    if name == "pairs":
        return torch.tensor([[0, 1]])
    return torch.randint(5, shape) if name == "teacher_top_ids" else -torch.rand(shape)


#: Given by some teachers beside what is asked of them: nobody needs it (`test_aligned_teacher` has what it changes).
BESIDE = {"teacher_spans"}


def watched():
    """A batch in which every column of `PROVIDERS` is filled, and its columns, which note what is read."""
    batch = pack(select.everything()(make_groups()))
    columns = Columns({name: filled(name, batch) for name in PROVIDERS if name not in BESIDE})
    return Watched(**{f.name: getattr(batch, f.name) for f in fields(batch)} | {"columns": columns}), columns


#: The words of the tokens below, and those that parts write which write tokens.
CHAT = ToyChat(["a", "b", "c", "d", "e", "\n", "[GOOD]", "[BAD]"])

#: Where the library's parts are.
MODULES = (
    adaptive, conditioned, credit, critic, distillation, losses, pairs, preference, select, self_training, weights,
)  # fmt: skip

#: Every part of the library, once. A factory that is missing here fails the test of completeness.
PARTS = [
    credit.uniform(), credit.group_centered(), credit.group_normalized(), credit.leave_one_out(),
    credit.discounted(0.9), credit.whitened(), credit.kl_in_reward(0.1), credit.none(), credit.batch_scaled(),
    credit.batch_normalized(), credit.parts_normalized(),
    critic.gae(), critic.gae(bootstrap=False), critic.whitened_rewards(), adaptive.adaptive_kl_in_reward(),
    critic.value_loss(), critic.value_loss(None), critic.entropy_bonus(),
    losses.nll(), losses.policy_gradient(), losses.clipped_surrogate(), losses.clipped_sequence_ratio(),
    losses.clipped_weight(), losses.kl_to_reference(), losses.kl_to_reference(corrected_k2),
    losses.kl_to_reference(corrected_k3), losses.clipped_surrogate(anchor="ref"), losses.clipped_sequence_token_ratio(),
    losses.soft_gate(), losses.surrogate(),
    preference.dpo(), preference.ipo(), preference.simpo(), preference.odds_ratio(), preference.chosen_nll(),
    weights.token_mean(), weights.sequence_mean(), weights.sequence_sum(), weights.constant_length(8),
    weights.pair_mean(), pairs.pairs(), pairs.best_vs_worst(), pairs.given_pairs(),
    select.demonstrations(), select.everything(), select.informative(), select.mixed(), self_training.correct_only(),
    distillation.forward_kl(), distillation.reverse_kl(), distillation.jensen_shannon(), distillation.kl_to_teacher(),
    distillation.watch_teacher(), distillation.reverse_kl_advantage(), distillation.reverse_kl_advantage(added=True),
    distillation.teacher_in_reward(),
    conditioned.conditioned_on_reward().bind(CHAT),
]  # fmt: skip
#: Every correction, around some loss.
CORRECTED = [
    corrections.corrected(losses.policy_gradient(), corrections.truncated()),
    corrections.corrected(losses.policy_gradient(), corrections.masked(level=corrections.sequence)),
    corrections.corrected(losses.clipped_weight(), corrections.filtered()),
    corrections.corrected(losses.nll(), corrections.off_policy_sequence_mask()),
]

OPTIONS = [
    *[(name, {}) for name in ALGORITHMS],
    ("rloo", {"beta": 0.1}), ("grpo", {"beta": 0.1}), ("grpo", {"beta": 0.1, "kl": k2}),
    ("grpo", {"ratio_anchor": "ref"}), ("rloo", {"correction": "token_mask"}),
]  # fmt: skip
ROWS = [make_algorithm(name, options, max_completion_length=8).bind(CHAT) for name, options in OPTIONS]
OF_ROWS = [
    pytest.param(part, id=f"{row.name}: {part.label}")
    for row in ROWS
    for part in (row.select, row.credit, row.loss, row.weigh)
]


def read_by(part):
    """The columns that a part asks the batch for."""
    batch, columns = watched()
    if isinstance(part, Select):
        part(make_groups())
    elif isinstance(part, Loss):
        now = -torch.rand(batch.mask.shape, requires_grad=True)
        top = -torch.rand(*batch.mask.shape, SIZES["K"], requires_grad=True)
        part(Outputs(now, entropy=-now, values=now, top_logprobs=top), batch)
    else:
        part(batch)
    return columns.read


@pytest.mark.parametrize("part", [*OF_ROWS, *[pytest.param(p, id=p.label) for p in PARTS + CORRECTED]])
def test_a_part_reads_exactly_what_it_needs(part):
    assert read_by(part) == part.needs


def test_the_recording_notices_what_was_not_declared():
    def greedy(batch):
        return batch.with_(advantages=batch.ref_logprobs * batch.old_logprobs)

    part = Credit("greedy()", greedy, frozenset({"ref_logprobs"}))
    assert read_by(part) == {"ref_logprobs", "old_logprobs"} != part.needs


def test_every_part_of_the_library_is_listed():
    made = {part.label.split("(")[0] for part in PARTS}
    factories = {
        name
        for module in MODULES
        for name, value in vars(module).items()
        if hasattr(value, "__wrapped__") and value.__module__ == module.__name__
    }
    assert made == factories
    of_corrections = {name for name, value in vars(corrections).items() if hasattr(value, "__wrapped__")}
    assert {name for name in of_corrections if any(f", {name}(" in part.label for part in CORRECTED)} == of_corrections


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name}: {row.loss.label}; {row.credit.label}")
def test_a_row_runs_on_what_it_asks_for_and_not_on_less(row):
    """`asks` are the columns that models must fill: with them an update works, without any one it says so."""
    examples = row.select(make_groups())
    model = ToyModel(len(CHAT.words), 4)
    learner = ToyLearner(model, critic=ToyCritic(model) if "values" in row.requires else None)
    batch = pack(examples)
    given = batch.with_(**{name: filled(name, batch) for name in row.asks})
    metrics = row.update(learner, row.credit(given), row)
    assert learner.version == 1 if row.update.steps == 1 else learner.version > 0
    assert torch.isfinite(torch.tensor(list(metrics.values()))).all()
    for missing in row.asks:
        less = batch.with_(**{name: filled(name, batch) for name in row.asks - {missing}})
        with pytest.raises(MissingColumn, match=missing):
            row.update(learner, row.credit(less), row)


#: What rows with their defaults need, and what of it they ask models for.
NOTHING, ADVANTAGES, RATIO = (set(), set()), ({"advantages"}, set()), ({"advantages", "old_logprobs"}, set())
CRITIC = {"old_logprobs", "ref_logprobs", "old_values", "final_values"}
PAIRS, PAIRS_AND_REFERENCE = ({"pairs"}, set()), ({"pairs", "ref_logprobs"}, {"ref_logprobs"})
CANDIDATES = {"teacher_top_ids", "teacher_top_logprobs"}
EXPECTED = {
    **dict.fromkeys(("sft", "rejection_sampling", "star", "rest_em", "expert_iteration", "rcrl"), NOTHING),
    **dict.fromkeys(("reinforce", "rloo"), ADVANTAGES),
    # one step, so the old policy is the present one
    **dict.fromkeys(("grpo", "dr_grpo", "dapo", "lite_ppo", "gspo", "gspo_token", "cispo", "sapo"), RATIO),
    "gdpo": ({"advantages", "old_logprobs", "reward_parts"}, set()),
    "reinforce_plus_plus": ({"advantages", "old_logprobs", "ref_logprobs"}, {"old_logprobs", "ref_logprobs"}),
    "reinforce_plus_plus_baseline": ({"advantages", "old_logprobs", "ref_logprobs"}, {"ref_logprobs"}),
    "ppo": ({"advantages", "returns", *CRITIC}, CRITIC),
    "trpo": ({"advantages", "old_logprobs"}, {"old_logprobs"}),  # its line search leaves the old policy
    **dict.fromkeys(("orpo", "simpo"), PAIRS),
    **dict.fromkeys(("dpo", "ipo", "rpo"), PAIRS_AND_REFERENCE),
    **dict.fromkeys(("distil", "gkd"), (CANDIDATES, CANDIDATES)),
    "on_policy_distillation": (
        {"advantages", "old_logprobs", "teacher_logprobs"},
        {"old_logprobs", "teacher_logprobs"},
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_a_row_needs_and_asks_models_for(name):
    row = make_algorithm(name, {}, max_completion_length=8)
    assert (row.needs, row.asks) == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "options", "needs", "asks"),
    [
        # a KL in the reward is reckoned before the update: the old policy needs a pass of its own
        ("rloo", {"beta": 0.1}, {"advantages", "old_logprobs", "ref_logprobs"}, {"old_logprobs", "ref_logprobs"}),
        ("grpo", {"beta": 0.1}, {"advantages", "old_logprobs", "ref_logprobs"}, {"ref_logprobs"}),
        ("grpo", {"beta": 0.1, "kl": k2}, {"advantages", "old_logprobs", "ref_logprobs"}, {"ref_logprobs"}),
        # as in the course: no ratio to the old policy
        ("grpo", {"ratio_anchor": "ref"}, {"advantages", "ref_logprobs"}, {"ref_logprobs"}),
        ("rloo", {"correction": "token_truncate"}, {"advantages", "old_logprobs"}, set()),
    ],
)
def test_what_options_need(name, options, needs, asks):
    row = make_algorithm(name, options)
    assert (row.needs, row.asks) == (needs, asks)


@pytest.mark.parametrize("options", [{"epochs": 2}, {"minibatches": 2}])
@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo"])
def test_more_than_one_optimiser_step_asks_for_the_old_policy(name, options):
    assert make_algorithm(name, options, max_completion_length=8).asks == {"old_logprobs"}
