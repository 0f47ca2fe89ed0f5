"""Judges of a config: which model they ask, and how it is reached.

rewards = { judge = 1.0 }

[stages.reward_options.judge]
url = "http://127.0.0.1:8000/v1"       an OpenAI-compatible server; without it, `model` is loaded in this process
model = "Qwen/Qwen2.5-7B-Instruct"
api_key_env = "JUDGE_API_KEY"          the environment variable that holds the key
samples = 3                            and whatever else the judge itself takes
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maieutic.endpoint import Endpoint, LocalRespondent, Remembered, Reply, Respondent
from maieutic.endpoint.remember import default_file
from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Reward, Taskset
from maieutic.rewards.judge import Judge
from maieutic.rewards.judge_prompts import COMPARE, MAKE_QUIZ, RUBRIC, SCORE, TAKE_QUIZ
from maieutic.rewards.lift import FailureBudget
from maieutic.rewards.pairwise import PairwiseJudge
from maieutic.rewards.quiz import QuizReward
from maieutic.types import Message


class LocalJudge:
    """A model in this process, loaded when it is asked for the first time: a folder or an id of the Hub."""

    def __init__(self, model: str, device: str = "cpu", max_rows: int = 64) -> None:
        self.model, self.device, self.max_rows = model, device, max_rows
        self._made: LocalRespondent | None = None

    @property
    def name(self) -> str:
        """What is loaded."""
        return f"local {self.model}"

    async def chat(
        self,
        messages: Sequence[Message],
        *,
        max_tokens: int = 1024,
        temperature: float = 0.0,
        sample: int = 0,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """The model's answer."""
        return await self._loaded().chat(
            messages, max_tokens=max_tokens, temperature=temperature, sample=sample, schema=schema
        )

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Those of its tokenizer."""
        return self._loaded().special_tokens

    def _loaded(self) -> LocalRespondent:
        self._made = self._made or self._load()
        return self._made

    def _load(self) -> LocalRespondent:
        from maieutic.backends.local import LocalBackend
        from maieutic.models.causal import load_causal

        loaded = load_causal(self.model, device=self.device)
        sampler = LocalBackend(self.device, max_rows=self.max_rows).sampler(loaded)
        tokens = loaded.chat.tokenizer.added_tokens_decoder.values()
        written = [token.content for token in tokens if token.special]
        return LocalRespondent(sampler, loaded.chat, name=self.name, special_tokens=written)


def respondent(
    model: str,
    url: str | None = None,
    api_key_env: str | None = None,
    timeout_seconds: float | None = None,
    retries: int = 4,
    requests_per_minute: float | None = None,
    concurrent: int = 16,
    max_tokens_name: str = "max_tokens",
    extra: Mapping[str, Any] | None = None,
    prompt_price: float = 0.0,
    completion_price: float = 0.0,
    cache: bool | str = True,
    device: str = "cpu",
) -> Respondent:
    """Whom a judge asks: a server where there is a URL, else a model that is loaded here.

    cache   where answers are kept: a file, true for the one in the user's cache folder, false for nowhere. A model
            that is loaded here has none unless a file is named: its folder may hold other weights tomorrow.
    device  of a model that is loaded here; the other settings are those of `endpoint.Terms`, for a server.
    """
    asked: Respondent
    if url is None:
        if api_key_env is not None:
            raise ConfigError("got api_key_env without a url: a model that is loaded here wants no key. Give the url")
        asked = LocalJudge(model, device)
    else:
        asked = Endpoint(
            url, model,
            api_key_env=api_key_env, timeout_seconds=timeout_seconds or 60.0, retries=retries,
            requests_per_minute=requests_per_minute, concurrent=concurrent, max_tokens_name=max_tokens_name,
            extra=extra or {}, prompt_price=prompt_price, completion_price=completion_price,
        )  # fmt: skip
    if cache is False or (cache is True and url is None):
        return asked
    return Remembered(asked, default_file() if cache is True else Path(cache).expanduser())


def asking(make: Callable[..., Reward]) -> Callable[..., Reward]:
    """`make(respondent, …)` as a factory that takes the settings of `respondent` in its place.

    Its signature says so: options are checked against it, and a stage fills `timeout_seconds` and `max_failures`.
    """
    reach = inspect.signature(respondent).parameters
    own = list(inspect.signature(make).parameters.values())[1:]

    def made(**options: Any) -> Reward:
        return make(
            respondent(**{name: value for name, value in options.items() if name in reach}),
            **{name: value for name, value in options.items() if name not in reach},
        )

    made.__doc__ = make.__doc__
    kept = [parameter.replace(kind=parameter.KEYWORD_ONLY) for parameter in (*reach.values(), *own)]
    made.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    return made


def _text(file: str | None, default: str) -> str:
    if file is None:
        return default
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"template {file!r}: expected a text file in UTF-8; {error}") from None


def _budget(max_failures: float | None) -> FailureBudget | None:
    return None if max_failures is None else FailureBudget(max_failures)


@asking
def judge(
    respondent: Respondent,
    rubric: str = RUBRIC,
    template: str | None = None,
    samples: int = 1,
    temperature: float | None = None,
    max_tokens: int = 1024,
    length_correction: float = 0.0,
    zero_on_failure: bool = False,
    show_answer: bool = True,
    max_failures: float | None = None,
) -> Reward:
    """A score from 1 to 10 by a rubric, as a reward from .1 to 1; `template` is a file. See `rewards.judge`."""
    return Judge(
        respondent, rubric, _text(template, SCORE), samples, temperature, max_tokens, length_correction,
        zero_on_failure, show_answer, budget=_budget(max_failures),
    )  # fmt: skip


@asking
def pairwise_judge(
    respondent: Respondent,
    opponents: int | None = None,
    rubric: str = RUBRIC,
    template: str | None = None,
    max_tokens: int = 1024,
    zero_on_failure: bool = False,
    show_answer: bool = True,
    max_failures: float | None = None,
) -> Reward:
    """How often a rollout beats its siblings, each pair shown in both orders. See `rewards.pairwise`."""
    return PairwiseJudge(
        respondent, opponents, rubric, _text(template, COMPARE), max_tokens, zero_on_failure, show_answer,
        budget=_budget(max_failures),
    )  # fmt: skip


@asking
def quiz(
    respondent: Respondent,
    taskset: Taskset,
    text: str = "text",
    questions: int = 10,
    attempts: int = 3,
    temperature: float = 0.7,
    max_tokens: int = 2048,
    seed: int = 0,
    make_template: str | None = None,
    take_template: str | None = None,
    zero_on_failure: bool = False,
    max_failures: float | None = None,
) -> Reward:
    """The share of a quiz about a text that its summary answers; see `maieutic.rewards.quiz`."""
    first = taskset[0].meta
    if text not in first:
        raise ConfigError(
            f"reward 'quiz': {UnknownName('text', text, first)} It asks about task.meta[{text!r}], which "
            f'{taskset.name!r} does not have. Remedy: taskset = "documents", or text = the name of the column'
        )
    return QuizReward(
        respondent, None, text, questions, attempts, temperature, max_tokens, seed, zero_on_failure,
        budget=_budget(max_failures),
        make_template=_text(make_template, MAKE_QUIZ), take_template=_text(take_template, TAKE_QUIZ),
    )  # fmt: skip


#: Names of a config → what makes them.
JUDGES: Mapping[str, Callable[..., Reward]] = {"judge": judge, "pairwise_judge": pairwise_judge, "quiz": quiz}
