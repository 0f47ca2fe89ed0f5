"""What a policy answers to a task, judged: completions, or episodes where the tasks are played in an environment.

Evaluation and `maieutic sample` ask here, with the rules that training has: the same environment and tool, the same
limits. An episode is judged by its environment; where that does not say whether it was right, by the taskset's
verifier, on the transcript.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from maieutic.environments.episodes import Played, Table, dialogue, turn_count, turns_of
from maieutic.environments.inline import interjection
from maieutic.environments.turns import Turns
from maieutic.errors import ModelError, PromptTooLong
from maieutic.loops import together
from maieutic.protocols import Chat, Completion, Sampler, Sampling, Taskset
from maieutic.tasks.taskset import environment_of
from maieutic.types import Finish, Rollout, Task, Verdict


@dataclass(frozen=True, slots=True)
class Sample:
    """One completion, or one episode, and how it was judged.

    >>> Sample("3 + 4 = 7", answer="7", correct=True, finish=Finish.STOP, tokens=6)

    `answer` is what the verifier read, None if it found none; `tokens` counts those the model chose, and `logprob` is
    their mean log-prob in nats (None where it was not kept). `turns` counts those of an episode.
    """

    text: str
    answer: str | None
    correct: bool
    finish: Finish
    tokens: int
    logprob: float | None = None
    turns: int | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """A sample as tokens and turns, for who wants to see them: `rollout` of an episode, else the completion."""

    sample: Sample
    verdict: Verdict
    completion: Completion | None = None
    rollout: Rollout | None = None


def asked(sampler: Sampler, chat: Chat, taskset: Taskset, max_tokens: int) -> Asking:
    """The policy asked about these tasks, with their tool, `max_tokens` for each attempt."""
    interject, ids = interjection(chat, taskset.tool)
    sampling = Sampling(max_tokens, stop_ids=chat.stop_ids, interject=interject, interject_ids=ids)
    return Asking(sampler, chat, taskset, sampling, Turns())


@dataclass(frozen=True)
class Asking:
    """Whom to ask, and about what. `sampling` says how; its key is replaced for every task."""

    sampler: Sampler
    chat: Chat
    taskset: Taskset
    sampling: Sampling
    turns: Turns

    async def attempts(self, task: Task, key: str, n: int, temperature: float) -> tuple[Attempt, ...]:
        """`n` attempts at a task, judged. They depend on `key` and the policy only.

        A prompt that does not fit the model, and an episode that fails, make attempts that finish with ERROR and are
        wrong. Raises ModelError when the sampler returns another number of completions than asked for.
        """
        if not n:
            return ()
        params = replace(self.sampling, key=key, temperature=temperature)
        if environment_of(self.taskset) is not None:
            return await self._episodes(task, params, n)
        try:
            completions = await self.sampler.sample(self.chat.prompt(task.prompt), params, n)
        except PromptTooLong as error:
            return (Attempt(Sample("", None, False, Finish.ERROR, 0), Verdict(False, why=str(error))),) * n
        if len(completions) != n:
            raise ModelError(f"task {task.id!r}: got {len(completions)} completions from the sampler, expected {n}")
        return tuple(self._judged(task, completion) for completion in completions)

    def _judged(self, task: Task, completion: Completion) -> Attempt:
        text, chosen = self.chat.decode(completion.tokens), sum(completion.mask)
        failed = completion.finish is Finish.ERROR
        verdict = Verdict(False) if failed else self.taskset.verifier(task, text)
        mean = sum(completion.logprobs) / chosen if chosen and not failed else None
        answer = None if failed else verdict.answer
        return Attempt(
            Sample(text, answer, verdict.correct, completion.finish, chosen, mean), verdict, completion=completion
        )

    async def _episodes(self, task: Task, params: Sampling, n: int) -> tuple[Attempt, ...]:
        environment = environment_of(self.taskset)
        assert environment is not None
        table = Table(self.sampler, dialogue(self.chat), environment, params, self.turns)
        number = self.turns.number()
        with self.turns.seats(n) as seats:

            async def one(sibling: int) -> Played:
                try:
                    return await table.episode(task, params.key, f"{params.key}/{sibling}", (number, sibling))
                finally:
                    seats.leave()

            played = await together([one(sibling) for sibling in range(n)])
        return tuple(self._judged_episode(task, each) for each in played)

    def _judged_episode(self, task: Task, played: Played) -> Attempt:
        rollout, score = played.rollout, played.score
        chosen, turns = rollout.completion_length, turn_count(rollout)
        if rollout.finish is Finish.ERROR:
            failed = Sample(rollout.text, None, False, rollout.finish, chosen, turns=turns)
            return Attempt(failed, Verdict(False, why=rollout.note), rollout=rollout)
        if score is None or score.correct is None:
            verdict = self.taskset.verifier(task, rollout.text)
        else:
            said = turns_of(rollout)[-1].content.strip() or None  # the last turn, where the game reads no answer
            verdict = Verdict(score.correct, said if score.answer is None else score.answer, score.note)
        mean = sum(rollout.logprobs) / chosen if chosen else None
        made = Sample(rollout.text, verdict.answer, verdict.correct, rollout.finish, chosen, mean, turns)
        return Attempt(made, verdict, rollout=rollout)
