"""`maieutic distil` in numbers: a teacher that writes, and a student that learns from what is not written yet.

How long explanations are is assumed, as completions are: at most `collect.max_completion_length`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from maieutic.config import Config, StageConfig
from maieutic.config.teaching import DistilConfig
from maieutic.forecast.reading import Reader
from maieutic.forecast.stage import Beside, StageInputs
from maieutic.run.build import make_stage_algorithm
from maieutic.run.distil import CHUNK, FILE, lessons_alone, student_config
from maieutic.run.teaching import TAUGHT

#: What is not foreseen, in words.
LEFT_OUT = (
    "left out: how candidates are ranked (a student's log-probs, examinations), and the solutions that follow "
    "explanations"
)


def distil_stages(config: DistilConfig) -> list[StageInputs]:
    """Collecting, a step being the lessons that are asked at once; and the student's fine-tuning, where there is one.

    Raises ConfigError and ModelError as the run would.
    """
    spec = config.collect
    read = _written(lessons_alone(config), TAUGHT, spec.max_completion_length)
    lessons = len(read.tasksets[TAUGHT]) if spec.limit is None else min(spec.limit, len(read.tasksets[TAUGHT]))
    found, sizes = read.stage(0), read.models.policy
    judges = sum(read.models.other(path, "auto").bytes() for path in filter(None, (spec.student, *spec.students)))
    collecting = replace(
        found,
        name="collect",
        algorithm="the teacher writes",
        sizes=replace(sizes, weights=tuple(replace(weight, trained=False) for weight in sizes.weights)),
        groups=min(CHUNK, lessons),
        siblings=spec.candidates,
        steps=math.ceil(lessons / CHUNK),
        passes=0.0,
        optimiser_steps=0,
        beside=Beside(judges=judges),
        evaluations=(),
    )
    return [collecting] if config.student is None else [collecting, _student(config, lessons)]


def _student(config: DistilConfig, explanations: int) -> StageInputs:
    """Fine-tuning on so many explanations; prompts are those of the tasks that are explained."""
    whole = student_config(config, Path(FILE).parent)
    (stage,) = whole.stages
    algorithm = make_stage_algorithm(stage)
    read = _written(whole, config.collect.tasks, config.collect.max_completion_length).stage(0)
    return replace(
        read,
        name="student",
        algorithm=algorithm.name,
        siblings=1,
        samples=False,
        share=0.0,
        unseen=True,
        steps=stage.step_count(explanations),
        passes=algorithm.update.passes,
        optimiser_steps=algorithm.update.steps,
        together=stage.prompts,
        beside=Beside(),
    )


def _written(config: Config, tasks: str, longest: int) -> Reader:
    """Reads the config's one stage as if its model wrote the rows itself, so that nothing need be shown."""
    keys = ("name", "prompts", "steps", "epochs", "optimiser", "evaluate")
    given = {key: getattr(config.stages[0], key) for key in keys}
    made = StageConfig(algorithm="grpo", tasks=tasks, max_completion_length=longest, num_generations=2, **given)
    return Reader(config.model_copy(update={"stages": [made]}))
