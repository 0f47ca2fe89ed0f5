"""The suite passes every row of our table, and finds the field's commonest mistakes in trainers made to have them."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from maieutic.algorithms import ALGORITHMS, make_algorithm
from maieutic.conformance import CHECKS, Claims, TableModel, examine, gradient_of, of, ragged, rows_of
from maieutic.core.kl import k1, k2
from maieutic.errors import UnknownName

#: Row → the options it is examined with, and what it then claims. Scales are for groups of three rows of two tokens.
CLAIMS = {
    "sft": [({}, Claims(rewards="none"))],
    "rejection_sampling": [({}, Claims(rewards="none"))],
    "star": [({}, Claims(rewards="none"))],
    "rest_em": [({}, Claims(rewards="none"))],
    "expert_iteration": [({}, Claims(rewards="none"))],
    "rcrl": [({}, Claims(rewards="none"))],
    "reinforce": [({}, Claims())],
    "reinforce_plus_plus": [({"beta": 0.0}, Claims(clip=(0.2, 0.2)))],
    "reinforce_plus_plus_baseline": [({"beta": 0.0}, Claims(clip=(0.2, 0.2)))],
    "trpo": [({}, Claims(scale=1 / 3))],  # (G − 1)/G of a mean over two tokens a row
    "lite_ppo": [({}, Claims(clip=(0.2, 0.2)))],
    "gdpo": [({}, Claims(clip=(0.2, 0.2)))],
    "gspo_token": [({}, Claims())],
    "sapo": [({}, Claims())],
    "rloo": [({}, Claims(scale=1.0)), ({"beta": 0.3}, Claims(scale=1.0, kl="reverse", beta=0.3))],
    "ppo": [
        ({"beta": 0.0, "lam": 1.0}, Claims(clip=(0.2, 0.2))),
        ({"beta": 0.0, "lam": 1.0, "epsilon": 0.1, "value_coefficient": 0.0}, Claims(clip=(0.1, 0.1))),
    ],
    "grpo": [
        ({}, Claims(clip=(0.2, 0.2))),
        ({"epsilon_high": 0.3}, Claims(clip=(0.2, 0.3))),
        ({"beta": 0.3}, Claims(clip=(0.2, 0.2), kl="forward", beta=0.3)),
        ({"beta": 0.3, "kl": k2}, Claims(clip=(0.2, 0.2), kl="reverse", beta=0.3)),
        ({"beta": 0.3, "kl": k1}, Claims(kl="nothing", beta=0.3)),
    ],
    "dr_grpo": [({}, Claims(scale=2 / 3 / 16, clip=(0.2, 0.2)))],  # (G − 1)/G of a sum divided by 16
    "dapo": [({}, Claims(clip=(0.2, 0.28)))],
    "gspo": [({}, Claims())],
    "cispo": [({}, Claims())],
    "distil": [({}, Claims(rewards="none"))],
    "gkd": [({}, Claims(rewards="none")), ({"beta": 1.0}, Claims(rewards="none"))],
    "on_policy_distillation": [({}, Claims(rewards="none"))],
    **{name: [({}, Claims(rewards="pairs"))] for name in ("orpo", "dpo", "ipo", "simpo", "rpo")},
}  # fmt: skip
CASES = [
    pytest.param(name, options, claims, id=name + "".join(f"-{o}" for o in options))
    for name, cases in CLAIMS.items()
    for options, claims in cases
]


def new_critic(model, batch):
    """What a critic says that has learned nothing: 0 of every state. The whitened mean is then the baseline."""
    return {"old_values": torch.zeros_like(batch.token_rewards), "final_values": torch.zeros_like(batch.rewards)}


def teacher(_model, batch):
    """What another table says of the chosen tokens, and its two likeliest candidates for each."""
    said = torch.log_softmax(TableModel(seed=7)(batch.tokens).logits.detach() / batch.temperature, -1)
    whole = torch.nn.functional.pad(said[:, :-1], (0, 0, 1, 0))
    found, ids = whole.topk(2)
    chosen = whole.gather(-1, batch.tokens[..., None])[..., 0]
    return {
        "teacher_logprobs": torch.where(batch.mask, chosen, 0.0),
        "teacher_top_ids": ids * batch.mask[..., None],
        "teacher_top_logprobs": found * batch.mask[..., None],
    }


def one_part(_model, batch):
    """The reward as its own only part."""
    return {"reward_parts": batch.rewards[:, None], "part_names": ("answer",)}


#: What fills columns that rows alone cannot: one of the columns → the function.
FILLS = {
    "old_values": new_critic, "teacher_top_ids": teacher, "teacher_logprobs": teacher, "reward_parts": one_part,
}  # fmt: skip


@pytest.mark.parametrize(("name", "options", "claims"), CASES)
def test_a_row_computes_what_it_claims(name, options, claims):
    algorithm = make_algorithm(name, options, max_completion_length=16)
    fills = [FILLS[column] for column in sorted(FILLS.keys() & algorithm.needs)][:1]
    report = examine(of(algorithm, *fills), claims)
    assert report.passed, str(report)


def test_every_row_of_the_table_is_examined():
    assert set(CLAIMS) == set(ALGORITHMS), "say what the new row claims"


@dataclass
class Plain:
    """Policy gradient with the group's mean as baseline, written out; the switches are mistakes."""

    per_micro_batch: bool = False
    padded_width: bool = False
    by_place: bool = False
    unmasked_sum: bool = False
    learns_prompt: bool = False
    forgets_stop: bool = False
    divides_noise: bool = False
    anchors_to_reference: bool = False
    kl: object = None

    def backward(self, model, rows, micro_batches):
        mask = rows.mask.clone()
        if self.learns_prompt:
            mask[:, 1:] |= (torch.arange(mask.shape[1]) < rows.lengths[:, None])[:, 1:]
        if self.forgets_stop:
            mask[torch.arange(len(mask)), rows.lengths - 1] = False
        tokens = float(mask.numel() if self.padded_width else mask.sum())
        total = 0.0
        advantages = self.advantages(rows)
        for part in torch.arange(len(mask)).tensor_split(micro_batches):
            mine = mask[part]
            logprobs = model.logprobs(rows.tokens[part], rows.temperature)
            anchor = rows.ref_logprobs[part] if self.anchors_to_reference else rows.old_logprobs[part]
            ratio = torch.exp(torch.where(mine, logprobs - anchor, 0.0))
            a = advantages[part][:, None]
            loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a)
            if self.kl is not None:
                loss = loss + 0.3 * self.kl(logprobs, rows.ref_logprobs[part])
            if not self.unmasked_sum:
                loss = torch.where(mine, loss, 0.0)
            value = loss.sum() / (mine.sum() if self.per_micro_batch else tokens)
            (value / micro_batches if self.per_micro_batch else value).backward()
            total += float(value.detach())
        return total

    def advantages(self, rows):
        groups = torch.arange(len(rows.rewards)) // 3 if self.by_place else rows.groups
        out = torch.zeros_like(rows.rewards)
        for group in groups.unique():
            own = rows.rewards[groups == group]
            centred = own - own.sum() / len(own)
            if self.divides_noise:
                centred = (own - own.mean() + 1e-9 * torch.arange(len(own))) / (own.std() + 1e-12)
            elif own.min() == own.max():
                centred = torch.zeros_like(own)
            out[groups == group] = centred
        return out


def claims(**more):
    return Claims(clip=(0.2, 0.2), **more)


def test_a_trainer_written_out_by_hand_passes():
    assert examine(Plain(), claims()).passed, str(examine(Plain(), claims()))


@pytest.mark.parametrize(
    ("mistake", "found_by"),
    [
        ({"per_micro_batch": True}, {"micro_batches"}),
        ({"padded_width": True}, {"padding"}),
        ({"by_place": True}, {"order"}),
        ({"unmasked_sum": True, "kl": k2}, {"unchosen_tokens"}),
        ({"learns_prompt": True}, {"prompt"}),
        ({"forgets_stop": True}, {"stop_token"}),
        ({"divides_noise": True}, {"equal_rewards"}),
        ({"anchors_to_reference": True}, {"clipping"}),
    ],
    ids=lambda given: " ".join(sorted(given)),
)
def test_a_mistake_is_found(mistake, found_by):
    failures = examine(Plain(**mistake), claims()).failures
    assert found_by <= failures.keys(), failures


def test_a_kl_that_pulls_elsewhere_is_found():
    def reported(kl, said):
        return "kl_direction" in examine(Plain(kl=kl), claims(kl=said, beta=0.3)).failures

    assert not reported(k2, "reverse")
    assert reported(k2, "forward")
    assert reported(k1, "reverse")
    assert not reported(k1, "nothing")


def test_a_wrong_scale_is_found():
    # token mean over two tokens a row: (G − 1)/G / 2 = 1/3 of −∇E[r]
    assert examine(Plain(), Claims(scale=1 / 3)).passed
    failures = examine(Plain(), Claims(scale=1.0)).failures
    assert failures.keys() == {"expected_gradient"}
    assert "got 0.333333, expected 1.000000" in failures["expected_gradient"]


def test_the_report_reads_as_a_list():
    text = str(examine(Plain(learns_prompt=True), claims()))
    assert "padding" in text
    assert "passed" in text
    assert "tokens of the prompt: got a gradient, expected none" in text


def test_a_kind_that_does_not_exist():
    with pytest.raises(UnknownName, match="rows"):
        examine(Plain(), Claims(rewards="row"))


def test_rows_keep_pairs_when_taken_in_another_order():
    model = TableModel()
    rows = rows_of(model, [[1]] * 4, [[2], [3], [1], [2]], [0.0, 1.0, 1.0, 0.5], [0, 0, 1, 1])
    assert rows.pairs.tolist() == [[1, 0], [2, 3]]
    assert rows.take(torch.tensor([3, 1, 2, 0])).pairs.tolist() == [[1, 3], [2, 0]]
    assert rows.take(torch.tensor([0, 2, 3])).pairs.tolist() == [[1, 2]]


def test_rows_are_on_policy_and_ragged_ones_are_not():
    model = TableModel()
    rows = rows_of(model, [[1]], [[2, 3]], [1.0], [0])
    assert torch.equal(rows.old_logprobs, rows.ref_logprobs)
    assert (ragged(model).old_logprobs != ragged(model).ref_logprobs)[ragged(model).mask].all()
    assert gradient_of(Plain(), model, ragged(model)).abs().sum() > 0


def test_the_page_of_the_documentation_runs():
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.count("passed") == len(CHECKS["rows"])
    assert not [name for kind in CHECKS.values() for name in kind if f"`{name}`" not in page]
