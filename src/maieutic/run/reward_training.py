"""Training a reward model: the ordinary loop over judged completions, able to stop anywhere and go on.

    OUT/                 the reward model, as plain transformers loads it, and `reward_model.json`
    OUT/training/        the config, `run.db` with the curves, and where to go on from until it is done

There is no trainer of its own here: `train` runs an algorithm of `core.reward_modelling`, whose critic is the head.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maieutic.config import write_toml
from maieutic.config.reward_training import RewardTrainConfig
from maieutic.core.parts import Algorithm
from maieutic.errors import RunError
from maieutic.protocols import Policy
from maieutic.reward_models.data import JudgedSource, too_long
from maieutic.reward_models.measure import measure
from maieutic.run.checkpoints import Checkpoints
from maieutic.run.directory import RunDirectory
from maieutic.run.durable import room_for, size, sync, sync_tree
from maieutic.run.reward_data import Data, algorithm_of, gather, groups_of, settings_of
from maieutic.run.runner import Interrupted
from maieutic.run.store import Store
from maieutic.train import train
from maieutic.types import Group, Step

if TYPE_CHECKING:
    from maieutic.models.causal import CausalModel
    from maieutic.models.reward_model import RewardModel

#: The only stage of such a training.
STAGE = "reward"


@dataclass(frozen=True)
class Teaching:
    """Everything that the loop needs, built together."""

    model: RewardModel
    base: CausalModel
    policy: Policy
    algorithm: Algorithm
    source: JudgedSource
    held: list[Group]
    steps: int
    note: str


#: (steps done, of how many, the step's metrics): called after each.
Watch = Callable[[int, int, Mapping[str, float]], None]


def train_reward_model(
    config: RewardTrainConfig, out: Path, *, resume: bool = False, watch: Watch = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:  # fmt: skip
    """Train as the config says and write the model to `out`; returns its measures on what was held out.

    A training that was stopped goes on with `resume` and ends with the same weights. `stop` is asked after each step.
    Raises RunError where `out` holds something else, Interrupted when it was asked to stop.
    """
    _check_free(out, resume)
    # data and model are read before the folder is made: what is refused leaves nothing behind
    taught = None if (out / "training").exists() else set_up(config)
    with RunDirectory.create(out / "training", write_toml(config), resume=resume) as directory:
        done = directory.summary()
        if done is not None:
            return done
        taught = taught or set_up(config)
        with Store(directory.database) as store:
            _learn(config, taught, store, Checkpoints(directory.checkpoints, keep=1), watch, stop)
        model = finished(taught)
        found = {"model": str(out), "kind": model.kind, "data": taught.note, "steps": taught.steps}
        summary = {**found, "held_out": measure(quick_of(model), taught.held)} if taught.held else found
        _put(model, out)
        directory.finish(summary)
        shutil.rmtree(directory.checkpoints)
    return summary


def set_up(config: RewardTrainConfig) -> Teaching:
    """Data, model and algorithm, before the first step. Raises DataError where every completion is too long."""
    from maieutic.backends.local import LocalBackend, Optimiser
    from maieutic.backends.local.judging import JudgeHead
    from maieutic.models.causal import load_causal
    from maieutic.models.lora import LoRA
    from maieutic.models.reward_model import from_policy

    data: Data = gather(config)
    lora = None if config.lora is None else LoRA(**config.lora.model_dump(), seed=config.seed)
    base = load_causal(config.model, lora=lora, dtype="float32", device=config.device, template=config.template)
    model = from_policy(base, settings_of(config))
    groups, held = groups_of(model, data.learned, config.at), groups_of(model, data.held, config.at)
    algorithm = algorithm_of(config, data)
    steps = max(1, round(config.epochs * len(groups) / config.prompts))
    backend = LocalBackend(
        device=config.device,
        threads=config.threads,
        micro_batch_tokens=config.micro_batch_tokens,
        gradient_checkpointing=config.gradient_checkpointing,
    )
    assert model.head is not None, "a model that is made of a policy has a head"
    rate = config.head_learning_rate or 10 * config.optimiser.learning_rate
    head = JudgeHead(model.head, config.lm > 0, rate)
    policy = backend.policy(base, Optimiser(**config.optimiser.model_dump(), total_steps=steps), critic=head)
    left_out = too_long([*groups, *held])
    note = data.note + (f"; {left_out:,} too long for the model and left out" if left_out else "")
    source = JudgedSource(groups, config.prompts, config.seed)
    return Teaching(model, base, policy, algorithm, source, held, steps, note)


def quick_of(model: RewardModel) -> RewardModel:
    """The model on packed rows where its architecture allows."""
    from maieutic.backends.local.judging import quick

    return quick(model)


def finished(taught: Teaching) -> RewardModel:
    """The model as it is to be kept: an adapter is merged into its base."""
    from maieutic.models.lora import merged
    from maieutic.models.padded_scores import padded
    from maieutic.models.reward_model import token_score

    model, base = taught.model, taught.base
    if not base.adapter:
        return model
    plain = replace(base, module=merged(base.module), adapter=False, adapter_source="")
    head = token_score(plain, model.settings) if model.settings.layout == "causal" else model.head
    return replace(model, module=plain.module, head=head, engine=padded(plain.module, head))


def _learn(
    config: RewardTrainConfig,
    taught: Teaching,
    store: Store,
    checkpoints: Checkpoints,
    watch: Watch,
    stop: Callable[[], bool],
) -> None:
    """The steps from the newest checkpoint to the end."""
    newest = checkpoints.latest(STAGE)
    checkpoints.rewind(newest)
    done = 0 if newest is None else newest.step
    store.rewind(STAGE, done - 1)
    if newest is not None:
        taught.policy.learner.load(newest.path)
        taught.source.restore(newest.state["source"])
    watch(done, taught.steps, {})
    for step in train(taught.source, taught.policy, taught.algorithm, steps=taught.steps, start=done):
        metrics = {name: value for name, value in step.metrics.items() if not name.startswith(UNSAID)}
        store.write_step(STAGE, Step(step.index, (), (), None, metrics))
        done = step.index + 1
        stopping = stop()
        if done == taught.steps or stopping or done % config.checkpoint_every == 0:
            state = {"source": taught.source.state()}
            checkpoints.write(STAGE, done, taught.policy.learner.save, state)
        watch(done, taught.steps, metrics)
        if stopping and done < taught.steps:
            raise Interrupted(f"stopped after step {done} of {taught.steps}; everything is saved, go on with --resume")


#: Metrics of a policy that writes, which say nothing here.
UNSAID = ("policy/", "reward/", "completions/", "rollouts/")


def _check_free(out: Path, resume: bool) -> None:
    """Raise RunError where the model would be written beside something else."""
    if not out.exists() or resume:
        return
    inside = [path.name for path in out.iterdir() if path.name != "training"] if out.is_dir() else [out.name]
    if inside:
        raise RunError(
            f"{out} is not empty (it holds {', '.join(sorted(inside)[:5])}); choose another --out, or go on with "
            "--resume"
        )


def _put(model: RewardModel, out: Path) -> None:
    """Write the model's files to `out`, the file that makes it a reward model last."""
    from maieutic.models.reward_model import SETTINGS

    temporary = out / "training" / ".tmp-model"
    shutil.rmtree(temporary, ignore_errors=True)
    with room_for(out, lambda: size(temporary)):
        model.save(temporary)
        sync_tree(temporary)
    for path in sorted(temporary.iterdir(), key=lambda path: path.name == SETTINGS):
        os.replace(path, out / path.name)
    temporary.rmdir()
    sync(out)
