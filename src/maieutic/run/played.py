"""Tasks that are played turn by turn in an environment: how a config says so, and what a stage on them cannot have.

[tasks.train]
taskset = "file"
path = "numbers.jsonl"
environment = "my_game.py:Guess"          # or a name of `environments.rules.ENVIRONMENTS`
environment_options = { highest = 100 }
max_turns = 8                             # and max_turn_length (tokens), turn_timeout_seconds
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from maieutic.environments.adapt import LIBRARIES, from_library
from maieutic.environments.episodes import turn_limit
from maieutic.environments.rules import ENVIRONMENTS, Ruled, make_environment, scores_itself
from maieutic.errors import ConfigError, UnknownName
from maieutic.own_environment import Games, load_environment
from maieutic.play import OWN_SCORE
from maieutic.protocols import Environment, Taskset
from maieutic.rewards.adapt_rubric import rubric_reads
from maieutic.tasks.taskset import environment_of, take

if TYPE_CHECKING:
    from maieutic.config import StageConfig
    from maieutic.core.parts import Algorithm


#: Keys of a table of tasks that any taskset takes.
RULES = ("environment", "environment_options", "max_turns", "max_turn_length", "turn_timeout_seconds")


def rules_in(options: Mapping[str, Any], takes: Collection[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options in two parts: rules of play, and those of the taskset, which may have options of these names."""
    rules = {key: value for key, value in options.items() if key in RULES and key not in takes}
    return rules, {key: value for key, value in options.items() if key not in rules}


def named_environment(name: str, options: Mapping[str, Any], known: Mapping[str, Any] | None = None) -> Environment:
    """The environment of that name, or of a class in a file ("my_game.py:Guess"); `known` as `make_environment`.

    Raises ConfigError and UnknownName for what there is not.
    """
    if ".py:" in name:
        return load_environment(name, options)
    found = from_library(name, options, rubric_reads)
    if found is not None:
        return found
    if name not in ENVIRONMENTS:
        raise UnknownName("environment", name, [*ENVIRONMENTS, *(f"{each}ID" for each in LIBRARIES), "file.py:Class"])
    return make_environment(name, options, known)


def under_rules(made: Taskset, rules: Mapping[str, Any]) -> Taskset:
    """The tasks, played as the rules say. Raises ConfigError for rules without an environment."""
    if not rules:
        return made
    environment = environment_of(made)
    if "environment" in rules:
        options = rules.get("environment_options", {})
        environment = named_environment(str(rules["environment"]), options, {"verifier": made.verifier})
    elif "environment_options" in rules:
        raise ConfigError(
            f"taskset {made.name!r}: got environment_options without an environment; name one, or give the options to "
            "the taskset that brings its own"
        )
    if environment is None:
        raise ConfigError(
            f"taskset {made.name!r}: got {', '.join(sorted(rules))}, and the model answers its tasks once. Leave it "
            'out, or say in what they are played: environment = "guess", or "my_game.py:Class"'
        )
    seconds = rules.get("turn_timeout_seconds")
    if seconds is not None and isinstance(environment, Games):
        environment, seconds = environment.with_timeout(float(seconds)), None
    limits = (rules.get("max_turns"), rules.get("max_turn_length"), seconds)
    if any(limit is not None for limit in limits):
        environment = Ruled(environment, *limits)
    return replace(take(made), environment=environment)


def check_played(stage: StageConfig, algorithm: Algorithm, taskset: Taskset) -> None:
    """Raise ConfigError where the algorithm asks for something that an episode of several turns has not, and where the
    rewards contradict what the tasks are played in."""
    environment = environment_of(taskset)
    if algorithm.samples:
        _check_own_score(stage, environment)
    if environment is None or not algorithm.samples:
        return
    select = algorithm.select
    wants = {
        "a hint in the prompt of tasks that failed": select.hints is not None,
        "continuations of half an attempt": bool(select.continuations),
        "labels in front of steps": select.labels is not None,
    }
    for what, wanted in wants.items():
        if wanted:
            raise ConfigError(
                f"stage {stage.name!r}: {algorithm.name} wants {what}, which an episode of several turns has not "
                f"(tasks {stage.tasks!r} are played in {environment.name!r}). Choose another algorithm (grpo, ppo), or "
                "tasks without an environment"
            )


def _check_own_score(stage: StageConfig, environment: Environment | None) -> None:
    named = f"stage {stage.name!r}: got {OWN_SCORE!r} among the rewards, and "
    told = None if environment is None else scores_itself(environment)
    if OWN_SCORE in stage.rewards and environment is None:
        raise ConfigError(
            f"{named}the model answers the tasks {stage.tasks!r} once; expected tasks that are played in an "
            "environment, whose own score it stands for. Take it out, or say in what they are played (environment = …)"
        )
    if OWN_SCORE in stage.rewards and environment is not None and told is False:
        raise ConfigError(
            f"{named}the environment {environment.name!r} gives no score of its own, so that all others judge its "
            "episodes. Take it out"
        )
    usual = type(stage).model_fields["rewards"].get_default(call_default_factory=True)
    if environment is not None and told and OWN_SCORE not in stage.rewards and stage.rewards != usual:
        raise ConfigError(
            f"stage {stage.name!r}: got rewards {', '.join(stage.rewards)}, which do nothing: the environment "
            f"{environment.name!r} scores its episodes itself. Add its score to them (rewards = {{ {OWN_SCORE} = 1.0, "
            "… }), or leave them out"
        )


def describe_played(taskset: Taskset) -> list[str]:
    """In what the tasks are played, in words; nothing where the model answers once."""
    environment = environment_of(taskset)
    if environment is None:
        return []
    length = turn_limit(environment)
    cut = "" if length is None else f" of at most {length} tokens"
    return [f"played in {environment.name!r}, at most {environment.max_turns} turns{cut}"]
