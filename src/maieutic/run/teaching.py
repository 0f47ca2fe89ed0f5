"""Teachers in a run: the reward "teaching" of a config, and `maieutic teach`'s short config as a whole one.

A teacher's run is an ordinary run: fine-tuning on lessons with recorded explanations, then GRPO with the reward
"teaching". There is nothing here that `maieutic train` could not be told in a longer file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maieutic.config import Config, TasksConfig, parse_config
from maieutic.config.teaching import TeachConfig
from maieutic.core.kl import k1, k3
from maieutic.core.teaching import Terms
from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Chat, Scorer
from maieutic.run.tasksets import Tasksets
from maieutic.teaching.reward import Student, TeachingReward

#: Name → estimator of the divergence between teacher and student.
ESTIMATORS = {"k1": k1, "k3": k3}


def frozen_student(path: str, template: str = "auto", device: str = "cpu", dtype: str = "auto") -> Student:
    """The model in a folder or of a Hub id as a student. Raises ModelError where there is none."""
    from maieutic.backends.local import LocalBackend
    from maieutic.models.causal import load_causal

    loaded = load_causal(path, device=device, dtype=dtype, template=template)
    limit = getattr(getattr(loaded.module, "config", None), "max_position_embeddings", None)
    return Student(LocalBackend(device).frozen(loaded), loaded.chat, limit)


def teaching_reward(
    student: str, chat: Chat | None = None, *, solution: tuple[float, float] = (1.0, 0.01),
    kl: tuple[float, float] = (3.0, 0.03), unclosed: float = -1.0, estimator: str = "k1", entropy: bool = True,
    temperature: float | None = None, spans: str = "pieces", reader: str | None = None, template: str = "auto",
    device: str = "cpu", dtype: str = "auto",
) -> TeachingReward:  # fmt: skip
    """The reward "teaching" of a config: `student` and `reader` are folders or Hub ids, the rest as in `Terms` and
    `TeachingReward`. `chat`, the policy's, is not known before there is one: until then nothing can be judged.

    Raises UnknownName, ConfigError, and ModelError for a model that there is not.
    """
    from maieutic.models.find import find_model

    if estimator not in ESTIMATORS:
        raise UnknownName("estimator of the divergence", estimator, ESTIMATORS)
    weights = {"solution": tuple(solution), "kl": tuple(kl)}
    for key, value in weights.items():
        if len(value) != 2:
            raise ConfigError(f"teaching: got {key} = {list(value)}; expected two weights, of the mean and the extreme")
    for path in filter(None, (student, reader)):
        find_model(path)
    terms = Terms(**weights, unclosed=unclosed, estimator=ESTIMATORS[estimator], entropy=entropy)  # type: ignore[arg-type]
    read: Scorer | None = None if reader is None else frozen_student(reader, template, device, dtype).scorer
    make: Callable[[], Student] = lambda: frozen_student(student, template, device, dtype)  # noqa: E731
    return TeachingReward(make, chat or Unknown(), terms=terms, temperature=temperature, spans=spans, reader=read)


class Unknown:
    """A chat in whose place there is none yet."""

    def __getattr__(self, name: str) -> Any:
        raise ConfigError("teaching: got no policy whose tokens are to be judged; the reward is made with a policy")


def lessons(config: Any, of: str, role: str = "teacher") -> dict[str, Any]:
    """The table of a taskset "teaching" over the tasks `of`, as a `LessonConfig` says."""
    given = config.lesson.model_dump(exclude_none=True)
    return {"taskset": "teaching", "tasks": of, "role": role, **given}


#: What the tables of lessons are called in the whole config.
SHOWN, TAUGHT = "lessons-shown", "lessons"


def teacher_config(config: TeachConfig) -> Config:
    """The whole config of a teacher's run. Raises ConfigError as reading any config does."""
    tasks: dict[str, Any] = {name: table.model_dump(exclude_none=True) for name, table in config.tasks.items()}
    for name in (SHOWN, TAUGHT):
        if name in tasks:
            raise ConfigError(f"got a table of tasks called {name!r}, which `maieutic teach` makes; rename it")
    tasks[TAUGHT] = lessons(config, config.rl.tasks)
    stages: list[dict[str, Any]] = []
    if config.warmup is not None:
        tasks[SHOWN] = lessons(config, config.warmup.tasks)
        stages.append({"name": "warmup", "algorithm": "sft", **_stage(config.warmup, SHOWN)})
    reward = {"student": config.student, **config.reward}
    practice = _stage(config.rl, TAUGHT)
    options = {"beta": practice.pop("beta")}
    reference = practice.pop("reference")
    if options["beta"]:
        practice["reference"] = reference
    stages.append({
        "name": "teach", "algorithm": "grpo", "options": options, "rewards": {"teaching": 1.0},
        "reward_options": {"teaching": reward}, **practice,
    })  # fmt: skip
    whole = {**config.engine(), "tasks": tasks, "stages": stages}
    return _warmed_up(parse_config(whole, "the config of a teacher"), config)


def _stage(table: Any, tasks: str) -> dict[str, Any]:
    said = table.model_dump(exclude_none=True, exclude={"warmup_share"})
    if said.get("steps") is not None:
        said.pop("epochs", None)
    return {**said, "tasks": tasks}


def _warmed_up(whole: Config, config: TeachConfig) -> Config:
    """The config with the first stage's warm-up of the learning rate in steps, where it is given as a share."""
    first = whole.stages[0]
    if config.warmup is None or not config.warmup.warmup_share or first.optimiser.warmup_steps:
        return whole
    steps = first.step_count(len(Tasksets(whole)[first.tasks]))
    optimiser = first.optimiser.model_copy(update={"warmup_steps": round(config.warmup.warmup_share * steps)})
    return whole.model_copy(update={"stages": [first.model_copy(update={"optimiser": optimiser}), *whole.stages[1:]]})


def tables(config: dict[str, TasksConfig]) -> dict[str, Any]:
    """Tables of tasks as plain data."""
    return {name: table.model_dump(exclude_none=True) for name, table in config.items()}
