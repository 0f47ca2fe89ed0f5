"""Budget forcing: a model that wants to stop thinking is made to go on, and one that does not is made to answer.

    10 - 4 = 6 ; 6 / 2 = 4 ; # …    ─►    10 - 4 = 6 ; 6 / 2 = 4 ; Wait 10 - 4 = 6 ; 6 / 2 = 3 ; # 3
                             └ taken away                        └ inserted                        └ after `times`

s1 (arXiv 2501.19393, §3.1) as a machine of two states, on tokens:

    THINK    write until the model ends its thinking (the end delimiter, or a stop token), or the budget does
             it ended, `ignored` < `times`    take its end away, insert the ignore string, THINK
             it ended otherwise               insert the answer delimiter, ANSWER
             the budget ended                 insert the hurried answer delimiter, ANSWER
    ANSWER   write until a stop token

What follows an ignore string begins with a token that ends nothing (`Sampling.not_first`), else a model that is sure of
itself would stop at once. A delimiter that is one token stops as that; any other is looked for in the text. Inserted
tokens have `mask` False and count as thinking. Ids beyond the tokenizer's, of which padded embeddings have some, are
dropped before anything is written after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

from maieutic.errors import ConfigError, ModelError
from maieutic.protocols import Chat, Completion, Sampler
from maieutic.search.draft import Draft, vocabulary_size
from maieutic.search.found import Candidate, Cost, Found, Question, Read
from maieutic.search.prefix import going_on
from maieutic.search.spending import Ask, Purse
from maieutic.types import Finish

#: Ignore strings that s1 compares (none: only the end is taken away), and how often.
IGNORED, TIMES = ("", "Alternatively", "Hmm", "Wait"), (1, 2, 4, 6)
#: Tokens that are kept for the answer, though no more than half of the budget.
ANSWER_TOKENS = 100


@dataclass(frozen=True, slots=True)
class Form:
    """How thinking ends and answers begin. `hurried` is inserted where the budget ends the thinking; a newline at its
    beginning is left out where there is one already.

    >>> Form("</think>", "</think>", "\\n</think>\\nFinal Answer:")
    """

    end: str
    answer: str
    hurried: str


#: Forms by name. Any other text is a marker: the answer is what follows it, as `#` in "… 6 / 2 = 3 ; # 3".
FORMS: Mapping[str, Form] = {
    "think": Form("</think>", "</think>", "\n</think>\nFinal Answer:"),
    "s1": Form("<|im_start|>", "<|im_start|>answer", "\n<|im_start|>answer\nFinal Answer:"),
}


def form_of(name: str, chat: Chat) -> Form:
    """The form of that name, or of a marker; "auto" is "think" where `</think>` is one token, else the marker `#`."""
    if name == "auto":
        end = _tokens(chat, FORMS["think"].end)
        name = "think" if len(end) == 1 and chat.decode(end).strip() in (FORMS["think"].end, "") else "#"
    return FORMS.get(name) or Form(name, name, name)


def auto_budget(tokens: int, longest_prompt: int, delimiters: int, answer: int = ANSWER_TOKENS) -> int:
    """s1's "auto": tokens for thinking = all that there are − longest prompt − delimiters − those for the answer.

    >>> auto_budget(32768, 500, 12)
    32156
    """
    return tokens - longest_prompt - delimiters - answer


@dataclass(frozen=True)
class Wait:
    """One completion whose thinking is prolonged `times` times with `ignore`, and ended where its budget ends.

    `form` is a name of `FORMS` or a marker; "auto" is "think" for a model whose `</think>` is one token, else the
    marker `#`. `thinking` tokens are for thinking, ignore strings and taken-away ends included; None: all but the
    delimiters and `answer_tokens` (None: 100, at most half). The question's `max_tokens` limits the whole completion.

    Raises ModelError, when made, for strings that the model's tokenizer cannot write.
    """

    sampler: Sampler
    chat: Chat
    read: Read
    form: str = field(default="auto", kw_only=True)
    ignore: str = field(default="Wait", kw_only=True)
    times: int = field(default=2, kw_only=True)
    thinking: int | None = field(default=None, kw_only=True)
    answer_tokens: int | None = field(default=None, kw_only=True)
    name: ClassVar[str] = "wait"

    def __post_init__(self) -> None:
        if self.times < 0 or not self.form:
            raise ConfigError(f"wait: got times={self.times}, form={self.form!r}; expected 0 or more, and a form")
        if self.ignore and self.times:
            _written(self.chat, self.ignore, 'Take another (ignore = "Hmm"), or none (ignore = "")')
        for text in dict.fromkeys((self._form.end, self._form.answer, self._form.hurried.lstrip("\n"))):
            _written(self.chat, text, f"Take one of {', '.join(FORMS)}, or the marker that stands before its answers")

    async def solve(self, question: Question, budget: int) -> Found:
        """See `Search`. Raises ConfigError for a budget that leaves nothing for thinking."""
        purse, draft = Purse(self.sampler, budget), Draft(self.chat, question.prompt, vocabulary_size(self.chat))
        thinking = self._thinking(question, budget)
        ended, ignored = await self._think(question, purse, draft, thinking)
        within = len(draft.tokens)
        if ended is not Finish.ERROR:
            await self._answer(question, purse, draft, ended)
        completion = draft.completion()
        text = self.chat.decode(completion.tokens)
        log = {"ended": str(ended), "ignored": ignored, "thinking": within, "budget": thinking}
        cost = purse.cost + Cost(inserted=draft.inserted)
        return Found((Candidate(completion, text, self.read(text)),), 0, cost, (log,))

    @cached_property
    def _form(self) -> Form:
        return form_of(self.form, self.chat)

    @cached_property
    def _ends(self) -> frozenset[int]:
        """The end delimiter as one token, where it is one."""
        ids = _tokens(self.chat, self._form.end)
        return frozenset(ids if len(ids) == 1 else ())

    def _thinking(self, question: Question, budget: int) -> int:
        total = min(budget, question.sampling.max_tokens)
        delimiters = max(len(_tokens(self.chat, text)) for text in (self._form.answer, self._form.hurried))
        answer = min(ANSWER_TOKENS, total // 2) if self.answer_tokens is None else self.answer_tokens
        room = auto_budget(total, 0, delimiters, answer)
        if room < 1:
            raise ConfigError(
                f"wait: got {total} tokens (the smaller of the budget and of what a completion may have), of which "
                f"{delimiters} are for delimiters and {answer} for the answer; expected at least one for thinking. "
                "Raise both, or lower answer_tokens"
            )
        return room if self.thinking is None else min(room, self.thinking)

    async def _think(self, question: Question, purse: Purse, draft: Draft, budget: int) -> tuple[Finish, int]:
        """Think, and say how it ended, STOP or LENGTH (or ERROR), and how many ends were ignored."""
        stops, end = question.sampling.stop_ids, self._form.end
        ignore = _tokens(self.chat, self.ignore) if self.ignore else ()
        ignored, fresh = 0, False
        while (room := budget - purse.cost.generated - draft.unchosen) > 0:
            barred = stops | self._ends if fresh else frozenset[int]()
            made = await _asked(question, purse, draft, room, stops | self._ends, barred, end)
            fresh = False
            if made.finish is not Finish.STOP:
                return made.finish, ignored
            stopped = made.tokens[-1] in stops and made.tokens[-1] not in self._ends
            left = budget - purse.cost.generated - draft.unchosen - len(ignore)
            if ignored < self.times and left > 0:
                self._take_away(draft, stopped)
                draft.insert(ignore)
                ignored, fresh = ignored + 1, True
                continue
            if stopped or not self._form.answer.startswith(end):
                self._take_away(draft, stopped)
            return Finish.STOP, ignored
        return Finish.LENGTH, ignored

    def _take_away(self, draft: Draft, stopped: bool) -> None:
        """The end: a stop token, the delimiter as a token, or as a text."""
        if stopped or draft.tokens[-1] in self._ends:
            draft.cut(len(draft.tokens) - 1)
        else:
            draft.cut_text(self._form.end)

    async def _answer(self, question: Question, purse: Purse, draft: Draft, ended: Finish) -> None:
        form = self._form
        if ended is Finish.LENGTH:
            newline = draft.text.endswith("\n") or not draft.tokens
            draft.insert(_tokens(self.chat, form.hurried.removeprefix("\n") if newline else form.hurried))
        elif draft.tokens and (draft.tokens[-1] in self._ends or draft.text.endswith(form.end)):
            if rest := form.answer.removeprefix(form.end):  # the model's own end is the delimiter's beginning
                draft.insert(_tokens(self.chat, rest))
        else:
            draft.insert(_tokens(self.chat, form.answer))
        room = min(purse.rest, question.sampling.max_tokens - len(draft.tokens))
        if room < 1:
            draft.finish = Finish.LENGTH
            return
        await _asked(question, purse, draft, room, question.sampling.stop_ids)


async def _asked(
    question: Question,
    purse: Purse,
    draft: Draft,
    room: int,
    stops: frozenset[int],
    barred: frozenset[int] = frozenset(),
    end: str = "",
) -> Completion:
    """What the model writes next, until a stop token or the text `end`, added to the draft."""
    own, before, chat = question.sampling, tuple(draft.tokens), draft.chat
    sampling = replace(
        going_on(own, before),
        max_tokens=room,
        stop_ids=stops,
        key=f"{own.key}/{draft.calls}" if draft.calls else own.key,
        not_first=barred,
    )
    if end:
        sampling = replace(
            sampling,
            until=lambda tokens: chat.decode((*before, *tokens)).endswith(end),
            until_ids=chat.tokens_ending(end),
        )
    [[made]] = await purse.sample([Ask((*draft.prompt, *draft.tokens), sampling)])
    return draft.add(made)


def _tokens(chat: Chat, text: str) -> tuple[int, ...]:
    try:
        return chat.encode(text)
    except KeyError:  # of a vocabulary that has no word for the unknown
        return ()


def _written(chat: Chat, text: str, remedy: str) -> None:
    """Raise ModelError unless the text is tokens that read back as it (special tokens may read as nothing)."""
    tokens = _tokens(chat, text)
    read = chat.decode(tokens) if tokens else "nothing"
    if not text.strip().endswith(read.strip()):
        raise ModelError(
            f"wait: {text!r} is not in this model's vocabulary: it reads back as {read!r}. {remedy}; a model that is "
            f"built from scratch can be given the words: [model.small] extra_words = [{text.strip()!r}, …]"
        )
