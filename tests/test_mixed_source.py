"""Steps of two sources by turns: which is drawn, how groups are numbered, going on after a stop, and for whom it is."""

from __future__ import annotations

import pytest

from maieutic.algorithms import gkd, grpo, sft
from maieutic.annotate import check, fillers
from maieutic.backends.toy import ToyChat, ToySampler, ToyScorer, ToySums, toy_policy
from maieutic.core import select
from maieutic.errors import ConfigError
from maieutic.rollout import Roller
from maieutic.sources import Mixed, Recorded, Sampled
from maieutic.types import Score

TASKS = ToySums(limit=3)
CHAT = ToyChat(TASKS.vocabulary)


async def nothing(_task, rollouts):
    return [Score(0.0) for _ in rollouts]


def mixed(share=0.5, seed=3):
    sampler = ToySampler(toy_policy(CHAT, length=3, buckets=8).learner.model)
    roller = Roller(sampler, CHAT, nothing, max_completion_length=3, seed=7)
    sampled = Sampled(TASKS, roller, prompts=2, num_generations=3)
    return Mixed(sampled, Recorded(TASKS, CHAT, batch=4), share, seed)


def drawn(source, steps):
    """For each step: whether it was sampled, and its groups."""
    found = []
    for _ in range(steps):
        groups = source.next()
        found.append((source.samples, groups))
    return found


def test_each_step_is_one_or_the_other_and_groups_are_numbered_through():
    found = drawn(mixed(), 40)
    kinds = [kind for kind, _ in found]
    assert 12 <= sum(kinds) <= 28  # 20 ± 2.5 standard deviations of 3.2
    for kind, groups in found:
        assert [len(group.rollouts) for group in groups] == ([3, 3] if kind else [1, 1, 1, 1])
        assert {group.rewards for group in groups} == ({(0.0,) * 3} if kind else {(1.0,)})
    assert [group.id for _, groups in found for group in groups] == list(range(2 * sum(kinds) + 4 * (40 - sum(kinds))))
    assert kinds == [kind for kind, _ in drawn(mixed(), 40)]
    assert kinds != [kind for kind, _ in drawn(mixed(seed=4), 40)]


@pytest.mark.parametrize(("share", "kind"), [(0.0, False), (1.0, True)])
def test_at_the_ends_it_is_one_source(share, kind):
    assert {found for found, _ in drawn(mixed(share), 10)} == {kind}


def test_it_goes_on_as_if_nothing_had_happened():
    whole = drawn(mixed(), 12)
    first = mixed()
    drawn(first, 5)
    second = mixed()
    second.restore(first.state())
    assert drawn(second, 7) == whole[5:]


def test_for_whom_it_is():
    policy = toy_policy(CHAT, length=3, buckets=8)
    fill = fillers(policy, None, ToyScorer(policy.learner.model))
    check(mixed(), policy, gkd(), fill)
    with pytest.raises(ConfigError, match=r"grpo learns from what the policy writes alone.*choose .* \(gkd\)"):
        check(mixed(), policy, grpo(), fill)
    with pytest.raises(ConfigError, match="sft learns from what it is shown"):
        check(mixed(), policy, sft(), fill)
    with pytest.raises(ConfigError, match="it needs a teacher"):
        check(mixed(), policy, gkd(), fillers(policy, None, None))
    with pytest.raises(ConfigError, match=r"share=1\.5"):
        mixed(1.5)


def test_the_share_that_an_algorithm_wants():
    assert [select.sampled_share(part) for part in (select.everything(), select.demonstrations())] == [1.0, 0.0]
    assert [select.sampled_share(gkd(lmbda).select) for lmbda in (0.0, 0.3, 1.0)] == [0.0, 0.3, 1.0]
    assert [gkd(lmbda).samples for lmbda in (0.0, 0.3, 1.0)] == [False, True, True]
    with pytest.raises(ValueError, match="share=-1"):
        select.mixed(-1.0)
    groups = mixed(0.0).next()
    assert [row.reward for row in select.mixed()(groups)] == [1.0] * 4
