"""Messages ↔ tokens for one model, with spans and masks that are counted in tokens, never searched for in text.

    chat = chat_format(tokenizer, generation_config=model.generation_config)
    prompt = chat.prompt([Message("user", "What is 2 + 2?")])       BOS at most once, up to where the assistant writes
    chat.completion("4")                                            text and the token with which a turn ends
    chat.render(messages)                                           (tokens, spans, mask) of a whole conversation

The chat template belongs to the model and is used as it is. What a template must satisfy for training is the *prefix
property*: rendering more messages only appends tokens. Where it does not hold (templates that delete the thoughts of
earlier turns), `render` raises, because the learner would score tokens that no sampler ever saw.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from maieutic.errors import ModelError
from maieutic.models.chat_tools import as_users, knows_role, with_tools
from maieutic.types import Message, Span

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

#: Names of tags by which a completion is structured. Some tokenizers make them special tokens; they are text all the
#: same, and `decode` keeps them.
PROTOCOL_NAMES = ("think", "answer", "reasoning", "solution", "explanation", "tool_call", "tool_response", "scratchpad")
PROTOCOL_TAGS = frozenset(
    [f"<{slash}{name}>" for name in PROTOCOL_NAMES for slash in ("", "/")]
    + [f"<|{side}_of_{name}|>" for name in ("thought", "solution", "explanation") for side in ("begin", "end")]
)


class Rendered(NamedTuple):
    """A conversation of `T` tokens: the ids, a span for each message, and the mask (True on what the assistant wrote,
    the token that ends its turn included)."""

    tokens: tuple[int, ...]
    spans: tuple[Span, ...]
    mask: tuple[bool, ...]


class ChatFormat:
    """How one model's conversations are written in tokens. Made by `chat_format`; implements `protocols.Chat`.

    `stop_ids`  every token that ends a turn: those of the generation config, of the tokenizer and of the template.
    `end_id`    the one that the model's own turns end with; `completion` appends it.
    `plain`     no template: contents are joined by newlines, after a BOS token if the tokenizer adds one.
    `kept`      special tokens that `decode` leaves in the text.
    """

    stop_ids: frozenset[int]

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        extra_stop_ids: Iterable[int] = (),
        plain: bool = False,
        kept: Iterable[str] = PROTOCOL_TAGS,
    ) -> None:
        if not plain and not tokenizer.chat_template:
            raise ModelError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template; choose template = "
                '"plain" to join messages by newlines (base models), or give the path of a Jinja template file'
            )
        self.tokenizer = tokenizer
        self.plain = plain
        own = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        ends = [] if plain else _turn_ends(self)
        declared = sorted(set(extra_stop_ids))
        if not (ends or own or declared):
            raise ModelError(
                "no token ends a turn: neither the template, nor the tokenizer, nor the generation config names one; "
                "set tokenizer.eos_token, or eos_token_id in generation_config.json"
            )
        self.end_id: int = [*ends, *own, *declared][0]
        self.stop_ids = frozenset([*ends, *own, *declared])
        self.hidden = _hidden(tokenizer, frozenset(kept)) | self.stop_ids
        self._pieces: tuple[tuple[str, str], ...] = ()
        self._ending: dict[str, frozenset[int]] = {}

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens of the conversation up to where the assistant is to write.

        A last message of the assistant is the beginning of what it is to write, tokenised by itself: its turn stays
        open. Raises `ModelError` when the template refuses the messages (some know no system role).
        """
        if messages and messages[-1].role == "assistant":
            return (*self.prompt(messages[:-1]), *self.encode(messages[-1].content))
        if self.plain:
            return self._plain(messages)
        return self._template(messages, open_turn=True)

    def prompt_with_tools(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[int, ...] | None:
        """`prompt` with the schemas of tools where the template puts them; None where it knows no tools."""
        if self.plain:
            return None
        begun = messages[-1].content if messages and messages[-1].role == "assistant" else ""
        tokens = with_tools(self.tokenizer, messages[:-1] if begun else messages, tools)
        return None if tokens is None else (*tokens, *self.encode(begun))

    def completion(self, text: str) -> tuple[int, ...]:
        """Tokens of a finished assistant turn: the text and the token that ends it."""
        return (*self.encode(text), self.end_id)

    def continuation(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Tokens between the end of an assistant's turn and the start of its next one, when `messages` are said there.

        These are what an environment appends in a conversation of several turns. They include what the template writes
        after the token that ends a turn (often a newline). Taken from a made-up conversation, so that the tokens which
        the model really chose are never rendered again.
        """
        if self.plain:
            return self.encode("\n" + "\n".join(message.content for message in messages) + "\n")
        said = (Message("user", "a"), Message("assistant", "b"))
        before = self._template(said)
        after = self._template([*said, *messages], open_turn=True)
        end = _last(before, self.end_id) + 1
        if after[:end] != before[:end]:
            raise self._broken(before, after)
        return after[end:]

    def render(self, messages: Sequence[Message]) -> Rendered:
        """A whole conversation: tokens `[T]`, a span a message, and the mask `[T]` of the assistant's tokens.

        Spans follow each other without gaps. What the template writes before an assistant's words (the header that
        `prompt` ends with) belongs to the span before, what it writes after the end token to the span after; a last
        span of role "prompt" holds the rest, if any. Consecutive messages of others share a span where the template
        cannot be cut between them.

        Raises `ModelError` when the template lacks the prefix property.
        """
        tokens = self._plain(messages) if self.plain else self._template(messages)
        spans: list[Span] = []
        start = 0
        for index, message in enumerate(messages):
            stop = self._cut(tokens, messages, index, start)
            if stop is None:
                continue
            spans.append(Span(_span_role(message.role), start, stop))
            start = stop
        if start < len(tokens):
            spans.append(Span("prompt", start, len(tokens)))
        mask = [False] * len(tokens)
        for span in spans:
            if span.role == "assistant":
                mask[span.start : span.stop] = [True] * (span.stop - span.start)
        return Rendered(tokens, tuple(spans), tuple(mask))

    def encode(self, text: str) -> tuple[int, ...]:
        """Tokens of a piece of text in the middle of a turn, without special tokens."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of tokens without control tokens (BOS, end of turn, padding, …).

        Tags such as `<think>` stay even where they are special tokens, and so does the token for an unknown word: text
        that silently lost it could be judged correct.
        """
        shown = [token for token in tokens if token not in self.hidden]
        return str(self.tokenizer.decode(shown, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        """The ids of tokens after which a text can end in `trigger`.

        A superset, computed once for each trigger: tokens whose text ends with the trigger, or is a suffix of it, or
        ends in an incomplete character when the trigger ends in a character of several bytes. Look at the text itself
        before acting.
        """
        if not trigger:
            raise ValueError("got an empty trigger; expected the text after which a tool is asked, such as '='")
        if trigger not in self._ending:
            self._pieces = self._pieces or _pieces(self.tokenizer)
            partial = not trigger[-1].isascii()
            found = (
                token
                for token, readings in enumerate(self._pieces)
                if token not in self.hidden
                and any(
                    piece and (piece.endswith(trigger) or trigger.endswith(piece) or (partial and piece[-1] == "�"))
                    for piece in readings
                )
            )
            self._ending[trigger] = frozenset(found)
        return self._ending[trigger]

    def _plain(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Runs of messages by others joined by newlines, each assistant's turn closed by its end token."""
        tokens = list(_leading_bos(self.tokenizer))
        run: list[str] = []
        for index, message in enumerate(messages):
            if message.role != "assistant":
                run.append(message.content)
                continue
            tokens += self._plain_run(run, first=index == len(run))
            tokens += self.completion(message.content)
            run = []
        tokens += self._plain_run(run, first=len(run) == len(messages))
        if not tokens:
            raise ModelError(
                "a plain prompt without text has no token to start from, and this tokenizer has no BOS token to "
                "put there; give the prompt some text"
            )
        return tuple(tokens)

    def _plain_run(self, run: Sequence[str], *, first: bool) -> tuple[int, ...]:
        if not run:
            return ()
        text = "\n".join(run)
        return self.encode(text if first else f"\n{text}\n")

    def _template(self, messages: Sequence[Message], *, open_turn: bool = False) -> tuple[int, ...]:
        if not self._knows_tool_role and any(message.role == "tool" for message in messages):
            messages = as_users(messages)
        return tuple(_apply(self.tokenizer, messages, open_turn=open_turn, tokenize=True))

    @cached_property
    def _knows_tool_role(self) -> bool:
        return knows_role(self.tokenizer)

    def _cut(self, tokens: tuple[int, ...], messages: Sequence[Message], index: int, start: int) -> int | None:
        """Where the span of message `index`, begun at `start`, ends; None where the template cannot be cut there."""
        said, upcoming = messages[: index + 1], messages[index + 1 : index + 2]
        if messages[index].role == "assistant":
            shown = self._plain(said) if self.plain else self._template(said)
            stop = _last(shown, self.end_id, start) + 1
        elif upcoming and upcoming[0].role == "assistant":
            shown = self.prompt(said)
            stop = len(shown)
        else:
            return self._loose_cut(tokens, said)
        if tokens[:stop] != shown[:stop]:
            raise self._broken(shown[:stop], tokens)
        return stop

    def _loose_cut(self, tokens: tuple[int, ...], said: Sequence[Message]) -> int | None:
        try:
            shown = self._plain(said) if self.plain else self._template(said)
        except ModelError:  # e.g. a template that refuses a system message alone
            return None
        return len(shown) if tokens[: len(shown)] == shown else None

    def _broken(self, expected: Sequence[int], got: Sequence[int]) -> ModelError:
        at = next((i for i, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), len(got))
        return ModelError(
            "the chat template rewrites earlier turns when a conversation goes on: expected "
            f"{self.tokenizer.decode(expected[at : at + 8])!r} at token {at}, got "
            f"{self.tokenizer.decode(got[at : at + 8])!r}. Train on one row an assistant turn (render each beginning "
            "of the conversation on its own), or give a template file that keeps earlier turns as they were"
        )


def chat_format(
    tokenizer: PreTrainedTokenizerBase,
    template: str | Path = "auto",
    generation_config: GenerationConfig | None = None,
) -> ChatFormat:
    """The chat format of a tokenizer.

    template             "auto": the tokenizer's own template; "plain": no template; or the path of a Jinja file, which
                         is set on the tokenizer, so that a saved model keeps it.
    generation_config    of the model: its `eos_token_id` (one or several) join the stop ids.

    Raises `ModelError` when there is no template, or the file cannot be read.
    """
    declared = getattr(generation_config, "eos_token_id", None)
    extra = [declared] if isinstance(declared, int) else list(declared or ())
    if str(template) not in ("auto", "plain"):
        try:
            tokenizer.chat_template = Path(template).read_text(encoding="utf-8")
        except OSError as error:
            raise ModelError(
                f'got template {str(template)!r}; expected "auto", "plain" or a readable file: {error}'
            ) from error
    return ChatFormat(tokenizer, extra, plain=str(template) == "plain")


def lint(chat: ChatFormat) -> list[str]:
    """What is suspicious about a chat format, one sentence each; empty when nothing is."""
    found = []
    bos = chat.tokenizer.bos_token_id
    prompt = chat.prompt([Message("user", "a")])
    if bos is not None and prompt.count(bos) > 1:
        found.append(f"a prompt holds {prompt.count(bos)} BOS tokens; a template should write one")
    if bos is not None and bos not in prompt and _leading_bos(chat.tokenizer):
        found.append("the tokenizer adds a BOS token to text, but the chat template writes none")
    if chat.tokenizer.pad_token_id is not None and chat.tokenizer.pad_token_id in chat.stop_ids:
        found.append("the padding token also ends turns; padding must be told by length, never by its id")
    turns = [Message("user", "a"), Message("assistant", "<think>\nb\n</think>\nc"), Message("user", "d")]
    try:
        rendered = chat.render([*turns, Message("assistant", "e")])
    except ModelError as error:
        found.append(str(error))
    else:
        unfinished = [s for s in rendered.spans if s.role == "assistant" and rendered.tokens[s.stop - 1] != chat.end_id]
        if unfinished:
            found.append("the template closes no assistant turn; a model trained on it never learns to stop")
    return found


def _apply(tokenizer: Any, messages: Sequence[Message], *, open_turn: bool, tokenize: bool) -> Any:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(
            turns, add_generation_prompt=open_turn, tokenize=tokenize, return_dict=False
        )
    except TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise ModelError(
            f"the chat template refuses messages of roles [{roles}]: {error}. Use the roles it knows (a system "
            "message can be put at the head of the first user message), or give another template file"
        ) from error


def _turn_ends(chat: ChatFormat) -> list[int]:
    """The first special token that the template writes after an assistant's words, if it writes one."""
    word = "xyzzy"
    text = _apply(chat.tokenizer, [Message("user", "a"), Message("assistant", word)], open_turn=False, tokenize=False)
    after = chat.encode(text.rpartition(word)[2])
    special = _special(chat.tokenizer)
    return [token for token in after if token in special][:1]


def _special(tokenizer: Any) -> dict[int, str]:
    """Ids and texts of all special tokens, those added later included."""
    added = {token: entry.content for token, entry in tokenizer.added_tokens_decoder.items() if entry.special}
    return {**dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens)), **added}


def _hidden(tokenizer: Any, kept: frozenset[str]) -> frozenset[int]:
    return frozenset(
        token for token, text in _special(tokenizer).items() if text not in kept and token != tokenizer.unk_token_id
    )


def _pieces(tokenizer: Any) -> tuple[tuple[str, str], ...]:
    """The text of every token, alone and as it reads after another one (decoders may join with or strip a space)."""
    count = len(tokenizer)
    anchor = tokenizer.encode("a", add_special_tokens=False)[-1:]
    alone = tokenizer.batch_decode([[token] for token in range(count)], clean_up_tokenization_spaces=False)
    head = tokenizer.decode(anchor, clean_up_tokenization_spaces=False)
    after = tokenizer.batch_decode([[*anchor, token] for token in range(count)], clean_up_tokenization_spaces=False)
    return tuple((one, two.removeprefix(head)) for one, two in zip(alone, after))


def _leading_bos(tokenizer: Any) -> tuple[int, ...]:
    """The BOS token, if this tokenizer puts one before text."""
    head = tokenizer.encode("a")[:1]
    return tuple(head) if head and head[0] == tokenizer.bos_token_id else ()


def _last(tokens: Sequence[int], wanted: int, start: int = 0) -> int:
    """Index of the last `wanted` at or after `start`; the last index of all when there is none."""
    return next((i for i in range(len(tokens) - 1, start - 1, -1) if tokens[i] == wanted), len(tokens) - 1)


def _span_role(role: str) -> str:
    return role if role in ("assistant", "tool") else "prompt"
