"""A generative verifier: a model that is asked whether an answer is right, and how sure it is of "Yes".

    P = π(Yes | x, y, question) / (π(Yes | …) + π(No | …))                       direct
    P = mean over M critiques c ~ π(· | x, y) of the same after x, y, c, question  with a chain of thought

GenRM, arXiv 2408.15240. It is taught by fine-tuning on its own questions, mixed with solutions (`verification_rows`).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from maieutic.errors import ConfigError
from maieutic.protocols import Chat, Sampler, Sampling, Scorer
from maieutic.rewards.lift import unscorable
from maieutic.tasks.judged import Judged
from maieutic.types import Example, Finish, Message, Rollout, Score, Task

#: What a name in a config begins with.
PREFIX = "genrm:"
QUESTION = "{question}\n\nA solution:\n{completion}\n\nIs the answer correct (Yes/No)?"
CRITIQUE = "{question}\n\nA solution:\n{completion}\n\nLet's verify it step by step."
CLOSING = "\nIs the answer correct (Yes/No)? "


@dataclass(frozen=True)
class GenerativeVerifier:
    """P("Yes") of a model; `sampler` writes its critiques, `scorer` says how likely either word is.

    critiques      how many are written and averaged over (0: the model answers at once).
    temperature    of critiques.
    yes, no        the two words; of several tokens, their log-probs are summed.
    question       asked without critiques; `critique` before one, and `closing` after it.

    Raises ConfigError for words that are the same, or fewer than 0 critiques.
    """

    sampler: Sampler
    scorer: Scorer
    chat: Chat
    critiques: int = 0
    temperature: float = 1.0
    max_tokens: int = 256
    yes: str = "Yes"
    no: str = "No"
    question: str = QUESTION
    critique: str = CRITIQUE
    closing: str = CLOSING

    def __post_init__(self) -> None:
        if self.critiques < 0 or (self.critiques and self.temperature <= 0):
            raise ConfigError(
                f"got critiques={self.critiques}, temperature={self.temperature}; expected 0 or more critiques, and a "
                "temperature above 0 where there are some"
            )
        words = self.chat.encode(self.yes), self.chat.encode(self.no)
        if not all(words) or words[0] == words[1]:
            raise ConfigError(f"got {self.yes!r} and {self.no!r} as the two answers; expected different tokens")

    async def probability(self, question: str, completion: str, key: str = "0") -> float:
        """P(correct) of a completion; `key` seeds the critiques."""
        if not self.critiques:
            return (await asyncio.to_thread(self._yes, [self._prompt(self.question, question, completion)]))[0]
        prompt = self._prompt(self.critique, question, completion)
        how = Sampling(self.max_tokens, self.temperature, self.chat.stop_ids, key)
        made = await self.sampler.sample(prompt, how, self.critiques)
        said = [tuple(token for token in each.tokens if token not in self.chat.stop_ids) for each in made]
        closing = self.chat.encode(self.closing)
        found = await asyncio.to_thread(self._yes, [(*prompt, *words, *closing) for words in said])
        return sum(found) / len(found)

    def _prompt(self, template: str, question: str, completion: str) -> tuple[int, ...]:
        # replaced one after the other, so that braces in what a model wrote are only text
        before, _, after = template.partition("{completion}")
        text = before.replace("{question}", question) + completion + after.replace("{question}", question)
        return tuple(self.chat.prompt([Message("user", text)]))

    def _yes(self, prompts: Sequence[tuple[int, ...]]) -> list[float]:
        """P(yes) among the two words after each prompt."""
        from maieutic.pack import pack

        words = [tuple(self.chat.encode(word)) for word in (self.yes, self.no)]
        rows: list[Example] = []
        for number, prompt in enumerate(prompts):
            for word in words:
                tokens, mask = (*prompt, *word), (False,) * len(prompt) + (True,) * len(word)
                rollout = Rollout(str(number), tokens, mask, (0.0,) * len(tokens), Finish.STOP)
                rows.append(Example(rollout, 0.0, number, len(rows)))
        logprobs = self.scorer.logprobs(pack(rows)).sum(1)
        return (logprobs[::2] - logprobs[1::2]).sigmoid().tolist()


class GenerativeReward:
    """P("Yes") as a reward, of a local model that is loaded when it is asked for the first time: `genrm:FOLDER`.

    Options are those of `GenerativeVerifier`, `template` and `device`. A rollout that failed is unscorable.
    """

    def __init__(
        self, where: str, *, critiques: int = 0, temperature: float = 1.0, max_tokens: int = 256, yes: str = "Yes",
        no: str = "No", question: str = QUESTION, critique: str = CRITIQUE, closing: str = CLOSING,
        template: str = "auto", device: str = "cpu",
    ) -> None:  # fmt: skip
        from maieutic.models.find import find_model

        self.source = where.removeprefix(PREFIX)
        find_model(self.source)
        self.how: dict[str, Any] = {
            "critiques": critiques, "temperature": temperature, "max_tokens": max_tokens, "yes": yes, "no": no,
            "question": question, "critique": critique, "closing": closing,
        }  # fmt: skip
        self.template, self.device = template, device

    @cached_property
    def verifier(self) -> GenerativeVerifier:
        """The verifier, loaded now if it was not before."""
        from maieutic.backends.local import LocalBackend
        from maieutic.models.causal import load_causal

        model = load_causal(self.source, device=self.device, template=self.template)
        backend = LocalBackend(device=self.device)
        return GenerativeVerifier(backend.sampler(model), backend.frozen(model), model.chat, **self.how)

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """The scores `[G]`."""
        return [await self._score(task, rollout) for rollout in rollouts]

    async def _score(self, task: Task, rollout: Rollout) -> Score:
        if rollout.finish is Finish.ERROR:
            return unscorable(rollout)
        question = "\n".join(message.content for message in task.prompt)
        key = f"genrm/{task.id}/{rollout.sibling}/{rollout.version}"
        said = await self.verifier.probability(question, rollout.text, key)
        return Score(said, parts={"yes": said})


def verification_rows(
    judged: Iterable[Judged], *, solutions: float = 0.5, yes: str = "Yes", no: str = "No", question: str = QUESTION,
    seed: int = 0,
) -> list[dict[str, str]]:  # fmt: skip
    """Rows for fine-tuning a verifier (`{"prompt": …, "solution": …}`, a file taskset), in a random order.

    Every completion with a label becomes its question with the answer Yes or No. `solutions` is the share of all rows
    that are right completions as they stand: solving keeps verifying honest (arXiv 2408.15240, §3.2), as far as there
    are right ones. Raises ConfigError for a share outside [0, 1).
    """
    if not 0 <= solutions < 1:
        raise ConfigError(f"got solutions={solutions}; expected a share of the rows, from 0 to below 1")
    draw, asked, solved = random.Random(seed), [], []
    for each in judged:
        if each.label is None:
            continue
        words = "\n".join(message.content for message in each.prompt)
        before, _, after = question.partition("{completion}")
        text = before.replace("{question}", words) + each.text + after.replace("{question}", words)
        asked.append({"prompt": text, "solution": yes if each.label > 0.5 else no})
        if each.label > 0.5:
            solved.append({"prompt": words, "solution": each.text})
    wanted = min(len(solved), round(len(asked) * solutions / (1 - solutions)))
    rows = asked + draw.sample(solved, wanted)
    draw.shuffle(rows)
    return rows
