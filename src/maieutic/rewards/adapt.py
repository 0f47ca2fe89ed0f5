"""Reward functions that people have already, recognised by their parameters alone.

    family              what its users write                                        one call judges
    plain               f(prompt, completion, answer, task), any of them            a completion
    course              f(prompt, completion, example)                              a completion
    verifiers           f(prompt, completion, answer, state, info, parser, task …)  a completion
    verifiers group     f(prompts, completions, answers, states, infos …)           a group
    verifiers rubric    an object with `funcs` and `weights`, or with `rubrics`     a group
    TRL                 f(prompts, completions, completion_ids, **columns)          a group
    verl                compute_score(data_source, solution_str, ground_truth …)    a completion
    verl batch          compute_score(data_sources, solution_strs, ground_truths …) a group
    OpenRLHF            reward_func(queries, prompts, labels)                       a group
    reasoning-gym       an object with `score_answer`, or f(answer, entry)          a completion

All but objects may be `async`. Names decide, never the order of parameters. Signatures as of TRL 1.16, verifiers 0.1
(`verifiers.Rubric`), verl 0.6, OpenRLHF 0.9 and reasoning-gym 0.1.25.

Whether a function wants texts or conversations (lists of messages) its annotations say; where they do not, its code
does: what reads a "content" or a "role", itself or in a function of its own module, wants conversations. A text of a
prompt is that of the last user message.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from maieutic.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Family:
    """A way to write rewards: its name, how its users write it, and whether one call judges a whole group."""

    name: str
    form: str
    group: bool = False


PLAIN = Family("plain", "f(prompt, completion, answer, task), any of these")
COURSE = Family("course", "f(prompt, completion, example)")
VERIFIERS = Family("verifiers", "f(prompt, completion, answer, state, info, parser, task)")
VERIFIERS_GROUP = Family("verifiers group", "f(prompts, completions, answers, states, infos, tasks)", group=True)
RUBRIC = Family("verifiers rubric", "an object with funcs and weights", group=True)
TRL = Family("TRL", "f(prompts, completions, completion_ids, **columns)", group=True)
VERL = Family("verl", "compute_score(data_source, solution_str, ground_truth, extra_info=None)")
VERL_BATCH = Family(
    "verl batch", "compute_score(data_sources, solution_strs, ground_truths, extra_infos)", group=True
)  # fmt: skip
OPENRLHF = Family("OpenRLHF", "reward_func(queries, prompts, labels)", group=True)
GYM = Family("reasoning-gym", "an object with score_answer(answer, entry), or that function")

FAMILIES = (PLAIN, COURSE, VERIFIERS, VERIFIERS_GROUP, RUBRIC, TRL, VERL, VERL_BATCH, OPENRLHF, GYM)

#: Parameters that only one family has. Those of the second table may be columns of a data set beside the first's.
DECISIVE: Mapping[Family, frozenset[str]] = {
    TRL: frozenset({"completions", "completion_ids"}),
    OPENRLHF: frozenset({"queries"}),
    VERL: frozenset({"solution_str", "model_output"}),
    VERL_BATCH: frozenset({"solution_strs"}),
}
TELLING: Mapping[Family, frozenset[str]] = {
    COURSE: frozenset({"example"}),
    GYM: frozenset({"entry"}),
    VERIFIERS: frozenset({"state", "info", "parser"}),
}
#: Lists that verifiers hands to group functions and TRL does not; and what TRL hands over and verifiers does not.
_PLURAL = frozenset({"states", "infos", "answers", "tasks"})
_TRL_ONLY = frozenset({"completion_ids", "trainer_state", "log_extra", "log_metric", "environments"})

#: What a family hands over by these names. Other parameters are columns (TRL), objects beside the function
#: (verifiers), or refused unless they have a default.
KNOWN: Mapping[Family, frozenset[str]] = {
    PLAIN: frozenset({"prompt", "completion", "answer", "task"}),
    COURSE: frozenset({"prompt", "completion", "example", "answer", "task"}),
    VERIFIERS: frozenset({"prompt", "completion", "answer", "state", "info", "parser", "task"}),
    VERIFIERS_GROUP: frozenset({"prompts", "completions", "parser"}) | _PLURAL,
    VERL: frozenset({"data_source", "solution_str", "model_output", "ground_truth", "extra_info"}),
    VERL_BATCH: frozenset({"data_sources", "solution_strs", "ground_truths", "extra_infos"}),
    OPENRLHF: frozenset({"queries", "prompts", "labels"}),
    GYM: frozenset({"answer", "entry"}),
}


@dataclass(frozen=True, slots=True)
class Form:
    """How one reward is called: its family, the parameters it names, and what it wants to see.

    `rest`: it takes other keywords too. `asynchronous`: calls are awaited. `conversational`: prompts and completions
    are lists of messages, not texts; `why` says what told so.
    """

    family: Family
    parameters: tuple[str, ...] = ()
    rest: bool = False
    asynchronous: bool = False
    conversational: bool = False
    why: str = ""

    @property
    def concurrent(self) -> bool:
        """Whether the completions of a group are judged by concurrent calls."""
        return self.asynchronous and not self.family.group

    def __str__(self) -> str:
        seen = f"{'conversations' if self.conversational else 'texts'} ({self.why})" if self.why else "texts"
        called = "one call a group" if self.family.group else "one call a completion"
        return f"{self.family.name}: {called}{', awaited' if self.asynchronous else ''}; sees {seen}"


def recognise(found: Any, name: str, conversational: bool | None = None) -> Form:
    """How to call what `name` names. `conversational`: what it wants to see, where it was said.

    Raises ConfigError, with the families, for what fits none of them or more than one.
    """
    if rubrics_of(found):
        return Form(RUBRIC, conversational=conversational is not False, why="verifiers has conversations")
    if not callable(found) or isinstance(found, type):
        if callable(getattr(found, "score_answer", None)):
            return Form(GYM, ("answer", "entry"))
        raise ConfigError(
            f"reward {name!r}: got {_kind(found)}, expected a function.{_forms()}Remedy: name one of these"
        )
    try:
        signature = inspect.signature(found)
    except ValueError as error:
        raise ConfigError(f"reward {name!r}: its parameters cannot be read. Remedy: wrap it in a function") from error
    parameters = signature.parameters
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    awaited = is_asynchronous(found)
    said, why = _conversational(found, parameters, conversational)
    family = _family(name, parameters, told=rest or said)
    named = tuple(n for n, p in parameters.items() if p.kind is not p.VAR_KEYWORD)
    taken = _taken(found, name, family, parameters)
    texts = family in (VERL, VERL_BATCH, OPENRLHF, GYM)
    return Form(family, tuple(n for n in named if n in taken), rest, awaited, said and not texts, "" if texts else why)


def rubrics_of(found: Any) -> list[tuple[list[Callable[..., Any]], list[float], dict[str, Any]]]:
    """(functions, their weights, objects that they may ask for) of each rubric in a verifiers Rubric or RubricGroup, or
    in an environment that holds one; empty for anything else."""
    found = found if _pair(found) or hasattr(found, "rubrics") else getattr(found, "rubric", found)
    inner = getattr(found, "rubrics", None)
    if isinstance(inner, list | tuple):
        return [each for rubric in inner for each in rubrics_of(rubric)]
    pair = _pair(found)
    if pair is None:
        return []
    objects = dict(getattr(found, "class_objects", None) or {})
    if getattr(found, "parser", None) is not None:
        objects.setdefault("parser", found.parser)
    return [(*pair, objects)]


def _pair(found: Any) -> tuple[list[Callable[..., Any]], list[float]] | None:
    """Functions and weights of a rubric: its attributes were called otherwise before verifiers 0.1.8."""
    for functions, weights in (("funcs", "weights"), ("reward_funcs", "reward_weights")):
        given = getattr(found, functions, None)
        if isinstance(given, list | tuple) and given and all(map(callable, given)):
            weighed = list(getattr(found, weights, None) or [1.0] * len(given))
            return (list(given), weighed) if len(weighed) == len(given) else None
    return None


def is_asynchronous(found: Any) -> bool:
    """Whether calling it gives something to await."""
    plain = inner_function(found)
    return inspect.iscoroutinefunction(found) or inspect.iscoroutinefunction(plain)


def inner_function(found: Any) -> Any:
    """The function inside partials, decorators that say what they wrap, bound methods and callable objects."""
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(found) if callable(found) else found
    if not inspect.isroutine(found):
        found = vars(type(found)).get("__call__", found)
    return getattr(found, "__func__", found)


def _family(name: str, parameters: Mapping[str, inspect.Parameter], told: bool) -> Family:
    names = set(parameters)
    for p in parameters.values():
        if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL):
            raise ConfigError(
                f"reward {name!r}: got parameter {str(p)!r}, which has no name to call it by.{_forms()}"
                "Remedy: name its parameters as one of these does"
            )
    for table in (DECISIVE, TELLING):
        fitting = [family for family, marks in table.items() if names & marks]
        if len(fitting) > 1:
            told_by = " and ".join(f"{f.name} ({', '.join(sorted(names & table[f]))})" for f in fitting)
            raise ConfigError(
                f"reward {name!r}: its parameters ({', '.join(parameters)}) fit more than one family: {told_by}."
                f"{_forms()}Remedy: take the parameters of one of them"
            )
        if fitting:
            plural = fitting[0] is TRL and names & _PLURAL and not names & _TRL_ONLY
            return VERIFIERS_GROUP if plural else fitting[0]
    if names & _PLURAL:
        return VERIFIERS_GROUP
    if "prompts" in names:
        return TRL
    return VERIFIERS if told and "completion" in names and not _is_ours(parameters) else PLAIN


def _is_ours(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether it asks for `task` as maieutic has it, which an annotation can say."""
    task = parameters.get("task")
    return task is not None and "Task" in str(getattr(task.annotation, "__name__", task.annotation))


def _taken(found: Any, name: str, family: Family, parameters: Mapping[str, inspect.Parameter]) -> set[str]:
    """The parameters that are filled. Raises ConfigError for one that nobody can fill."""
    if family is TRL:
        return set(parameters)
    known = KNOWN[family]
    beside = getattr(inner_function(found), "__globals__", {})
    taken = set()
    for n, p in parameters.items():
        asks = p.default is p.empty and p.kind is not p.VAR_KEYWORD
        if n in known or (asks and family in (VERIFIERS, VERIFIERS_GROUP) and n in beside):
            taken.add(n)
        elif asks or (family is PLAIN and n not in known):
            raise ConfigError(
                f"reward {name!r}: got parameter {str(p)!r}; expected any of {', '.join(sorted(known))} "
                f"(it was taken for the family {family.name!r}).{_forms()}Remedy: rename it, give it a default where "
                "the family leaves it out, or close over what else the function needs"
            )
    return taken


def _forms() -> str:
    shown = "".join(f"\n  {family.name:<17} {family.form}" for family in FAMILIES)
    return f" Rewards are recognised by the names of their parameters:{shown}\n"


def _kind(found: Any) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__


def _conversational(
    found: Any, parameters: Mapping[str, inspect.Parameter], said: bool | None
) -> tuple[bool, str]:  # fmt: skip
    if said is not None:
        return said, "as told"
    for name in ("completion", "completions"):
        annotation = parameters[name].annotation if name in parameters else inspect.Parameter.empty
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "") + str(annotation)
        if annotation is not inspect.Parameter.empty and text not in ("", "list", "List"):
            if any(word in text for word in ("dict", "Dict", "Message")):
                return True, f"{name} is annotated so"
            if "str" in text:
                return False, f"{name} is annotated so"
    word = next((word for word in _words(inner_function(found), set()) if word in _SPOKEN), None)
    return (True, f"it reads {word!r}") if word else (False, "it reads no message")


_SPOKEN = frozenset({"content", "role", "get_assistant_messages"})


def _words(function: Any, seen: set[int]) -> Iterator[str]:
    """Strings and attributes in a function's code, and in that of functions of the same module which it names."""
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return
    yield from _words_of_code(code, seen)
    beside = {**function.__globals__, **_enclosed(function)}
    for name in _names(code):
        value = beside.get(name)
        if isinstance(value, str):
            yield value
        elif callable(value):
            plain = inner_function(value)
            if getattr(plain, "__module__", None) == function.__module__:
                yield from _words(plain, seen)


def _words_of_code(code: types.CodeType, seen: set[int]) -> Iterator[str]:
    seen.add(id(code))
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _words_of_code(constant, seen)
        else:
            yield from (
                each for each in (constant if isinstance(constant, tuple) else (constant,)) if type(each) is str
            )


def _names(code: types.CodeType) -> Iterator[str]:
    yield from (*code.co_names, *code.co_freevars)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _enclosed(function: Any) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or ())
    return {name: cell.cell_contents for name, cell in cells if _filled(cell)}


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:  # a name that is bound later
        return False
