"""Reward models: ordinary Hugging Face folders that say how good a completion is.

    judge = load_reward_model("models/orm")                 a classifier, or a causal model that writes "+" or "-"
    judge.outcome(prompts, completions)                     one number a completion
    judge.steps(prompts, completions, ends)                 P(step is right) at the end of each step

    kind       what it says                         layout      a plain transformers class that loads the folder
    ----------------------------------------------------------------------------------------------------------------
    outcome    P(the whole is correct)              sequence    AutoModelForSequenceClassification (1 or 2 labels)
    pairs      a score without a unit (Bradley–     tokens      AutoModelForTokenClassification (2 labels: TRL's PRM)
               Terry): compare within a prompt      causal      AutoModelForCausalLM, logits of `good` against `bad`
    process    P(the step is right)

The layout says how weights are written, the kind what was learned; `reward_model.json` in the folder says both. A
folder without it is somebody else's: a classifier with one label is then taken to be of pairs, with two of outcomes, a
token classifier of steps.

A score is read at the last token of what is judged. Rows are run longest first and padded to the longest beside them,
so little is computed for nothing; `maieutic.backends.local.judging.quick` runs decoders without padding, each prompt
once.

    `R` rows · `K` steps · `M` states that are read · `E` width of a hidden state
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from maieutic.errors import ConfigError, DataError, ModelError, UnknownName
from maieutic.models.causal import CausalModel, load_causal, load_tokenizer, place_of, save_causal, without_dropout
from maieutic.models.chat import chat_format
from maieutic.models.classifiers import (
    CLASSES,
    Score,
    TokenScore,
    causal_view,
    classifier_around,
    new_score,
    score_of,
    unwrapped,
)
from maieutic.models.find import find_model, holds, unreadable
from maieutic.models.padded_scores import Engine, padded
from maieutic.models.pair_format import PairFormat
from maieutic.models.progress import no_progress_bars
from maieutic.types import Message

Tokens = Sequence[int]

#: The file beside a model's that says what kind of reward model it is.
SETTINGS = "reward_model.json"
#: Kind → the layout in which it is written where nothing else is asked for.
KINDS = {"outcome": "sequence", "process": "tokens", "pairs": "sequence"}


@dataclass(frozen=True)
class Settings:
    """What a reward model learned and how it is asked.

    delimiter   what its steps end in.
    mark        text written after each step before it is judged: TRL's separator, Math-Shepherd's "ки"; "" for none.
    every       True: the mark stands after every step. False: only where a step does not end in it already.
    good, bad   the two tokens of a causal layout.
    """

    kind: str = "outcome"
    layout: str = "sequence"
    delimiter: str = "\n"
    mark: str = ""
    every: bool = False
    good: str = "+"
    bad: str = "-"

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("kind of reward model", self.kind, KINDS)
        if self.layout not in CLASSES:
            raise UnknownName("layout of a reward model", self.layout, CLASSES)


@dataclass(frozen=True)
class RewardModel:
    """A loaded reward model. Tokens are those of its own tokenizer; `encode` makes them of text.

    `module` is a causal model whose hidden states `head` reads, or, where `head` is None, a whole classifier (an
    encoder). `own` says whether it was made here (its folder says how it is asked). `engine` runs it.
    """

    module: nn.Module
    head: nn.Module | None
    tokenizer: Any
    chat: Any
    settings: Settings
    source: str
    own: bool = True
    engine: Engine = field(default=lambda *_: [], repr=False)

    @property
    def kind(self) -> str:
        """ "outcome", "process" or "pairs"."""
        return self.settings.kind

    @property
    def limit(self) -> int | None:
        """Tokens that it can read, prompt and completion together; None where nothing says."""
        config: Any = getattr(self.module, "config", None)
        return getattr(config, "max_position_embeddings", None)

    def outcome(self, prompts: Sequence[Tokens], completions: Sequence[Tokens]) -> list[float]:
        """Of each completion P(correct), or of a model of pairs its score. A process model says it of the last step.

        Raises DataError for a row that is longer than the model can read.
        """
        return [scores[-1] for scores in self.steps(prompts, completions, [[len(c)] for c in completions])]

    def steps(
        self, prompts: Sequence[Tokens], completions: Sequence[Tokens], ends: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Of each completion, at the end of each of its steps, P(the step is right) given all before it, `[R][K]`.

        `ends` count tokens of the completion, one past each step's last, as `maieutic.steps.Steps.ends` gives them. A
        model of outcomes says how likely the whole is to become correct, one of pairs gives its scores.
        """
        logits = self.scores(prompts, completions, ends)
        return logits if self.kind == "pairs" else [[_sigmoid(value) for value in row] for row in logits]

    def scores(
        self, prompts: Sequence[Tokens], completions: Sequence[Tokens], ends: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """As `steps`, before the sigmoid: log-odds."""
        rows, columns = [], []
        for prompt, completion, of_row in zip(prompts, completions, ends, strict=True):
            if not prompt or not all(0 < end <= len(completion) for end in of_row):
                raise DataError(
                    f"got a prompt of {len(prompt)} tokens, a completion of {len(completion)} and steps that end at "
                    f"{list(of_row)}; expected at least one prompt token and ends from 1 to the completion's length"
                )
            written, at = self.marked(completion, of_row)
            rows.append((*prompt, *written))
            columns.append([len(prompt) + end for end in at])
            if self.limit is not None and len(rows[-1]) > self.limit:
                raise DataError(
                    f"got a prompt and a completion of {len(rows[-1])} tokens; the reward model ({self.source}) reads "
                    f"{self.limit}. Leave it out, or take a model with a longer context"
                )
        return self.engine(rows, [len(prompt) for prompt in prompts], columns)

    def read(
        self, rows: Sequence[Tokens], starts: Sequence[int], columns: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """As `steps`, of rows that are written already, marks and all: of the tokens before each of the columns."""
        logits = self.engine(rows, starts, columns)
        return logits if self.kind == "pairs" else [[_sigmoid(value) for value in row] for row in logits]

    def encode(self, messages: Sequence[Message], text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Prompt and completion in this model's tokens, the completion finished.

        For somebody else's classifier that is the whole rendered conversation, as it was trained on.
        """
        prompt = tuple(self.chat.prompt(messages))
        if not self.own and hasattr(self.chat, "render") and not self.chat.plain:
            whole = self.chat.render([*messages, Message("assistant", text)]).tokens
            if whole[: len(prompt)] == prompt:
                return prompt, tuple(whole[len(prompt) :])
        return prompt, tuple(self.chat.completion(text))

    def save(self, folder: str | Path) -> Path:
        """Write a folder that plain transformers loads; `load_reward_model` reads the same numbers from it.

        Raises ModelError for a whole classifier of somebody else's, which is where it was read from already.
        """
        folder = Path(folder)
        if self.head is None:
            raise ModelError(f"{self.source} was not made here and cannot be written again; copy its folder")
        if isinstance(self.head, TokenScore):
            save_causal(CausalModel(self.module, self.tokenizer, self.chat, self.source), folder)
        else:
            assert isinstance(self.head, Score)
            folder.mkdir(parents=True, exist_ok=True)
            whole: Any = classifier_around(self.module, self.head, self.settings.layout, self._pad_id())
            with no_progress_bars():
                whole.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        (folder / SETTINGS).write_text(json.dumps(asdict(self.settings), indent=2, ensure_ascii=False) + "\n", "utf-8")
        return folder

    def _pad_id(self) -> int | None:
        """What transformers may take for padding: it looks for the last token that is none, so no turn may end in it.

        Where the tokenizer pads with its stop token, the token that begins a text does: nothing ends in that.
        """
        ids = (self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, self.tokenizer.unk_token_id)
        return next((found for found in ids if found is not None and found not in self.chat.stop_ids), None)

    def marked(self, completion: Tokens, ends: Sequence[int]) -> tuple[tuple[int, ...], list[int]]:
        """The completion with this model's mark after its steps, and where they then end.

        A mark that stands after every step comes before the line break with which the step ends. One that only closes
        steps replaces the stop token of the last.
        """
        mark = tuple(self.chat.encode(self.settings.mark)) if self.settings.mark else ()
        if not mark or not ends:
            return tuple(completion), list(ends)
        written: list[int] = []
        at, start = [], 0
        for number, end in enumerate(ends):
            step, after = list(completion[start:end]), list[int]()
            while number == len(ends) - 1 and step and step[-1] in self.chat.stop_ids:
                step.pop()
            while self.settings.every and len(step) > 1 and not self.chat.decode(step[-1:]).strip():
                after.insert(0, step.pop())
            closed = not self.settings.every and self.chat.decode(step).endswith(self.settings.mark)
            written += [*step, *(() if closed else mark)]
            at.append(len(written))
            written += after
            start = end
        return tuple(written[: at[-1]]), at


def load_reward_model(
    source: str | Path,
    *,
    kind: str | None = None,
    good: str | None = None,
    bad: str | None = None,
    mark: str | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    template: str = "auto",
) -> RewardModel:
    """The reward model in a folder or at a Hub id; see the top of the file for what may be there.

    kind        what it learned, where its folder does not say it (or not what is wanted).
    good, bad   of a causal model, the tokens for a right and a wrong step, where the folder does not say them.
    mark        text after each step at which a step is judged, "ки" for Math-Shepherd's.

    Raises ModelError when there is no such model or it has another shape, ConfigError for an unknown kind.
    """
    name = find_model(source)
    place = place_of(device)
    said = _said(name)
    layout = str(said.get("layout") or _layout(name))
    if layout == "causal":
        loaded = load_causal(name, dtype=dtype, device=device, template=template)
        module, tokenizer, chat = loaded.module, loaded.tokenizer, loaded.chat
        settings = _settings(said, layout, kind or "process", good, bad, mark)
        head: nn.Module | None = token_score(loaded, settings)
    else:
        classifier, tokenizer = _classifier(name, layout, dtype)
        guessed = "process" if layout == "tokens" else "pairs" if classifier.config.num_labels == 1 else "outcome"
        settings = _settings(said, layout, kind or guessed, good, bad, mark)
        view = causal_view(classifier)
        module, head = (classifier, None) if view is None else (view, score_of(classifier))
        chat = _chat(tokenizer, template, view is not None)
    module.to(place).eval()
    model = RewardModel(module, None if head is None else head.to(place), tokenizer, chat, settings, str(source),
                        bool(said))  # fmt: skip
    return replace(model, engine=padded(model.module, model.head))


def from_policy(model: CausalModel, settings: Settings) -> RewardModel:
    """A reward model on a policy's weights, which it shares, with a fresh head: every score is 0 at first.

    Raises ModelError where the two tokens of a causal layout are not in its vocabulary.
    """
    head: nn.Module = token_score(model, settings) if settings.layout == "causal" else new_score(
        model.module, settings.layout
    )  # fmt: skip
    made = RewardModel(model.module, head, model.tokenizer, model.chat, settings, model.source)
    return replace(made, engine=padded(made.module, made.head))


def token_score(model: CausalModel, settings: Settings) -> TokenScore:
    """The head of a causal layout. Raises ModelError unless both words are single tokens of the vocabulary."""
    ids = []
    for word in (settings.good, settings.bad):
        try:
            found = model.chat.encode(word)
        except KeyError:
            found = ()
        if not found or model.chat.decode(found[-1:]).strip() != word.strip():
            raise ModelError(
                f"the judgement {word!r} is not a token of {model.source}; name two that are (good = '+', bad = '-'), "
                "or take a layout with a head of its own (sequence, tokens)"
            )
        ids.append(found[-1])
    if ids[0] == ids[1]:
        raise ConfigError(f"got {settings.good!r} for right and for wrong steps; expected two different tokens")
    whole: Any = unwrapped(model.module)
    return TokenScore(whole.get_output_embeddings(), *ids)


def _said(name: str) -> dict[str, Any]:
    if not holds(name, SETTINGS):
        return {}
    said = json.loads((Path(name) / SETTINGS).read_text(encoding="utf-8"))
    known = {each.name for each in fields(Settings)}
    return {key: value for key, value in said.items() if key in known}


def _settings(
    said: dict[str, Any], layout: str, kind: str, good: str | None, bad: str | None, mark: str | None
) -> Settings:
    words = {"good": good, "bad": bad, "mark": mark}
    given: dict[str, Any] = {key: value for key, value in words.items() if value is not None}
    if mark is not None:
        given["every"] = True
    return Settings(**{"kind": kind, "layout": layout, **said, **given})


def _layout(name: str) -> str:
    """By the class that the config of a folder or id names."""
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise unreadable(name, error) from error
    named = " ".join(getattr(config, "architectures", None) or ())
    endings = {"ForSequenceClassification": "sequence", "ForTokenClassification": "tokens"}
    found = [layout for ending, layout in endings.items() if ending in named]
    causal = ["causal"] if "ForCausalLM" in named or "LMHead" in named else []
    if not (found or causal):
        raise ModelError(
            f"got a model of the class {named or '(none named)'} at {name}; expected a sequence classifier, a token "
            "classifier, or a causal model that writes two judgements"
        )
    return (found or causal)[0]


def _classifier(name: str, layout: str, dtype: str) -> tuple[Any, Any]:
    try:
        with no_progress_bars():
            made: Any = CLASSES[layout].from_pretrained(name, dtype=getattr(torch, dtype))
            tokenizer = load_tokenizer(name)
    except (OSError, ValueError, ImportError) as error:
        raise unreadable(name, error) from error
    return without_dropout(made).eval(), tokenizer


def _chat(tokenizer: Any, template: str, writes: bool) -> Any:
    if not writes:
        return PairFormat(tokenizer)
    wanted = "plain" if template == "auto" and not tokenizer.chat_template else template
    return chat_format(tokenizer, wanted, None)


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
