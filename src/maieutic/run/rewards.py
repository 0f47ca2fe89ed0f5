"""From a stage's `rewards` to one reward: a name of `NAMED`, a prefix of `PREFIXED` with what follows it, or
`file.py:function`. A factory says by the names of its parameters what it needs of the stage (see `_of_stage`)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from maieutic.choose import choose
from maieutic.config import StageConfig
from maieutic.errors import UnknownName
from maieutic.play import OWN_SCORE
from maieutic.protocols import Policy, Reward, Taskset
from maieutic.reward_models.generative import GenerativeReward
from maieutic.reward_models.reward import ModelReward
from maieutic.rewards.adapt_gym import gym_reward
from maieutic.rewards.adapt_http import http_reward
from maieutic.rewards.adapt_repeat import JudgedTwice
from maieutic.rewards.compose import answer_reward, nothing, weighted
from maieutic.rewards.format import think_format
from maieutic.rewards.lift import FailureBudget, load_reward
from maieutic.rewards.penalties import PENALTIES
from maieutic.rewards.shaping import SHAPING
from maieutic.rewards.wordle import WORDLE
from maieutic.run.judges import JUDGES
from maieutic.run.teaching import teaching_reward
from maieutic.step_rewards import MonteCarlo, StepRewards

if TYPE_CHECKING:
    from maieutic.core.parts import Algorithm


def own_function(
    where: str,
    timeout_seconds: float | None = None,
    max_failures: float | None = None,
    conversational: bool | None = None,
) -> Reward:
    """The function at "file.py:name"; `max_failures` is the share of failed calls that stops the run.

    `conversational`: whether it wants lists of messages instead of texts; `rewards.adapt` says how that is seen.
    """
    budget = None if max_failures is None else FailureBudget(max_failures)
    made = load_reward(where, timeout_seconds=timeout_seconds, budget=budget, conversational=conversational)
    return JudgedTwice(made, where)


def server(where: str, **options: Any) -> Reward:
    """Scores from a server at an HTTP address; options as `rewards.adapt_http.http_reward`."""
    return JudgedTwice(http_reward(where, **options), where)


server.__signature__ = inspect.signature(http_reward)  # type: ignore[attr-defined]


#: Name of a reward → what makes it.
NAMED: Mapping[str, Callable[..., Reward]] = {
    "answer": answer_reward,
    "think_format": think_format,
    "reasoning_gym": gym_reward,
    "teaching": teaching_reward,
    **SHAPING,
    **PENALTIES,
    **JUDGES,
    **WORDLE,
}
#: What a name begins with → what makes it; the whole name is its parameter `where`. The first that fits is taken.
PREFIXED: Mapping[str, Callable[..., Reward]] = {
    "http://": server,
    "https://": server,
    "model:": ModelReward,
    "genrm:": GenerativeReward,
}


def make_reward(stage: StageConfig, taskset: Taskset, policy: Policy | None = None) -> Reward:
    """The weighted sum of the stage's rewards. Raises ConfigError for a name or an option that there is not.

    `policy`: who writes what is judged; a reward that asks for its chat can be made without, and not called. An
    episode's own score (`OWN_SCORE`) is added where it is played."""
    known = {**NAMED, **{name: _maker(name) for name in stage.rewards if ":" in name}}
    for name in stage.reward_options:
        if name not in stage.rewards or name not in known:
            raise UnknownName("reward with options", name, [each for each in stage.rewards if each in known])
    weights = {name: weight for name, weight in stage.rewards.items() if name != OWN_SCORE}
    if not weights and stage.rewards:
        return nothing
    return weighted({name: one_reward(name, stage, taskset, policy) for name in weights}, weights=weights)


def one_reward(name: str, stage: StageConfig, taskset: Taskset, policy: Policy | None = None) -> Reward:
    """The reward of that name as the stage has it, without its weight. Raises as `make_reward`."""
    known = {**NAMED, name: _maker(name)} if ":" in name else NAMED
    if name not in known:
        raise UnknownName("reward", name, [*known, *(f"{prefix}…" for prefix in PREFIXED), "file.py:function"])
    return choose("reward", known, name, stage.reward_options.get(name, {}), _of_stage(name, stage, taskset, policy))


def _maker(name: str) -> Callable[..., Reward]:
    if name in NAMED:  # its name may have a colon
        return NAMED[name]
    return next((make for prefix, make in PREFIXED.items() if name.startswith(prefix)), own_function)


def _of_stage(name: str, stage: StageConfig, taskset: Taskset, policy: Policy | None) -> dict[str, Any]:
    """What a factory gets of a stage, where it has a parameter of the name."""
    return {
        "where": name,
        "taskset": taskset,
        "verifier": taskset.verifier,
        "chat": None if policy is None else policy.chat,
        "max_completion_length": stage.max_completion_length,
        "timeout_seconds": stage.reward_timeout_seconds,
        "max_failures": stage.max_reward_failures,
    }


def with_steps(
    reward: Reward, seed: str, stage: StageConfig, algorithm: Algorithm, taskset: Taskset, policy: Policy
) -> Reward:
    """The reward, with rewards of steps where the algorithm wants them of continuations by the policy."""
    select = algorithm.select
    if not select.continuations or select.labels is None:
        return reward
    estimate = MonteCarlo(
        policy.sampler,
        policy.chat,
        taskset.verifier,
        select.continuations,
        max_completion_length=stage.max_completion_length,
        temperature=stage.temperature,
        tool=taskset.tool,
        seed=seed,
    )
    return StepRewards(reward, taskset.verifier, select.labels.bind(policy.chat).steps, estimate)
