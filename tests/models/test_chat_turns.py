"""Conversations of several turns in tokens: what a player appends is what the template would have written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maieutic.models.causal import load_tokenizer
from maieutic.models.chat import ChatFormat, chat_format
from maieutic.models.small import SmallModel, build_small
from maieutic.play import Player
from maieutic.protocols import Completion, Reply
from maieutic.types import Finish, Message, Rollout, Score, Task

CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|stop|>\n\n{% endif %}"
)
MARKS = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>"]
#: Letters, spaces, line ends and a character of several bytes: what merges of a tokenizer go across.
TEXT = st.text(alphabet="ab 1\n<>é", max_size=8)


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatFormat]:
    folder = tmp_path_factory.mktemp("turns") / "bpe"
    build_small(
        folder, SmallModel(layers=1, width=32), ["ab 1 ab\nuser assistant"] * 3, tokenizer="bpe", vocabulary_size=280
    )
    made = {}
    for name, template in {"chatml": CHATML, "llama": LLAMA, "plain": None}.items():
        tokenizer: Any = load_tokenizer(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
        tokenizer.chat_template = template
        made[name] = chat_format(tokenizer, "auto" if template else "plain")
    return made


class Writes:
    """Writes token by token what it is given, not as the tokenizer would: every byte alone."""

    def __init__(self, chat: ChatFormat, turns: list[str], whole: bool) -> None:
        self.chat, self.turns, self.whole = chat, turns, whole

    async def sample(self, prompt_tokens, params, n):
        text = self.turns[int(params.key.rpartition("/")[2])]
        pieces = [text] if self.whole else list(text)
        tokens = (*(token for piece in pieces for token in self.chat.encode(piece)), self.chat.end_id)
        return [Completion(tokens, (True,) * len(tokens), (-0.5,) * len(tokens), Finish.STOP)]


class Says:
    """An environment that says these things, one after each turn."""

    name, at_once = "says", True

    def __init__(self, replies: list[str]) -> None:
        self.replies, self.max_turns = replies, len(replies) + 1
        self.opening = (Message("user", "ab"),)
        self.turns: list[str] = []

    async def start(self, task, seed):
        return self

    async def step(self, message):
        self.turns.append(message.content)
        said = self.replies[len(self.turns) - 1] if len(self.turns) <= len(self.replies) else ""
        return Reply((Message("user", said),))

    async def score(self):
        return Score(1.0)

    async def close(self): ...


def played(chat: ChatFormat, turns: list[str], replies: list[str], whole: bool) -> tuple[Rollout, Says]:
    async def nothing(task, rollouts):
        return []

    environment = Says(replies)
    player = Player(Writes(chat, turns, whole), chat, nothing, environment, 10_000)
    return asyncio.run(player.group(Task("t", ()), 1, 0)).rollouts[0], environment


@pytest.mark.parametrize("name", ["chatml", "llama", "plain"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_sampled_tokens_stay_and_what_is_said_is_written_once(chats, name, data):
    chat = chats[name]
    replies = data.draw(st.lists(TEXT, max_size=3), label="replies")
    turns = data.draw(st.lists(TEXT, min_size=len(replies) + 1, max_size=len(replies) + 1), label="turns")
    rollout, environment = played(chat, turns, replies, whole=False)
    at = len(chat.prompt(environment.opening))
    assert rollout.tokens[:at] == chat.prompt(environment.opening)
    for number, turn in enumerate(turns):
        own = (*(token for piece in turn for token in chat.encode(piece)), chat.end_id)
        assert rollout.tokens[at : at + len(own)] == own  # byte by byte, as it was sampled
        assert all(rollout.mask[at : at + len(own)])
        at += len(own)
        if number < len(replies):
            said = chat.continuation([Message("user", replies[number])])
            assert rollout.tokens[at : at + len(said)] == said
            assert not any(rollout.mask[at : at + len(said)])
            at += len(said)
    assert at == len(rollout.tokens)
    assert environment.turns == turns  # and it hears what was written
    roles = [span.role for span in rollout.spans for _ in range(span.start, span.stop)]
    assert [role == "assistant" for role in roles] == list(rollout.mask)
    assert [s.text for s in rollout.spans if s.role == "environment"] == replies


@pytest.mark.parametrize("name", ["chatml", "llama"])
def test_a_conversation_in_the_tokenizers_own_tokens_is_the_rendered_one(chats, name):
    """Where the model happens to write as the tokenizer would, the episode is the template's conversation, to its end
    of the last turn, with the same mask."""
    chat = chats[name]
    turns, replies = ["1 ab", "ab ab", "1"], ["a b", "é"]
    rollout, _ = played(chat, turns, replies, whole=True)
    messages = [Message("user", "ab")]
    for turn, reply in zip(turns, [*replies, None]):
        messages += [Message("assistant", turn), *([Message("user", reply)] if reply else [])]
    whole = chat.render(messages)
    assert whole.tokens[: len(rollout.tokens)] == rollout.tokens
    assert whole.mask[: len(rollout.tokens)] == rollout.mask
