"""Reward modelling: a model's values are trained to say which completions, or which of their steps, are right.

    prompt  t₁ t₂ ▏ t₃ t₄ ▏ ·        s(y≤t), the score of a prefix, is the value of the state in which the next token
                s(y≤2)      s(y≤4)   would be chosen; so a row ends in a place that is asked and never read: ·

    model      loss                        a label                           citation
    ------------------------------------------------------------------------------------------------------------------
    pairs      −log σ(s_c − s_r − m)       one completion is preferred       Bradley–Terry; arXiv 2203.02155, eq. 1
    outcome    BCE(s, z)                   z: is the whole correct?          arXiv 2110.14168 (Cobbe et al.)
    process    BCE(s_k, z_k) at step ends  z_k: right so far? hard or soft   arXiv 2305.20050, arXiv 2312.08935

These are algorithms as those that train a policy are, made of the same parts and run by the same loop. What they read
is a critic's values (`outputs.values`), and labels where rewards of steps stand (`batch.step_rewards`: NaN where none
is, which is not the same as 0).

Letters: `B` rows, `T` tokens, `P` pairs, `K` steps of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from maieutic.core.parts import Algorithm, Credit, Loss, compares, loss, needs, requires, select, shown, weigh
from maieutic.core.update import sgd
from maieutic.core.weights import pair_mean, sequence_mean
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.steps import prompt_end
from maieutic.types import CHOSEN, REJECTED, Batch, Example, Group, Outputs, Rollout

Terms = tuple[Tensor, Mapping[str, Tensor]]
#: (column, label) of a row: the score of the tokens before the column is to be that.
Labelled = tuple[tuple[int, float], ...]


@loss
def bradley_terry(margins: float = 0.0, centre: float = 0.0) -> Callable[[Outputs, Batch], Terms]:
    """L = −log σ(s_c − s_r − m) + c (s_c + s_r)², on every chosen token of the chosen row; m = margins · (r_c − r_r).

    Bradley–Terry as in arXiv 2203.02155, eq. 1; the margin of a pair by how much one side is better is that of
    arXiv 2307.09288, §3.2.2, where the rewards of a pair's sides say it. Weigh by `pair_mean`. ∂L/∂s_c = −σ(−(s_c − s_r
    − m)) without the second term, and a constant added to all scores changes nothing: they can be compared within a
    prompt only. `centre` c (0.01 where it is used) holds the sum of both sides near 0 (arXiv 2312.09244, TRL's
    `center_rewards_coefficient`). Raises ValueError for a coefficient below 0.

    Watches, a pair: `pairs/accuracy` (share with s_c > s_r), `pairs/margin` (s_c − s_r).
    """
    if margins < 0 or centre < 0:
        raise ValueError(f"bradley_terry: got margins={margins}, centre={centre}; expected 0 or more")

    @requires("values")
    @needs("pairs")
    def preference(outputs: Outputs, batch: Batch) -> Terms:
        scores = final_scores(outputs, batch)
        chosen, rejected = scores[batch.pairs[:, 0]], scores[batch.pairs[:, 1]]
        apart = batch.rewards[batch.pairs[:, 0]] - batch.rewards[batch.pairs[:, 1]]
        difference = chosen - rejected
        value = -logsigmoid(difference - margins * apart.to(difference))
        if centre:
            value = value + centre * (chosen + rejected) ** 2
        rows = value.new_zeros(batch.size).index_add(0, batch.pairs[:, 0], value)
        seen = difference.detach()
        return rows[:, None] * batch.mask, {"pairs/accuracy": (seen > 0).to(seen), "pairs/margin": seen}

    return preference


@loss
def outcome_bce() -> Callable[[Outputs, Batch], Terms]:
    """L = mean over a row's labels of −z log σ(s) − (1 − z) log σ(−s), on every chosen token of the row.

    Weigh by `sequence_mean`: each completion then counts once, however often it is labelled (arXiv 2110.14168 labels
    every token), and a likelihood may be added (`solution_nll`). Labels z are in [0, 1].

    Watches `judge/accuracy` (share of labels on whose side of ½ the score is) and `judge/score` (σ(s)), row means.
    """

    @requires("values")
    @needs("step_rewards")
    def cross_entropy(outputs: Outputs, batch: Batch) -> Terms:
        value, labelled, seen = _label_terms(outputs, batch)
        return _row_means(value, labelled)[:, None] * batch.mask, seen

    return cross_entropy


@loss
def step_bce() -> Callable[[Outputs, Batch], Terms]:
    """Lₖ = −z log σ(s) − (1 − z) log σ(−s) where step k ends, 0 elsewhere; weigh by `label_mean`.

    Hard labels: arXiv 2305.20050; soft ones, the share of continuations that were right: arXiv 2312.08935.
    Watches as `outcome_bce`.
    """

    @requires("values")
    @needs("step_rewards")
    def cross_entropy(outputs: Outputs, batch: Batch) -> Terms:
        value, _, seen = _label_terms(outputs, batch)
        return value, seen

    return cross_entropy


@loss
def solution_nll() -> Callable[[Outputs, Batch], Tensor]:
    """Lₜ = −log π(aₜ) of what was written: 0 where a row's last place is asked and nothing stands.

    The language-model objective beside a verifier's own (arXiv 2110.14168, §4), over right and wrong completions alike.
    """

    def likelihood(outputs: Outputs, batch: Batch) -> Tensor:
        written = batch.mask.clone()
        written[torch.arange(batch.size, device=written.device), _last(batch)] = False
        return -outputs.logprobs * written

    return likelihood


@weigh
def label_mean() -> Callable[[Batch], Tensor]:
    """wᵢₜ = 1 / labels of the batch where there is one: every labelled step the same (TRL's cross-entropy of steps)."""

    @needs("step_rewards")
    def weights(batch: Batch) -> Tensor:
        labelled = (~batch.step_rewards.isnan() & batch.mask).to(batch.sampler_logprobs.dtype)
        return labelled / labelled.sum().clamp(min=1)

    return weights


@select
def judged_outcomes(at: str = "end") -> Callable[[Sequence[Group]], list[Example]]:
    """Every completion that has a reward, which is its label, z ∈ [0, 1].

    `at`: where the label stands; "end" (the whole), "steps" (each step's end; where a score tells the ends of steps) or
    "tokens" (every prefix of at least one token: its score becomes P(correct | prefix), arXiv 2110.14168). Raises
    UnknownName for another word, DataError for a reward outside [0, 1].
    """
    if at not in PLACES:
        raise UnknownName("place of a label", at, PLACES)
    place = PLACES[at]

    @shown
    def judged(groups: Sequence[Group]) -> list[Example]:
        rows: list[Example] = []
        for group in groups:
            for rollout, score in zip(group.rollouts, group.scores):
                if score.reward is not None and any(rollout.mask):
                    columns = place(rollout, score.step_rewards)
                    rows.append(_row(rollout, group.id, tuple((column, score.reward) for column in columns), len(rows)))
        return rows

    return judged


@select
def judged_steps(hard: bool = False) -> Callable[[Sequence[Group]], list[Example]]:
    """Every completion of which steps are labelled: a score's step rewards are the labels, at the steps' last tokens.

    `hard`: z = 1 where the label is above 0 (Math-Shepherd's hard estimate of soft labels, arXiv 2312.08935).
    """

    @shown
    def judged(groups: Sequence[Group]) -> list[Example]:
        rows: list[Example] = []
        for group in groups:
            for rollout, score in zip(group.rollouts, group.scores):
                if score.reward is not None and score.step_rewards:
                    labels = [(at + 1, float(z > 0) if hard else z) for at, z in score.step_rewards]
                    rows.append(_row(rollout, group.id, tuple(labels), len(rows)))
        return rows

    return judged


@select
def judged_pairs() -> Callable[[Sequence[Group]], list[Example]]:
    """Groups of two, the chosen completion first; their rewards say by how much it is better. Pairs of which a side has
    no reward (it was too long) are left out. Raises DataError for a group that is not of two."""

    @shown
    @compares(2)
    def judged(groups: Sequence[Group]) -> list[Example]:
        rows: list[Example] = []
        for group in groups:
            if len(group.rollouts) != 2:
                raise DataError(f"task {group.task.id!r}: got {len(group.rollouts)} completions; expected a pair")
            if all(score.reward is not None for score in group.scores):
                for rollout, score, role in zip(group.rollouts, group.scores, (CHOSEN, REJECTED)):
                    row = _row(rollout, group.id, (), len(rows) // 2)
                    rows.append(replace(row, reward=score.reward or 0.0, role=role))
        return rows

    return judged


#: Where the label of a whole completion stands: (rollout, ends of its steps) → columns.
PLACES: Mapping[str, Callable[[Rollout, Labelled], Sequence[int]]] = {
    "end": lambda rollout, _: [len(rollout.tokens)],
    "steps": lambda rollout, ends: [at + 1 for at, _ in ends] or [len(rollout.tokens)],
    "tokens": lambda rollout, _: range(prompt_end(rollout) + 1, len(rollout.tokens) + 1),
}


def as_labels() -> Credit:
    """No credit: rewards of steps are labels, which the loss reads."""

    def give(batch: Batch) -> Batch:
        return batch

    give.spends_steps = True  # type: ignore[attr-defined]
    return Credit("labels", give)


def outcome_model(at: str = "end", lm: float = 0.0, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """P(correct) of whole completions (arXiv 2110.14168), with `lm` of their likelihood beside it."""
    value: Loss = outcome_bce() + lm * solution_nll()
    return Algorithm(
        "outcome_model", judged_outcomes(at), as_labels(), value, sequence_mean(), sgd(epochs, minibatches)
    )


def process_model(hard: bool = False, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """P(right so far) at the ends of steps (arXiv 2305.20050; soft labels: arXiv 2312.08935)."""
    return Algorithm(
        "process_model", judged_steps(hard), as_labels(), step_bce(), label_mean(), sgd(epochs, minibatches)
    )


def pair_model(margins: float = 0.0, centre: float = 0.0, epochs: int = 1, minibatches: int = 1) -> Algorithm:
    """Scores whose differences are log-odds of preferences (arXiv 2203.02155)."""
    value = bradley_terry(margins, centre)
    return Algorithm("pair_model", judged_pairs(), as_labels(), value, pair_mean(), sgd(epochs, minibatches))


#: Kind of reward model → the algorithm that trains it.
REWARD_MODELS: Mapping[str, Callable[..., Algorithm]] = {
    "outcome": outcome_model,
    "process": process_model,
    "pairs": pair_model,
}


def final_scores(outputs: Outputs, batch: Batch) -> Tensor:
    """`[B]`: the score of each whole row, the value at its last place. Raises ConfigError without values."""
    return _values(outputs).gather(1, _last(batch)[:, None])[:, 0]


def _values(outputs: Outputs) -> Tensor:
    if outputs.values is None:
        raise ConfigError("a reward model learns by its values: got outputs without any; give the learner a critic")
    return outputs.values


def _last(batch: Batch) -> Tensor:
    """`[B]`: the last place of each row that is asked."""
    return batch.mask.shape[1] - 1 - batch.mask.flip(1).to(torch.int8).argmax(1)


def _label_terms(outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Cross-entropies `[B, T]`, 0 where nothing is labelled; where something is; and what to watch."""
    scores = _values(outputs)
    labelled = ~batch.step_rewards.isnan() & batch.mask
    labels = torch.where(labelled, batch.step_rewards, 0.0).to(scores)
    value = torch.where(labelled, binary_cross_entropy_with_logits(scores, labels, reduction="none"), 0.0)
    said = scores.detach()
    right = ((said > 0) == (labels > 0.5)).to(said)
    watched = {"judge/accuracy": right, "judge/score": said.sigmoid()}
    seen = {name: _row_means(each, labelled)[:, None].expand_as(said) for name, each in watched.items()}
    return value, labelled, seen


def _row_means(of_token: Tensor, counted: Tensor) -> Tensor:
    """`[B]`: the mean over the counted tokens of each row, 0 for a row without any."""
    return torch.where(counted, of_token, 0.0).sum(1) / counted.sum(1).clamp(min=1)


def _row(rollout: Rollout, group: int, labels: Labelled, unit: int) -> Example:
    """A training row: the rollout and one place more, which is asked and never read, with these labels.

    Every token after the prompt counts as chosen, so that siblings share their prompt whatever is labelled.
    """
    for _, label in labels:
        if not 0.0 <= label <= 1.0:
            raise DataError(
                f"task {rollout.task_id!r}: got the label {label}; expected one from 0 (wrong) to 1 (right)"
            )
    start = prompt_end(rollout)
    tokens = (*rollout.tokens, rollout.tokens[-1])
    mask = (False,) * start + (True,) * (len(tokens) - start)
    made = replace(rollout, tokens=tokens, mask=mask, logprobs=(0.0,) * len(tokens), spans=())
    return Example(made, 0.0, group, unit, step_rewards=labels)
