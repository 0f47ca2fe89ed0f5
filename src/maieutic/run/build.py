"""From a config to the objects that a run is made of: every choice is a look-up by name, checked before use."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from maieutic.config import Config, StageConfig
from maieutic.curriculum import Curriculum
from maieutic.errors import ConfigError
from maieutic.play import OWN_SCORE, Player
from maieutic.protocols import Policy, Source, Taskset
from maieutic.rollout import Roller
from maieutic.run.budget import planned_steps
from maieutic.run.durable import room_for, size, sync, sync_tree
from maieutic.run.frozen import check_frozen, describe_frozen
from maieutic.run.played import check_played, describe_played
from maieutic.run.rewards import make_reward, with_steps
from maieutic.run.rounds import check_rounds, with_hints
from maieutic.run.tasksets import Tasksets
from maieutic.run.teachers import check_teacher
from maieutic.run.validation import check_metric
from maieutic.sources import Mixed, Sampled, recorded
from maieutic.tasks.taskset import environment_of

if TYPE_CHECKING:
    from maieutic.backends.local import LocalBackend, Optimiser
    from maieutic.backends.local.critic import Critic
    from maieutic.core.parts import Algorithm
    from maieutic.models.causal import CausalModel

#: Keys of a stage that say how to sample and judge; a stage that imitates demonstrations has no use for them.
SAMPLING_KEYS = (
    "num_generations",
    "max_completion_length",
    "temperature",
    "max_refill",
    "early_stop",
    "curriculum",
    "overlap",
    "rewards",
    "reward_options",
    "reward_timeout_seconds",
    "max_reward_failures",
)
#: Tasks that a from-scratch tokenizer reads, from the front of each stage's taskset.
CORPUS_TASKS = 20_000


def make_backend(config: Config) -> LocalBackend:
    """The engine that samples and learns."""
    from maieutic.backends.local import LocalBackend

    return LocalBackend(
        device=config.device,
        threads=config.threads,
        max_rows=config.max_rows,
        micro_batch_tokens=config.micro_batch_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
        sampling_precision=config.sampling_precision,
    )


def start_model(config: Config, tasksets: Tasksets, folder: Path) -> str:
    """Where the first stage's model is: the config's path or id, or a small model built in `folder` (once)."""
    if config.model.small is None:
        return str(config.model.path)
    if not folder.exists():
        from maieutic.models.small import SmallModel, build_small

        spec = config.model.small
        temporary = folder.with_name(f".tmp-{folder.name}")
        shutil.rmtree(temporary, ignore_errors=True)
        with room_for(folder, lambda: size(temporary)):
            build_small(
                temporary,
                SmallModel(**spec.shape),
                corpus(config, tasksets),
                tokenizer=spec.tokenizer,
                min_count=spec.min_count,
                vocabulary_size=spec.vocabulary_size,
                extra_words=spec.extra_words,
                seed=config.seed,
            )
            sync_tree(temporary)
            os.rename(temporary, folder)
        sync(folder.parent)
    return str(folder)


def corpus(config: Config, tasksets: Tasksets) -> Iterator[str]:
    """Questions and solutions of the tasks that are trained on, what their environments say, and hints; those of the
    evaluation are not read."""
    yield from (stage.hint for stage in config.stages if stage.hint is not None)
    for name in dict.fromkeys(t for stage in config.stages for t in (stage.tasks, stage.demonstrations) if t):
        tasks = tasksets[name]
        yield " ".join(getattr(environment_of(tasks), "vocabulary", ()))
        for i in range(min(len(tasks), CORPUS_TASKS)):
            task = tasks[i]
            shown = [task.meta.get(name) for name in ("solution", "chosen", "rejected")]
            yield " ".join([*(m.content for m in task.prompt), *(text for text in shown if isinstance(text, str))])


def load_model(config: Config, source: str) -> CausalModel:
    """The model at a folder or id, with a fresh adapter where the config wants one and the folder is not one yet.

    Weights are held in float32 on every device: a step of 1e-6 is lost in bfloat16, whose numbers are 0.4 % apart.
    """
    from maieutic.models.causal import load_causal
    from maieutic.models.lora import LoRA

    adapter = (Path(source) / "adapter_config.json").exists()
    lora = None
    if config.model.lora is not None and not adapter:
        lora = LoRA(**config.model.lora.model_dump(), seed=config.seed)
    return load_causal(
        source,
        lora=lora,
        dtype="float32",
        device=config.device,
        template=config.model.template,
        revision=config.model.revision if source == config.model.path else None,
        precision=config.precision,
    )


def make_optimiser(stage: StageConfig, optimiser_steps: int | None) -> Optimiser:
    """The optimiser of a stage, whose schedule ends after that many optimiser steps (None: the rate stays)."""
    from maieutic.backends.local import Optimiser

    return Optimiser(**stage.optimiser.model_dump(), total_steps=optimiser_steps)


def unchecked_algorithm(stage: StageConfig) -> Algorithm:
    """The stage's algorithm, whatever else the stage says."""
    from maieutic.algorithms import make_algorithm

    known = {"max_completion_length": stage.max_completion_length, "reward_weights": stage.rewards}
    return make_algorithm(stage.algorithm, stage.options, **known)


def make_stage_algorithm(stage: StageConfig) -> Algorithm:
    """The stage's algorithm, checked against the stage: a comparison of siblings needs at least two."""
    from maieutic.annotate import check_stale

    algorithm = unchecked_algorithm(stage)
    least = algorithm.siblings
    if algorithm.samples and stage.num_generations < least:
        comparing = algorithm.credit if algorithm.credit.siblings == least else algorithm.select
        raise ConfigError(
            f"stage {stage.name!r}: got num_generations={stage.num_generations}; expected at least {least}, because "
            f"{comparing} compares the rollouts of a "
            "task with each other and would teach nothing. Raise "
            "num_generations, or choose an algorithm that compares across tasks (reinforce)"
        )
    idle = () if algorithm.samples else SAMPLING_KEYS
    for key in idle:
        got = getattr(stage, key)
        if got != StageConfig.model_fields[key].get_default(call_default_factory=True):
            raise ConfigError(
                f"stage {stage.name!r}: got {key} = {got!r}, which does nothing: {algorithm.name} learns from "
                "demonstrations and samples nothing. Leave it out, or choose an algorithm that practises (grpo)"
            )
    if stage.overlap:
        check_stale(algorithm)
    _check_early_stop(stage, algorithm)
    _check_spare_rows(stage, algorithm)
    _check_critic(stage, algorithm)
    _check_optimiser(stage, algorithm)
    check_rounds(stage, algorithm)
    check_frozen(stage, algorithm)
    check_teacher(stage, algorithm.samples, algorithm.name, algorithm.asks)
    if stage.validation is not None:
        check_metric(stage.validation)
    return algorithm


def _check_early_stop(stage: StageConfig, algorithm: Algorithm) -> None:
    if stage.early_stop is None:
        return
    if algorithm.select.keeps is None:
        raise ConfigError(
            f"stage {stage.name!r}: got early_stop = {stage.early_stop}, and {algorithm.name} learns from every group, "
            "also of equal rewards. Leave it out, or choose an algorithm that draws again for these (dapo)"
        )
    if stage.early_stop >= stage.num_generations:
        raise ConfigError(
            f"stage {stage.name!r}: got early_stop = {stage.early_stop}; expected fewer than num_generations = "
            f"{stage.num_generations}: so many are written before it is known whether the others are"
        )


def _check_spare_rows(stage: StageConfig, algorithm: Algorithm) -> None:
    from maieutic.core.sparing import is_silent

    if stage.spare_rows and not (algorithm.samples and algorithm.update.uses_optimiser and is_silent(algorithm.loss)):
        raise ConfigError(
            f"stage {stage.name!r}: got spare_rows = true, and {algorithm.name} learns from rows without an advantage "
            f"too (its loss: {algorithm.loss}). Leave it out, or take a loss that is 0 there (grpo with beta = 0)"
        )


def _check_optimiser(stage: StageConfig, algorithm: Algorithm) -> None:
    if algorithm.update.uses_optimiser:
        return
    given, plain = stage.optimiser.model_dump(), StageConfig.model_fields["optimiser"].get_default().model_dump()
    idle = [f"{key} = {value!r}" for key, value in given.items() if value != plain[key]]
    if idle:
        raise ConfigError(
            f"stage {stage.name!r}: got optimiser {', '.join(idle)}, which does nothing: {algorithm.name} finds the "
            "length of each step itself. Leave it out, and say in `options` how far a step may go (max_kl = 0.01)"
        )


def _check_critic(stage: StageConfig, algorithm: Algorithm) -> None:
    wanted = "values" in algorithm.requires or bool(algorithm.asks & {"old_values", "final_values"})
    if wanted and stage.critic is None:
        raise ConfigError(
            f"stage {stage.name!r}: {algorithm.name} learns with a critic, and the stage has none. Add a table "
            '[stages.critic] with kind = "head" (shares the policy\'s weights), "separate" (a model of its own) or '
            '"adapter" (the same over a LoRA policy\'s base)'
        )
    if stage.critic is not None and not wanted:
        raise ConfigError(
            f"stage {stage.name!r}: got [stages.critic], which does nothing: {algorithm.name} reads no values. Leave "
            "it out, or choose an algorithm that learns with a critic (ppo)"
        )


def make_critic(config: Config, stage: StageConfig, model: str, policy: CausalModel) -> Critic | None:
    """The stage's critic: a head, or a model of its own from its `path` or from what the stage begins with, be it
    loaded by itself or an adapter in the module of the `policy`."""
    from maieutic.backends.local import SeparateCritic, ValueHead
    from maieutic.models.adapters import beside

    spec = stage.critic
    if spec is None:
        return None
    revision = config.model.revision if (spec.path or model) == config.model.path else None
    kinds: dict[str, Callable[[], Critic]] = {
        "head": lambda: ValueHead(spec.learning_rate, spec.hidden),
        "separate": lambda: SeparateCritic(load_model(config, spec.path or model), spec.learning_rate, spec.hidden),
        "adapter": lambda: SeparateCritic(
            beside(policy, spec.path or model, "critic", revision=revision, trainable=True, seed=config.seed),
            spec.learning_rate,
            spec.hidden,
        ),
    }
    return kinds[spec.kind]()


def check_labels(config: Config, model: str) -> None:
    """Raise now, before earlier stages have trained, where a stage writes labels that the model cannot."""
    for stage in config.stages:
        labels = make_stage_algorithm(stage).select.labels
        if labels is not None:
            labels.bind(load_model(config, model).chat)


def make_source(config: Config, stage: StageConfig, algorithm: Algorithm, taskset: Taskset, policy: Policy) -> Source:
    """The stage's source: fresh rollouts, or what the data show."""
    from maieutic.core.select import sampled_share

    seed, share = f"{config.seed}/{stage.name}", sampled_share(algorithm.select)

    def shown() -> Source:
        return recorded(algorithm.siblings)(
            taskset,
            policy.chat,
            batch=stage.prompts,
            seed=seed,
            tool=taskset.tool,
            limit=getattr(policy.sampler, "limit", None),  # not every engine has one
        )

    if not algorithm.samples:
        return shown()
    check_played(stage, algorithm, taskset)
    keeps = algorithm.select.keeps
    environment = environment_of(taskset)
    own = stage.rewards.get(OWN_SCORE)
    roller = (Roller if environment is None else partial(Player, environment=environment, own_weight=own))(
        policy.sampler,
        policy.chat,
        with_steps(make_reward(stage, taskset, policy), seed, stage, algorithm, taskset, policy),
        max_completion_length=stage.max_completion_length,
        temperature=stage.temperature,
        tool=taskset.tool,
        seed=seed,
        first=stage.early_stop,
        decided=None if keeps is None else lambda group: not keeps(group),
    )
    source = Sampled(
        taskset,
        roller,
        prompts=stage.prompts,
        num_generations=stage.num_generations,
        seed=seed,
        until=keeps,
        max_refill=stage.max_refill,
        curriculum=None if stage.curriculum is None else Curriculum(**stage.curriculum.model_dump()),
    )
    practised = with_hints(source, roller, stage, algorithm)
    return practised if share == 1.0 else Mixed(practised, shown(), share, seed)


def _kind(algorithm: Algorithm) -> str:
    from maieutic.core.select import sampled_share

    if algorithm.samples:
        share = sampled_share(algorithm.select)
        return "sampled" if share == 1.0 else f"sampled in {share:.0%} of the steps, demonstrations in the others"
    return "preferences" if algorithm.siblings > 1 else "demonstrations"


def describe(config: Config, tasksets: Tasksets) -> str:
    """What a run of this config would do, in words, for `--dry-run`.

    Raises ConfigError for an algorithm that takes a coarser policy's rows for its own.
    """
    from maieutic.annotate import check_stale

    lines = []
    for stage in config.stages:
        algorithm, taskset = make_stage_algorithm(stage), tasksets[stage.tasks]
        check_played(stage, algorithm, taskset)
        steps = planned_steps(stage, algorithm, len(taskset))
        rows = stage.prompts * (stage.num_generations if algorithm.samples else algorithm.siblings)
        budget = stage.budget
        until = [f"{steps:,} steps"] if steps is not None else []
        until += [f"until {budget.amount:,.15g} {budget.kind} are spent"] if budget is not None else []
        told = f"{algorithm.name} on {stage.tasks} ({len(taskset):,} tasks), {', '.join(until)}"
        lines.append(f"stage {stage.name}: {told}")
        lines.append(f"  {rows:,} rows a step: {_kind(algorithm)}")
        lines.append(
            f"  credit {algorithm.credit}; loss {algorithm.loss}; weights {algorithm.weigh}; {algorithm.update}"
        )
        lines += [f"  {line}" for line in (*describe_played(taskset), *describe_frozen(stage, algorithm))]
        if stage.overlap:
            lines.append("  sampled one step ahead, in a process of its own: rollouts are one update old")
        if config.sampling_precision != "same" and algorithm.samples:
            check_stale(algorithm)
            lines.append(f"  sampled in {config.sampling_precision}: from a coarser policy than is learned")
        if stage.validation is not None:
            spec = stage.validation
            lines.append(f"  validated on {spec.tasks} ({len(tasksets[spec.tasks]):,} tasks) every {spec.every} steps")
            if spec.patience is not None:
                lines.append(f"  ends when {spec.metric} has not risen {spec.patience} times")
        lines.append("  first task: " + json.dumps([m.content for m in taskset[0].prompt])[:300])
    if config.evaluation:
        sizes = [(name, len(tasksets[name])) for name in config.evaluation.names]
        lines.append("evaluation: " + ", ".join(f"{name} ({size:,} tasks)" for name, size in sizes))
    return "\n".join(lines)
