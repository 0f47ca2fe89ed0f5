"""A demonstration of several turns: a game that somebody else played, as the tokens of one who plays it.

`task.meta["demonstrated_turns"]` are pairs (role, text): the player's turns ("assistant") and between them what the
environment said ("user"). The tokens are those of an episode (`episodes`), with `mask` False on what was said, so that
one who learns from them meets at play what it has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from maieutic.environments.episodes import Transcript, dialogue
from maieutic.errors import DataError
from maieutic.protocols import Chat, Completion
from maieutic.types import Finish, Message, Rollout, Task

#: Where in a task's `meta` the turns are.
TURNS = "demonstrated_turns"


def turns_shown(task: Task) -> tuple[Message, ...] | None:
    """The turns that a task demonstrates; None where it has none. Raises DataError for what is no game of turns."""
    turns = task.meta.get(TURNS)
    if turns is None:
        return None
    try:
        said = tuple(Message(str(role), str(text)) for role, text in turns)
    except (TypeError, ValueError):
        said = ()
    if len(said) % 2 == 0 or any((m.role == "assistant") != (i % 2 == 0) for i, m in enumerate(said)):
        raise DataError(
            f"task {task.id!r}: got {str(turns)[:200]} as {TURNS}; expected pairs (role, text) "
            "of the assistant and the user by turns, the first and the last of the assistant"
        )
    return said


def demonstrated_episode(task: Task, turns: Sequence[Message], chat: Chat) -> Rollout:
    """The rollout of one who played so. Log-probs are 0: nobody sampled it."""
    talk = dialogue(chat)
    made = Transcript(talk.prompt(task.prompt))
    for turn in turns:
        if turn.role == "assistant":
            tokens = talk.completion(turn.content)
            made.turn(Completion(tokens, (True,) * len(tokens), (0.0,) * len(tokens), Finish.STOP), talk)
        else:
            made.reply(talk.continuation((turn,)), (turn,))
    start = made.spans[0].stop
    text, spans = talk.decode(made.tokens[start:]), tuple(made.spans)
    return Rollout(task.id, tuple(made.tokens), tuple(made.mask), tuple(made.logprobs), Finish.ENVIRONMENT, text, spans)
