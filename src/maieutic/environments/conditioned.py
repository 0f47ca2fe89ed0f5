"""Asking for good steps: a label before every step of a completion, inserted while the model writes.

    prompt [GOOD] 10 - 4 = 6 ; [GOOD] 6 / 2 = 3 ; [GOOD] # 3 <eos>
           └ forced            └ forced after each delimiter, `mask` False

`Conditioned` wraps a sampler and is one, so training, evaluation and search ask a return-conditioned model as they ask
any other. Its `chat` leaves the labels out of texts. A model that is to be asked like this says so in a file beside its
weights, `inference.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from maieutic.errors import ConfigError, ModelError
from maieutic.protocols import Chat, Completion, Interject, Policy, Sampler, Sampling
from maieutic.steps import Labels, LabelTokens, ends_step, without
from maieutic.types import Finish

#: The file in a model's folder that says with which labels it is to be asked.
INFERENCE = "inference.json"


class Conditioned:
    """A sampler that writes `[GOOD]` before every step (arXiv 2403.04642; decision transformers, arXiv 2106.01345).

    `sampler` writes the steps, `chat` is its model's, `labels` are those it was trained with; `force` is the text that
    is inserted (default: `labels.good`). Completions hold the inserted tokens with `mask` False and log-prob 0, the
    first label included, and `max_tokens` counts them. The task's own `interject` is asked as ever, and sees no labels.
    Until `since` says True the model is asked plainly: before its first update it has not seen a label.

    Raises ModelError and ConfigError as `Labels.bind` does.
    """

    def __init__(
        self,
        sampler: Sampler,
        chat: Chat,
        labels: Labels,
        force: str | None = None,
        since: Callable[[], bool] = lambda: True,
    ) -> None:
        self.sampler, self.since = sampler, since
        self.labels = labels.bind(chat)
        wanted = {labels.good: self.labels.good, labels.bad: self.labels.bad}
        if force is not None and force not in wanted:
            raise ConfigError(f"got force={force!r}; expected one of the labels: {', '.join(map(repr, wanted))}")
        self.label = wanted[force or labels.good]

    @property
    def chat(self) -> Chat:
        """The model's chat, which reads no labels: what rewards, tools and people should see texts through."""
        return self.labels.steps.chat

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        """`n` completions; see `maieutic.protocols.Sampler`. Where `max_tokens` leave no room after the first label,
        nothing is chosen: the completions are what fits of the label, cut by the length."""
        if not self.since():
            return await self.sampler.sample(prompt_tokens, params, n)
        room = params.max_tokens - len(self.label)
        if room < 1:
            cut = self.label[: params.max_tokens]
            return [Completion(cut, (False,) * len(cut), (0.0,) * len(cut), Finish.LENGTH)] * n
        asking = replace(
            params,
            max_tokens=room,
            interject=interject_labels(self.labels, self.label, params),
            interject_ids=params.interject_ids | self.chat.tokens_ending(self.labels.words.delimiter),
        )
        made = await self.sampler.sample((*prompt_tokens, *self.label), asking, n)
        count = len(self.label)
        return [
            replace(
                each,
                tokens=self.label + each.tokens,
                mask=(False,) * count + each.mask,
                logprobs=(0.0,) * count + each.logprobs,
            )
            for each in made
        ]


def interject_labels(labels: LabelTokens, label: tuple[int, ...], params: Sampling) -> Interject:
    """What the task's tool writes, if anything, and then a label where a step ends."""
    chat, delimiter = labels.steps.chat, labels.words.delimiter

    def interject(tokens: Sequence[int]) -> Sequence[int]:
        reply: tuple[int, ...] = ()
        if params.interject is not None and tokens[-1] in params.interject_ids:
            reply = tuple(params.interject([tokens[i] for i in without(tokens, (labels.good, labels.bad))]))
        done = ends_step(chat.decode((*tokens, *reply)), delimiter)
        return (*reply, *label) if done else reply

    return interject


def asked_with(policy: Policy, labels: Labels, since: Callable[[], bool] = lambda: True) -> Policy:
    """The policy with a sampler that forces the good label, and a chat that reads none."""
    sampler = Conditioned(policy.sampler, policy.chat, labels, since=since)
    exact = None if policy.exact is None else Conditioned(policy.exact, policy.chat, labels, since=since)
    return replace(policy, sampler=sampler, chat=sampler.chat, exact=exact)


def as_trained(sampler: Sampler, chat: Chat, folder: str | Path) -> tuple[Sampler, Chat]:
    """The sampler and chat of the model in a folder, asked as its `inference.json` says; themselves without one."""
    labels = read_inference(folder)
    if labels is None:
        return sampler, chat
    conditioned = Conditioned(sampler, chat, labels)
    return conditioned, conditioned.chat


def write_inference(labels: Labels, folder: Path) -> None:
    """Say in a model's folder with which labels it is to be asked."""
    text = json.dumps({"format": 1, "labels": asdict(labels)}, indent=1)
    (folder / INFERENCE).write_text(text + "\n", encoding="utf-8", newline="\n")


def read_inference(folder: str | Path) -> Labels | None:
    """The labels with which the model in a folder is to be asked; None for one that is asked plainly, or a Hub id.

    Raises ModelError for a broken file.
    """
    path = Path(folder) / INFERENCE
    if not path.is_file():
        return None
    try:
        return Labels(**json.loads(path.read_text(encoding="utf-8"))["labels"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected "
            '{"format": 1, "labels": {"good": …, "bad": …, "delimiter": …}}'
        ) from error
