"""The models beside the policy that a stage's algorithm reads, reference and teacher: which, and loaded from where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from maieutic.config import Config, LoraConfig, StageConfig
from maieutic.errors import ConfigError
from maieutic.protocols import Policy, Scorer

if TYPE_CHECKING:
    from maieutic.backends.local import LocalBackend
    from maieutic.core.parts import Algorithm
    from maieutic.models.causal import CausalModel


@runtime_checkable
class Changing(Protocol):
    """A model beside the policy that changes while a run goes, such as a reference that follows: to go on after a stop
    it needs what it saved."""

    def save(self, folder: Path) -> None: ...

    def load(self, folder: Path) -> None: ...


def reads_reference(algorithm: Algorithm) -> bool:
    """Whether any of its parts reads what a reference says."""
    return "ref_logprobs" in algorithm.asks


def reads_teacher(algorithm: Algorithm) -> bool:
    """Whether any of its parts reads what a teacher says."""
    return any(column.startswith("teacher_") for column in algorithm.asks)


def check_frozen(stage: StageConfig, algorithm: Algorithm) -> None:
    """Raise ConfigError for a teacher that is missing, and for a table of a model that nothing reads."""
    if reads_teacher(algorithm) and stage.teacher is None:
        raise ConfigError(
            f"stage {stage.name!r}: {algorithm.name} learns from a teacher, and the stage has none. Add a table "
            '[stages.teacher] with path = "…", the folder or Hub id of a model of the same tokens; or url, or recorded'
        )
    idle = [
        ("teacher", stage.teacher is not None and not reads_teacher(algorithm), "asks no teacher", "gkd"),
        ("reference", stage.reference is not None and not reads_reference(algorithm), "asks no reference",
         "grpo with options = { beta = 0.04 }, dpo"),
    ]  # fmt: skip
    for key, does_nothing, why, others in idle:
        if does_nothing:
            raise ConfigError(
                f"stage {stage.name!r}: got [stages.{key}], which does nothing: {algorithm.name} as it is set {why}. "
                f"Leave the table out, or choose an algorithm that does ({others})"
            )


def check_adapters(config: Config) -> None:
    """Raise ConfigError for settings of an adapter that the run's first model, an adapter already, does not have, and
    for a critic that is to be an adapter where the policy has none, or another base."""
    from maieutic.models.find import base_of, find_model, holds

    path, lora = config.model.path, config.model.lora
    folder = "" if path is None else find_model(path)
    adapter = holds(folder, "adapter_config.json")
    if adapter and lora is not None:
        _check_settings(lora, Path(folder))
    for stage in config.stages:
        critic = stage.critic
        if critic is None or critic.kind != "adapter":
            continue
        if lora is None and not adapter:
            raise ConfigError(
                f"stage {stage.name!r}: got a critic of kind 'adapter' for a policy all of whose weights are trained; "
                'expected one with model.lora, whose base it shares. Add that, or take kind = "separate"'
            )
        if critic.path is None or path is None:
            continue
        theirs, ours = (base_of(each, config.model.revision if each == path else None) for each in (critic.path, path))
        if theirs != ours:
            raise ConfigError(
                f"stage {stage.name!r}: got a critic of kind 'adapter' from {critic.path}, whose base is {theirs[0]}; "
                f'expected {ours[0]}, the policy\'s. Take kind = "separate"'
            )


def _check_settings(lora: LoraConfig, folder: Path) -> None:
    said = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    got = {"rank": lora.rank, "alpha": lora.alpha, "rslora": lora.rslora}
    has = {"rank": said.get("r"), "alpha": said.get("lora_alpha"), "rslora": bool(said.get("use_rslora"))}
    if got != has:
        raise ConfigError(
            f"got model.lora with {got} for the adapter in {folder}, which has {has} and keeps them; expected the "
            "same. Leave model.lora out, or merge the adapter into its base (`maieutic.models.lora.merged`)"
        )


def frozen_paths(stage: StageConfig) -> list[str]:
    """Where the stage's models beside the policy are to be loaded from."""
    teachers = [] if stage.teacher is None else list(stage.teacher.each())
    named = [table.path for table in (*teachers, stage.reference) if table is not None]
    return [path for path in named if path is not None]


def make_reference(
    config: Config, stage: StageConfig, backend: LocalBackend, model: CausalModel, policy: Policy, algorithm: Algorithm
) -> Scorer | None:
    """The reference, where the algorithm reads one: the policy's model as it is now, if the stage says nothing else."""
    if not reads_reference(algorithm):
        return None
    spec = stage.reference
    if spec is None:
        return backend.reference(model)

    def fixed() -> Scorer:
        if spec.path is None:
            return backend.reference(model)
        from maieutic.backends.local import check_vocabularies

        # in float32 as the policy: their difference is the KL
        other = load_beside(config, spec.path, spec.revision, "float32", model, "reference")
        check_vocabularies(other, model, "reference")
        return backend.frozen(other)

    kinds: dict[str, Callable[[], Scorer]] = {
        "fixed": fixed,
        "following": lambda: backend.following(model, policy.learner, **spec.following),
    }
    return kinds[spec.kind]()


def load_beside(
    config: Config, path: str, revision: str | None, dtype: str, policy: CausalModel, role: str
) -> CausalModel:
    """The model at `path`: within the policy's module where that is its base, too; else loaded by itself.

    Within the policy's module it has the policy's precision.
    """
    from maieutic.models.adapters import beside, shares_base
    from maieutic.models.causal import load_causal

    if dtype in ("auto", "float32") and shares_base(policy, path, revision):
        return beside(policy, path, role, revision=revision)
    # it only scores tokens, so how its conversations are written does not matter
    return load_causal(
        path, dtype=dtype, device=config.device, template="plain", revision=revision, precision=config.precision
    )


def changing(*models: Any) -> list[Changing]:
    """Those of the models that have to be saved with a checkpoint."""
    return [model for model in models if isinstance(model, Changing)]


def describe_frozen(stage: StageConfig, algorithm: Algorithm) -> list[str]:
    """The models beside the policy in words, a line each."""
    lines = []
    if stage.teacher is not None:
        lines.append(f"teacher {stage.teacher.told()}")
    if reads_reference(algorithm):
        spec = stage.reference
        of = "the model that the stage begins with" if spec is None or spec.path is None else spec.path
        follows = "" if spec is None or spec.kind == "fixed" else ", following: every {every} steps, mix {mix:g}"
        lines.append(f"reference {of}" + (follows.format(**spec.following) if spec is not None else ""))
    return lines
