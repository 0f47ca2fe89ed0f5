"""From a stage's table to its teacher: loaded, recorded, served, or several of these."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from maieutic.config import Config, StageConfig, TeacherConfig
from maieutic.endpoint import Endpoint
from maieutic.errors import ConfigError
from maieutic.protocols import Teacher
from maieutic.run.frozen import load_beside

if TYPE_CHECKING:
    from maieutic.backends.local import LocalBackend
    from maieutic.models.causal import CausalModel

Made = tuple[Teacher, int]


def make_teacher(
    config: Config, stage: StageConfig, backend: LocalBackend, model: CausalModel
) -> tuple[Teacher | None, int]:
    """The stage's teacher, and how many parameters it has in this process (embeddings left out)."""
    if stage.teacher is None:
        return None, 0
    return _Making(config, backend, model)(stage.teacher)


class _Making:
    """Makes the teachers of one stage, which share the policy."""

    def __init__(self, config: Config, backend: LocalBackend, policy: CausalModel) -> None:
        self.config, self.backend, self.policy = config, backend, policy
        self.makes: Mapping[str, Callable[[TeacherConfig], Made]] = {
            "path": self.loaded,
            "recorded": self.recorded,
            "url": self.served,
            "mixture": self.mixed,
            "by_tasks": self.by_tasks,
        }
        self.count = 0

    def __call__(self, spec: TeacherConfig) -> Made:
        """The teacher, and its parameters."""
        teacher, parameters = self.makes[spec.place](spec)
        if spec.too_long == "cut":
            from maieutic.teachers import Shortened

            limit: int | None = getattr(teacher, "limit", None)
            teacher = teacher if limit is None else Shortened(teacher, limit)
        return teacher, parameters

    def loaded(self, spec: TeacherConfig) -> Made:
        """A model in this process."""
        from maieutic.models.adapters import parameters_of

        self.count += 1  # each adapter in the policy's module has a name of its own
        role = "teacher" if self.count == 1 else f"teacher{self.count}"
        made = load_beside(self.config, str(spec.path), spec.revision, spec.dtype, self.policy, role)
        if spec.align:
            from maieutic.teachers import AlignedTeacher

            limit: int | None = getattr(getattr(made.module, "config", None), "max_position_embeddings", None)
            return AlignedTeacher(self.backend.frozen(made), made.chat, self.policy.chat, limit), parameters_of(made)
        return self.backend.teacher(made, self.policy, top_k=spec.candidates), parameters_of(made)

    def recorded(self, spec: TeacherConfig) -> Made:
        """What one said."""
        from maieutic.teachers import RecordedTeacher

        return RecordedTeacher(str(spec.recorded), self._tokenizer.get_vocab(), spec.candidates), 0

    def served(self, spec: TeacherConfig) -> Made:
        """One behind a server."""
        from maieutic.teachers import EndpointTeacher

        endpoint = Endpoint(str(spec.url), str(spec.model), **spec.terms)
        return EndpointTeacher(endpoint, self._tokenizer, spec.candidates, self.policy.source), 0

    def mixed(self, spec: TeacherConfig) -> Made:
        """Several at once."""
        from maieutic.teachers import MixedTeacher

        inside = spec.mixture or []
        made = [self(each) for each in inside]
        weights = [each.weight or 1.0 for each in inside]
        return MixedTeacher([teacher for teacher, _ in made], weights), sum(count for _, count in made)

    def by_tasks(self, spec: TeacherConfig) -> Made:
        """One for each taskset."""
        from maieutic.teachers import TeacherByTasks

        made = {name: self(each) for name, each in (spec.by_tasks or {}).items()}
        # a row is scored by one of them: their mean is what a token costs, where tasks are drawn evenly
        mean = sum(count for _, count in made.values()) // len(made)
        return TeacherByTasks({name: teacher for name, (teacher, _) in made.items()}), mean

    @property
    def _tokenizer(self) -> Any:
        return self.policy.tokenizer


def check_teacher(stage: StageConfig, samples: bool, algorithm: str, asks: Collection[str] = ()) -> None:
    """Raise ConfigError for a recording where rows are written anew, for a served teacher with a temperature at which
    it cannot speak, and for one of other tokens that is asked for candidates (`asks`: columns)."""
    for spec in () if stage.teacher is None else stage.teacher.each():
        if spec.align and "teacher_top_ids" in asks:
            raise ConfigError(
                f"stage {stage.name!r}: got a teacher with align = true, and {algorithm} compares candidates token by "
                "token. Choose an algorithm that asks for log-probs of what was written (on_policy_distillation), or "
                "let the teacher write solutions and fine-tune on them (sft)"
            )
        if spec.recorded is not None and samples:
            raise ConfigError(
                f"stage {stage.name!r}: got a recorded teacher, and {algorithm} learns from what the policy writes, of "
                "which a recording says nothing. Give the teacher itself (path, or url), or choose an algorithm that "
                "learns from what is shown (distil; gkd with options = { lmbda = 0 })"
            )
        if spec.url is not None and samples and stage.temperature != 1.0 and spec.candidates is not None:
            raise ConfigError(
                f"stage {stage.name!r}: got temperature = {stage.temperature:g} and a teacher behind a server, which "
                'speaks at 1; expected temperature = 1, or top_k = "all" (start vLLM with --max-logprobs -1)'
            )
