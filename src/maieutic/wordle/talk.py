"""What is said in a game of Wordle: how it is asked, how a guess is written, how it is answered.

    "tags"     for language models: rules in the system message, <think>…</think> and <guess>WORD</guess>,
               feedback as C(✓) R(✓) A(✓) N(x) E(x)
    "compact"  for small models from scratch: a reply is one word, feedback is 1C✓ 2R✓ 3A✓ 4Nx 5Ex
    "letters"  the same with a reply that is spelled, C R A N E, for tokens that are letters: what is learned of a
               letter holds for every word that has it

A guess is upper-case, as the word lists are; `crane` is not a word of the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maieutic.errors import UnknownName
from maieutic.thoughts import outside_thoughts
from maieutic.types import Message, Task
from maieutic.wordle.rules import LENGTH, Turn, feedback, placed, rendered

SYSTEM = f"""You are playing Wordle, a game in which a secret word is to be found.

Rules:
- You have 6 guesses.
- The secret and every guess are common English words of {LENGTH} letters, written in upper case.
- After each guess you are told, for each of its letters, how it compares with the secret.

Marks:
- X(✓): the letter X is in the secret, at this place.
- X(-): the letter X is in the secret, at another place.
- X(x): the letter X is not in the secret, or not more often than already marked.

Example, with the secret BRISK:
Guess 1: STORM → {rendered("STORM", feedback("BRISK", "STORM"))}
Guess 2: BRAVE → {rendered("BRAVE", feedback("BRISK", "BRAVE"))}
Guess 3: BRISK → {rendered("BRISK", feedback("BRISK", "BRISK"))}

Think first, then write your guess, in exactly this form:
<think>your reasoning</think>
<guess>WORD</guess>"""

#: How a reply may be begun for the model: a snapshot's last message, by the assistant.
PREFILL = "Let me solve this step by step.\n<think>"


@dataclass(frozen=True)
class Layout:
    """How a game is talked about.

    `ask(history)` is the question with all past guesses in it, `answer(turn)` what a game says after a guess.
    `read(text)` is the guess of a reply, None where there is none; `formed(text)` whether the reply has the form that
    was asked for, whatever the guess is. `write(guess, thought)` is a reply.
    """

    name: str
    system: str | None
    ask: Callable[[Sequence[Turn]], str]
    answer: Callable[[Turn], str]
    read: Callable[[str], str | None]
    formed: Callable[[str], bool]
    write: Callable[[str, str], str]
    thinks: bool = True
    """Whether a reply has room for a thought."""

    def opening(self, history: Sequence[Turn] = ()) -> tuple[Message, ...]:
        """The question as messages."""
        head = () if self.system is None else (Message("system", self.system),)
        return (*head, Message("user", self.ask(history)))


def _ask(history: Sequence[Turn]) -> str:
    past = [f"Guess {i}: {guess} → {rendered(guess, marks)}" for i, (guess, marks) in enumerate(history, 1)]
    listed = "\n\nThis is what was guessed so far:\n" + "\n".join(past) if past else ""
    return f"Make a new {LENGTH}-letter guess.{listed}"


def _guess_block(text: str) -> str | None:
    """What is in the last <guess> block, if that ends the text and stands outside of thoughts."""
    said = outside_thoughts(text).rstrip()
    start = said.rfind("<guess>")
    if start < 0 or not said.endswith("</guess>"):
        return None
    found = said[start + len("<guess>") : -len("</guess>")].strip()
    return None if "<" in found else found


def _is_formed(text: str) -> bool:
    """Whether the text is one thought that is not blank and one guess, with only white space around them."""
    text = text.strip()
    if not text.startswith("<think>") or any(text.count(t) != 1 for t in ("<think>", "</think>", "<guess>")):
        return False
    thought, _, rest = text.removeprefix("<think>").partition("</think>")
    return bool(thought.strip()) and rest.lstrip().startswith("<guess>") and _guess_block(text) is not None


def _write(guess: str, thought: str) -> str:
    block = f"<guess>{guess}</guess>"
    return f"<think>{thought}</think>\n{block}" if thought else block


def _ask_compact(history: Sequence[Turn]) -> str:
    return " ".join(["guess", *(placed(guess, marks) for guess, marks in history)])


def _word_alone(text: str) -> str | None:
    words = text.split()
    return words[0] if len(words) == 1 else None


def _spelled(text: str) -> str | None:
    """The word that single letters make; None where there is anything else."""
    letters = text.split()
    return "".join(letters) if letters and all(len(letter) == 1 for letter in letters) else None


TAGS = Layout("tags", SYSTEM, _ask, lambda turn: rendered(*turn), _guess_block, _is_formed, _write)
COMPACT = Layout(
    "compact",
    None,
    _ask_compact,
    lambda turn: placed(*turn),
    _word_alone,
    lambda text: _word_alone(text) is not None,
    lambda guess, _: guess,
    thinks=False,
)
LETTERS = Layout(
    "letters",
    None,
    _ask_compact,
    lambda turn: placed(*turn),
    _spelled,
    lambda text: _spelled(text) is not None,
    lambda guess, _: " ".join(guess),
    thinks=False,
)
LAYOUTS = {layout.name: layout for layout in (TAGS, COMPACT, LETTERS)}


def layout_of(name: str) -> Layout:
    """The layout of that name; UnknownName where there is none."""
    if name not in LAYOUTS:
        raise UnknownName("layout of wordle", name, LAYOUTS)
    return LAYOUTS[name]


def begun(task: Task) -> str:
    """What the prompt has already said for the model: from the `<think>` of a last message by the assistant on."""
    if not task.prompt or task.prompt[-1].role != "assistant":
        return ""
    text = task.prompt[-1].content
    return text[text.rfind("<think>") :] if "<think>" in text else ""
