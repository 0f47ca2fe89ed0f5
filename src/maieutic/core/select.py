"""Select: from groups to training rows.

An unscorable rollout (reward None) and a rollout in which the model chose nothing never become rows. Every row is a
`unit` of its own: their advantages are given before a batch is split, so nothing ties siblings together any more (a
learner still keeps them side by side where they fit, to compute their prompt once).

Letters: `G` siblings of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from maieutic.core.parts import Select, select, shown
from maieutic.types import Example, Finish, Group


def _rows(group: Group, skip_truncated: bool) -> list[Example]:
    if group.hinted:
        return []  # another prompt's rollouts: neither their rewards nor their log-probs are the policy's
    return [
        Example(rollout, score.reward, group.id, 0, "sample", score.step_rewards, score.parts, score.forfeits)
        for rollout, score in zip(group.rollouts, group.scores)
        if score.reward is not None and any(rollout.mask) and not (skip_truncated and rollout.finish is Finish.LENGTH)
    ]


def _single(rows: Iterable[Example]) -> list[Example]:
    """The rows, each a unit of its own."""
    return [replace(row, unit=number) for number, row in enumerate(rows)]


@select
def demonstrations() -> Callable[[Sequence[Group]], list[Example]]:
    """Every demonstration: what was shown, and is not judged."""

    @shown
    def select_shown(groups: Sequence[Group]) -> list[Example]:
        return _single(row for group in groups for row in _rows(group, skip_truncated=False))

    return select_shown


@select
def everything(skip_truncated: bool = False) -> Callable[[Sequence[Group]], list[Example]]:
    """Every scorable rollout. `skip_truncated` leaves out those that the length limit cut (they still count in the
    log): a cut answer is not a wrong one, but a policy that is never blamed for length may drift to it."""
    return lambda groups: _single(row for group in groups for row in _rows(group, skip_truncated))


@select
def mixed(share: float = 0.5) -> Callable[[Sequence[Group]], list[Example]]:
    """Every scorable rollout, of steps of which a `share` is sampled by the policy and the rest shown to it.

    For losses that ask neither who wrote a row nor how good it is (GKD's λ, arXiv 2306.13649). 1: all sampled; 0: all
    shown. The source decides step by step (`maieutic.sources.Mixed`). Raises ValueError for a share outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"mixed: got share={share}; expected 0 (all shown) to 1 (all sampled)")

    def select_both(groups: Sequence[Group]) -> list[Example]:
        return _single(row for group in groups for row in _rows(group, skip_truncated=False))

    select_both.sampled = share  # type: ignore[attr-defined]
    return select_both if share else shown(select_both)


def sampled_share(chosen: Select) -> float:
    """The share of steps whose rows the policy is to sample: 1 for most algorithms, 0 where all are shown to it."""
    return getattr(chosen.function, "sampled", 0.0 if chosen.shown else 1.0)


@select
def informative(skip_truncated: bool = False) -> Callable[[Sequence[Group]], list[Example]]:
    """Every scorable rollout of the groups whose rewards differ (DAPO's dynamic sampling, arXiv 2503.14476, eq. 11).

    A uniform group has advantage 0 everywhere: it moves nothing but the denominators. Only the rows that would be
    selected are compared, so a rollout that `skip_truncated` leaves out does not make its group differ.
    """

    def keeps(group: Group) -> bool:
        return len({row.reward for row in _rows(group, skip_truncated)}) > 1

    def select_informative(groups: Sequence[Group]) -> list[Example]:
        return _single(row for group in groups if keeps(group) for row in _rows(group, skip_truncated))

    select_informative.keeps = keeps  # type: ignore[attr-defined]
    return select_informative
