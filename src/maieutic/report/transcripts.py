"""What the model wrote, cut into what it chose and what a tool inserted; of an episode, who said what, turn by turn.

The database holds a rollout's tokens with their spans, and its text; where in the text a span ends is told by the
tokenizer, which lies in the run's checkpoints. Without one the text is shown whole, with how much the tool wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maieutic.report.reading import RunView
from maieutic.run.records import StoredRollout
from maieutic.types import Message, Span

if TYPE_CHECKING:
    from tokenizers import Tokenizer


#: What a terminal or a browser would obey instead of showing: control characters and changes of direction.
UNSEEN = {
    **{i: 0x2400 + i for i in range(32) if chr(i) not in "\t\n"},
    0x7F: 0x2421,
    **dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD),
}


def visible(text: str) -> str:
    """The text, of the same length, with a visible sign for every character that would not be shown but obeyed.

    >>> visible("\x1b[2J")
    '␛[2J'
    """
    return text.translate(UNSEEN)


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a completion: `Piece("12", inserted=True)`. `speaker` is who begins to speak with it, in an episode:
    "model" or "environment"."""

    text: str
    inserted: bool = False
    speaker: str = ""


def shown_first(stored: StoredRollout) -> tuple[Message, ...]:
    """What the model read before it wrote: the task's prompt, or the opening of an episode that opened otherwise, or,
    of role "prompt", what its chat template made of both the opening and the tools."""
    for span in stored.rollout.spans[:1]:
        if span.role == "prompt" and (span.messages or span.text):
            return span.messages or (Message("prompt", span.text),)
    return stored.task.prompt


def find_tokenizer(view: RunView) -> Tokenizer | None:
    """The tokenizer of a run: from a checkpoint, its start, or the model's folder; None where none is there."""
    from tokenizers import Tokenizer

    folders = [*sorted((view.path / "checkpoints").glob("*/step-*/model")), view.path / "start"]
    if view.config.model.path is not None:
        folders.append(Path(view.config.model.path))
    for folder in folders:
        try:
            text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        except OSError:  # none there, or the checkpoint was removed just now
            continue
        return Tokenizer.from_str(text)
    return None


def pieces(stored: StoredRollout, tokenizer: Tokenizer | None) -> list[Piece]:
    """The completion's text in pieces that join to it; one where no tool wrote, or its part cannot be told. Of an
    episode, what was said, without the marks of the chat template."""
    rollout = stored.rollout
    if any(span.role == "environment" for span in rollout.spans):
        return _turns(rollout.spans)
    spans = [span for span in rollout.spans if span.role != "prompt"]
    if all(span.role == "assistant" for span in spans) or tokenizer is None:
        return [Piece(rollout.text)]
    start = spans[0].start
    found, at = [], 0
    for span in spans:
        end = (
            len(rollout.text) if span is spans[-1] else _end(rollout.text, rollout.tokens[start : span.stop], tokenizer)
        )
        if end is None or end < at:
            return [Piece(rollout.text)]
        found.append(Piece(rollout.text[at:end], inserted=span.role != "assistant"))
        at = end
    return [piece for piece in found if piece.text]


def _turns(spans: Sequence[Span]) -> list[Piece]:
    found, last = [], ""
    for span in spans:
        if span.role == "prompt":
            continue
        speaker = "environment" if span.role == "environment" else "model"
        found.append(Piece(span.text, span.role == "tool", speaker if speaker != last else ""))
        last = speaker
    return found


def inserted_tokens(stored: StoredRollout) -> int:
    """How many tokens of the completion a tool wrote. What an environment says between turns is shown as such."""
    return sum(span.stop - span.start for span in stored.rollout.spans if span.role == "tool")


def credit(stored: StoredRollout) -> str:
    """The advantages of the chosen tokens in a few words: `advantage +0.87`, `advantages −0.20 to +0.90`."""
    if stored.advantages is None:
        return ""
    chosen = [float(a) for a, mask in zip(stored.advantages, stored.rollout.mask) if mask]
    if not chosen:
        return ""
    low, high = min(chosen), max(chosen)
    if high - low <= 1e-6 * max(1.0, abs(high)):
        return f"advantage {high:+.2f}"
    return f"advantages {low:+.2f} to {high:+.2f}"


def judged(stored: StoredRollout) -> str:
    """`reward 1.1 (answer 1, format 0.1) · correct · stop · 24 tokens · advantage +0.87 · rl step 3 · task t/1`."""
    score, rollout = stored.score, stored.rollout
    parts = ", ".join(f"{name} {value:g}" for name, value in score.parts.items())
    words = {True: "correct", False: "wrong", None: ""}
    found = [
        "no reward" if score.reward is None else f"reward {score.reward:g}" + (f" ({parts})" if parts else ""),
        words[score.correct], rollout.finish.value, f"{rollout.completion_length} tokens", credit(stored),
        f"{stored.stage} step {stored.step}", f"task {stored.task.id}",
    ]  # fmt: skip
    return visible(" · ".join(word for word in found if word))


def _end(text: str, tokens: Sequence[int], tokenizer: Tokenizer) -> int | None:
    """Where in the text these first tokens of the completion end; None where their text is not how it begins."""
    for hide in (False, True):  # the text has tags such as <think>, which are special tokens, but no control tokens
        prefix = str(tokenizer.decode(list(tokens), skip_special_tokens=hide))
        if text.startswith(prefix):
            return len(prefix)
    return None
