"""Lessons: a task whose solution is known becomes one to explain it, and an explanation becomes a demonstration.

    teacher   system   solution first, then the explanation
              user     {question}
              model    <solution>{solution}</solution> <explanation>        the prompt ends here, within the turn
                       {explanation}</explanation>                          what the teacher writes

    student   user     {question}
              model    <think>{explanation}</think> <solution>{solution}</solution>

The explanation is the same text in both, and the student does not see the solution before it (arXiv 2506.08388, §3).
Tags are a value (`Tags`), of which `TAGS` has three: "s1" as in that paper's data, "r1" with think tags, and "words",
where tags and text are words between spaces, for small models with a word tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.protocols import Taskset, Tool, Verifier
from maieutic.tasks.taskset import Lazy, Tasks
from maieutic.types import Message, Task, Verdict

Tag = tuple[str, str]
"""What opens and what closes a section, spaces and line breaks around it included."""


@dataclass(frozen=True)
class Tags:
    """How the sections of a turn are marked; `between` stands between two of them.

    `teacher` and `student` are the system messages that ask for the two layouts ("": none).
    """

    thought: Tag
    solution: Tag
    explanation: Tag
    between: str = "\n\n"
    teacher: str = ""
    student: str = ""

    @property
    def closing(self) -> str:
        """What ends an explanation, as it is looked for in a text."""
        return self.explanation[1].strip()

    def prefill(self, solution: str) -> str:
        """What the teacher's turn begins with."""
        return f"{_in(self.solution, solution)}{self.between}{self.explanation[0]}"

    def taught(self, explanation: str) -> str:
        """What a teacher writes after that, for a demonstration."""
        return f"{explanation.strip()}{self.explanation[1]}"

    def learned(self, explanation: str, solution: str) -> str:
        """A student's whole turn, for a demonstration."""
        return f"{_in(self.thought, explanation.strip())}{self.between}{_in(self.solution, solution)}"

    @property
    def words(self) -> list[str]:
        """Every word of the tags: what a vocabulary of words needs beside those of the tasks."""
        pairs = (self.thought, self.solution, self.explanation)
        return list(dict.fromkeys(word for pair in pairs for side in pair for word in side.split()))


def _in(tag: Tag, text: str) -> str:
    return f"{tag[0]}{text}{tag[1]}"


_EXPLAIN = (
    "You are a teacher. You are given a question. First write its precise solution between {0} and {1}. Then write, "
    "between {2} and {3}, the whole detailed line of thought by which a student who sees only the question can reach "
    "that solution, in steps separated by blank lines."
)
_THINK = (
    "Answer the question in two sections. First think at length, step by step, between {0} and {1}: analyse, try, "
    "check, and correct yourself. Then write the final, precise solution between {2} and {3}."
)


def _long(thought: Tag, solution: Tag, explanation: Tag) -> Tags:
    marks = [side.strip() for tag in (solution, explanation) for side in tag]
    seen = [side.strip() for tag in (thought, solution) for side in tag]
    return Tags(thought, solution, explanation, "\n\n", _EXPLAIN.format(*marks), _THINK.format(*seen))


#: Name → tags. The first are those of the data in arXiv 2506.08388.
TAGS: Mapping[str, Tags] = {
    "s1": _long(
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|begin_of_solution|>", "<|end_of_solution|>"),
        ("<|begin_of_explanation|>\n\n", "<|end_of_explanation|>"),
    ),
    "r1": _long(("<think>\n", "\n</think>"), ("<solution>", "</solution>"), ("<explanation>\n", "\n</explanation>")),
    "words": Tags(
        ("<think> ", " </think>"), ("<solution> ", " </solution>"), ("<explanation> ", " </explanation>"), " "
    ),
}


@dataclass(frozen=True)
class Lesson:
    """What a teacher's task is about: the question as the student is asked it, the solution, and the tags.

    Found in `meta["lesson"]` of the tasks that `teaching` makes.
    """

    question: tuple[Message, ...]
    solution: str
    tags: Tags


def lesson_of(task: Task) -> Lesson:
    """The lesson of a teacher's task; DataError for a task of another kind."""
    found = task.meta.get("lesson")
    if not isinstance(found, Lesson):
        raise DataError(
            f"task {task.id!r} is no lesson: its meta has no 'lesson'. Expected tasks of the taskset 'teaching', "
            'as [tasks.lessons] taskset = "teaching", tasks = "train"'
        )
    return found


@dataclass(frozen=True)
class Closed:
    """The verifier of lessons: whether the explanation is there and closed. Whether it is any good, a student says."""

    closing: str

    def __call__(self, task: Task, text: str) -> Verdict:  # noqa: ARG002  (a verifier's signature)
        explanation, tag, _ = text.partition(self.closing)
        why = "" if tag and explanation.strip() else f"no {self.closing}" if not tag else "the explanation is empty"
        return Verdict(not why, why=why)


@dataclass(frozen=True)
class Wrapped:
    """Index → the task of `tasks` at that index, for a teacher or for a student (`teacher` False)."""

    tasks: Taskset
    teacher: bool
    tags: Tags
    solution: str
    explanation: str
    until: str | None

    def __call__(self, index: int) -> Task:
        task = self.tasks[index]
        question = _asked(task.prompt, self.tags.student)
        lesson = Lesson(question, self._solution(task), self.tags)
        explanation = self._explanation(task)
        meta = {**task.meta, "lesson": lesson}
        meta.pop("solution", None)
        name = f"{self.tasks.name}/{'taught' if self.teacher else 'learned'}"
        own = f"{name}/{task.id.removeprefix(self.tasks.name + '/')}"
        if not self.teacher:
            if explanation is not None:
                meta["solution"] = self.tags.learned(explanation, lesson.solution)
            return replace(task, id=own, prompt=question, meta=meta)
        if explanation is not None:
            meta["solution"] = self.tags.taught(explanation)
        opened = Message("assistant", self.tags.prefill(lesson.solution))
        return replace(task, id=own, prompt=(*_asked(task.prompt, self.tags.teacher), opened), meta=meta)

    def _solution(self, task: Task) -> str:
        known = {"answer": task.answer, "solution": task.meta.get("solution") or task.answer}
        try:
            found = self.solution.format_map({key: value for key, value in known.items() if isinstance(value, str)})
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"task {task.id!r}: solution = {self.solution!r} cannot be filled in ({error}); expected a text with "
                "{answer} or {solution}, which the task must have"
            ) from error
        if not found.strip():
            raise DataError(
                f"task {task.id!r} has no solution to be explained; expected an answer or a worked solution"
            )
        return found

    def _explanation(self, task: Task) -> str | None:
        """A recorded explanation; None where the task has none. The solution is never taken for one. What stands before
        a mark may be empty: there was nothing to explain."""
        found = task.meta.get(self.explanation)
        if not isinstance(found, str) or not found.strip():
            return None
        if self.until is None:
            return found.strip()
        before, mark, _ = found.rpartition(self.until)
        return before.strip() if mark else None


def _asked(messages: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """The conversation with this system message before it, unless it has none to be given or one of its own."""
    return messages if not system or messages[0].role == "system" else (Message("system", system), *messages)


ROLES = ("teacher", "student")


def teaching(
    tasks: Taskset,
    *,
    role: str = "teacher",
    tags: str | Tags = "s1",
    solution: str = "{solution}",
    explanation: str = "reasoning_trace",
    until: str | None = None,
    system: str | None = None,
    verifier: Verifier | None = None,
    tool: Tool | None = None,
) -> Tasks:
    """Tasks of another taskset as lessons for a teacher, or as a student is asked them and shown solutions.

    tasks        in a config the name of another table of tasks.
    role         "teacher": question and solution are given, the explanation is to be written. "student": the question
                 in the layout in which explanations are learned.
    solution     what is explained: a text with `{solution}` (the worked solution, or the answer where there is none) or
                 `{answer}`.
    explanation  the column with recorded explanations, which `sft` learns. A task without one has no demonstration;
                 loaders that take the solution in its place teach to copy it.
    until        of that column, only what stands before its last such mark ("#" of a chain that ends in "# 3").
    system       in place of the tags' own system message; "" for none.

    The verifier of a teacher's tasks says whether the explanation is closed, that of a student's is the tasks' own.
    Raises UnknownName for an unknown role or set of tags, ConfigError for tasks that are no taskset.
    """
    if role not in ROLES:
        raise UnknownName("role", role, ROLES)
    if isinstance(tags, str):
        if tags not in TAGS:
            raise UnknownName("set of tags", tags, TAGS)
        tags = TAGS[tags]
    if not isinstance(tasks, Taskset):
        raise ConfigError(
            f"teaching: got tasks={tasks!r}; expected a taskset, in a config the name of a table of tasks"
        )
    if system is not None:
        tags = replace(tags, teacher=system) if role == ROLES[0] else replace(tags, student=system)
    made = Wrapped(tasks, role == "teacher", tags, solution, explanation, until)
    own = Closed(tags.closing) if made.teacher else tasks.verifier
    name = f"{tasks.name}/{'taught' if made.teacher else 'learned'}"
    return Tasks(name, Lazy(len(tasks), made), verifier or own, tool or (None if made.teacher else tasks.tool))
