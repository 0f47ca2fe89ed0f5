"""A tool inside a completion, as a sampler sees it: token ids in, token ids out.

    the model writes   3 * 4 =        the tool adds   12        the model goes on   apples
                             └─ trigger                └─ inserted with `mask` False

The tool reads and writes text; the sampler only knows tokens. Training and evaluation both build the bridge here, so
that a model is evaluated with exactly the tool it was trained with.
"""

from __future__ import annotations

from collections.abc import Sequence

from maieutic.errors import ConfigError, ModelError
from maieutic.protocols import Chat, Interject, Tool


def interjection(chat: Chat, tool: Tool | None) -> tuple[Interject | None, frozenset[int]]:
    """`Sampling.interject` and `Sampling.interject_ids` that let `tool` write into a completion; (None, {}) without.

    The tool is asked only where the text so far really ends in its trigger: a token of `interject_ids` may end in the
    trigger's last characters after other text. Raises ConfigError for an empty trigger, and ModelError when no token
    of the model can end in the trigger, since the tool would then silently never be asked.
    """
    if tool is None:
        return None, frozenset()
    trigger = tool.trigger
    if not trigger:
        raise ConfigError("a tool: got an empty trigger, expected the text after which it writes, for example '='")
    ids = chat.tokens_ending(trigger)
    if not ids:
        raise ModelError(
            f"a tool with trigger {trigger!r}: no token of this model can end in it, so the tool would never be asked; "
            "choose a trigger that the tokenizer can write"
        )

    def interject(tokens: Sequence[int]) -> Sequence[int]:
        text = chat.decode(tokens)
        if not text.endswith(trigger):
            return ()
        reply = tool(text)
        return chat.encode(reply) if reply else ()

    return interject, ids
