"""Rewards of Wordle by name: `rewards = { "wordle:format" = 1.0, "wordle:guess_value" = 1.0, "wordle:binary" = 1.0 }`.

Each judges the one reply of a snapshot; of a game (`tasks.wordle`, `reward = {}`) every turn, and is the mean over the
turns, but for `wordle:binary`, which says whether the last one found the secret. What they are is in
`maieutic.wordle.judge`. The total is their weighted sum, and each is recorded by its name.

A reply that the prompt has begun (`<think>` in a last message by the assistant) is judged with that beginning;
`prefilled` says that the chat template writes `<think>` itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from maieutic.errors import DataError
from maieutic.protocols import Reward
from maieutic.rewards.lift import unscorable
from maieutic.types import Finish, Rollout, Score, Task
from maieutic.wordle import judge
from maieutic.wordle.judge import Said
from maieutic.wordle.rules import Turn, feedback, parse_history
from maieutic.wordle.talk import Layout, begun, layout_of
from maieutic.wordle.words import WordList, word_list_at


def binary(prefilled: bool = False) -> Reward:
    """1 where the secret was guessed, at last, else 0."""
    return _reward(judge.binary, prefilled, last=True)


def partial_credit(prefilled: bool = False) -> Reward:
    """0.2 a letter in place, 0.1 a letter elsewhere."""
    return _reward(judge.partial_credit, prefilled)


def layout_value(prefilled: bool = False) -> Reward:
    """0 without the form that was asked for, 0.1 not five letters, 0.5 not a word of the list, else 1."""
    return _reward(judge.layout_value, prefilled)


def uses_previous_feedback(prefilled: bool = False, duplicates: bool = True, solved: float | None = None) -> Reward:
    """What guesses make of the marks so far, letter by letter; `duplicates` and `solved` as in `wordle.judge`."""
    judged = partial(judge.uses_previous_feedback, duplicates=duplicates, solved=solved)
    return _reward(judged, prefilled)


def guess_value(prefilled: bool = False, last: bool = True) -> Reward:
    """The share of what is unknown that the guess is expected to reveal; `last`: the only word left is worth 1."""
    return _reward(partial(judge.value, last=last), prefilled)


def consistent(prefilled: bool = False) -> Reward:
    """1 for a word of the list that may be the secret, after all that was said, else 0."""
    return _reward(judge.consistent_guess, prefilled)


#: Name in a config → what makes the reward.
WORDLE: dict[str, Callable[..., Reward]] = {
    "wordle:binary": binary,
    "wordle:partial_credit": partial_credit,
    "wordle:format": layout_value,
    "wordle:uses_previous_feedback": uses_previous_feedback,
    "wordle:guess_value": guess_value,
    "wordle:consistent": consistent,
}


def _reward(value: Callable[[Said], float], prefilled: bool, last: bool = False) -> Reward:
    def score(task: Task, rollout: Rollout) -> Score:
        if rollout.finish is Finish.ERROR:
            return unscorable(rollout)
        said = replies(task, rollout, prefilled)
        worth = value(said[-1]) if last else judge.mean([value(each) for each in said])
        return Score(
            worth, correct=said[-1].guess == said[-1].secret if last else None, answer=said[-1].guess if last else None
        )

    async def wordle(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        return [score(task, rollout) for rollout in rollouts]

    return wordle


def replies(task: Task, rollout: Rollout, prefilled: bool = False) -> list[Said]:
    """The replies of a rollout, each in the state of the game in which it was given; at least one.

    Raises DataError for a task that is none of Wordle.
    """
    words, history, layout = _state(task)
    head = begun(task) or ("<think>" if prefilled else "")
    found: list[Said] = []
    for text in _texts(rollout):
        whole = head + text
        said = Said(layout.read(whole), layout.formed(whole), history, str(task.answer), words)
        found.append(said)
        if said.valid:
            history = (*history, (str(said.guess), feedback(said.secret, str(said.guess))))
    return found


def _state(task: Task) -> tuple[WordList, tuple[Turn, ...], Layout]:
    reference, history = task.meta.get("word_list"), task.meta.get("past_guess_history")
    if not isinstance(reference, str) or history is None or task.answer is None:
        raise DataError(
            f"task {task.id!r} has no word_list, past_guess_history and answer; expected a task of wordle for a reward "
            "of wordle"
        )
    layout = layout_of(str(task.meta.get("layout", "tags")))
    return word_list_at(reference), parse_history(history, task.id), layout


def _texts(rollout: Rollout) -> list[str]:
    """What the model said, turn by turn."""
    if not any(span.role == "environment" for span in rollout.spans):
        return [rollout.text]
    texts = [""]
    for span in rollout.spans:
        if span.role == "environment":
            texts.append("")
        elif span.role in ("assistant", "tool"):
            texts[-1] += span.text
    return texts
