"""The nouns: what flows through the loop. Everything is frozen; a stage returns a new value.

Letters: `T` tokens of one sequence (prompt, completion and environment replies), `B` rows of a batch, `G` siblings
of a group, `P` pairs, `K` kept teacher candidates.

    Task ─► Rollout [G] + Score [G] = Group ─► Example ─► Batch [B, T] ─► Step

Everything of length `T` is *token-aligned*: entry `t` speaks of `tokens[t]` given the tokens before it; entry 0 is
never chosen by the model. The shift by one between logits and tokens happens in one function only,
`maieutic.models.causal.token_logprobs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from maieutic.errors import MissingColumn

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation: `Message("user", "What is 2 + 2?")`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Task:
    """A question with its checkable answer. Made by a taskset, never changed afterwards.

    >>> Task("arithmetic/train/7", (Message("user", "Ann has 3 apples and buys 4. How many?"),), answer="7")

    `meta` carries what a source knows beyond the answer; `meta["solution"]`, where present, is a worked solution as
    the model would write it (a demonstration for fine-tuning).
    """

    id: str
    prompt: tuple[Message, ...]
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


class Finish(StrEnum):
    """Why a rollout ended. Reported by the sampler, never guessed from the last token."""

    STOP = "stop"
    """The model chose one of its stop tokens."""
    LENGTH = "length"
    """The length limit cut it: the rollout is truncated, its state is not terminal."""
    ENVIRONMENT = "environment"
    """The environment ended the episode."""
    ERROR = "error"
    """Something failed while it was made; it has no reward and is counted."""


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens `start:stop` of a rollout, written by `role`: "prompt", "assistant", "tool" (within the assistant's turn)
    or "environment" (between two turns, with what the chat template writes there).

    >>> Span("environment", 7, 12, "too low")

    `text` is what was said in it, without the template's marks, where there are several turns; "" elsewhere. `messages`
    are what was said one by one, where `text` does not tell: an opening that is not the task's own prompt, and what an
    environment says otherwise than as one message of the user.
    """

    role: str
    start: int
    stop: int
    text: str = ""
    messages: tuple[Message, ...] = ()

    @staticmethod
    def read(row: Sequence[Any]) -> Span:
        """The span of a row of JSON: its fields in order, the last ones left out where they are empty."""
        role, start, stop, *rest = row
        text = rest[0] if rest else ""
        return Span(role, start, stop, text, tuple(Message(*each) for each in rest[1]) if len(rest) > 1 else ())


@dataclass(frozen=True, slots=True)
class Rollout:
    """One attempt at a task, as tokens. Filled by the rollout stage from what the sampler returned.

    A two-token prompt, a three-token completion in which a tool wrote the middle token, `9` being the stop token:

    >>> Rollout("t1", tokens=(5, 6, 7, 8, 9), mask=(False, False, True, False, True),
    ...         logprobs=(0.0, 0.0, -0.1, 0.0, -0.7), finish=Finish.STOP, text="7 8")

    `mask` is True where the model chose the token (stop token included). `logprobs` are natural logarithms under the
    sampling policy at the sampling temperature, 0 where `mask` is False. `text` is the completion, decoded: a view
    for rewards and people, never tokenised again. `version` counts the policy's updates when it was sampled.
    """

    task_id: str
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    logprobs: tuple[float, ...]
    finish: Finish
    text: str = ""
    spans: tuple[Span, ...] = ()
    sibling: int = 0
    version: int = 0
    temperature: float = 1.0
    note: str = ""

    def __post_init__(self) -> None:
        if not len(self.tokens) == len(self.mask) == len(self.logprobs):
            raise ValueError(
                f"rollout of {self.task_id!r}: got {len(self.tokens)} tokens, {len(self.mask)} mask entries and "
                f"{len(self.logprobs)} log-probs; expected equal lengths"
            )
        if self.mask and self.mask[0]:
            raise ValueError(
                f"rollout of {self.task_id!r}: its first token is marked as chosen, but nothing precedes it; "
                "give the prompt at least one token (a BOS token will do)"
            )

    @property
    def prompt_length(self) -> int:
        """Tokens before the first chosen one (all of them when nothing was chosen)."""
        return self.mask.index(True) if True in self.mask else len(self.mask)

    @property
    def completion_length(self) -> int:
        """How many tokens the model chose."""
        return sum(self.mask)


@dataclass(frozen=True, slots=True)
class Score:
    """How a rollout was judged. Filled by a reward.

    >>> Score(1.1, correct=True, parts={"answer": 1.0, "format": 0.1})

    `reward` is the training scalar; None means unscorable: such a rollout is left out of means and deviations and is
    counted, never turned into 0. `step_rewards` are pairs (index of a token of the rollout, reward). `answer` is what
    the verifier read in the rollout, in its canonical spelling; None where it found none, or where nobody looked.
    `asked` counts what judging it asked of another model, `{"judge/requests": 1.0}`; a step's metrics sum it.
    `forfeits` are rewards of steps that there were still to be when a game was left (`maieutic.environments.leaving`).
    """

    reward: float | None
    correct: bool | None = None
    parts: Mapping[str, float] = field(default_factory=dict)
    step_rewards: tuple[tuple[int, float], ...] = ()
    note: str = ""
    answer: str | None = None
    asked: Mapping[str, float] = field(default_factory=dict)
    forfeits: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of a text: correct or not, the answer it read (None if it found none), and why.

    `share`, 0 to 1, says how much of it is right where that comes in degrees, as the share of tests that a program
    passes; None: all or nothing. `parts` are numbers of its own, to be recorded.
    """

    correct: bool
    answer: str | None = None
    why: str = ""
    share: float | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one task and their scores, `[G]` each. Demonstrations are groups of one with reward 1."""

    task: Task
    rollouts: tuple[Rollout, ...]
    scores: tuple[Score, ...]
    id: int = 0
    """Unique within a step; a task that is drawn twice makes two groups."""
    hinted: bool = False
    """Whether the answer stood in the prompt while its rollouts were sampled, and was taken out afterwards: they are to
    be imitated, and say nothing of how well the policy does."""

    def __post_init__(self) -> None:
        if len(self.rollouts) != len(self.scores):
            raise ValueError(
                f"group of {self.task.id!r}: got {len(self.rollouts)} rollouts and {len(self.scores)} scores; "
                "a reward must return exactly one score a rollout"
            )

    @property
    def rewards(self) -> tuple[float, ...]:
        """The rewards of the scorable rollouts."""
        return tuple(s.reward for s in self.scores if s.reward is not None)


@dataclass(frozen=True, slots=True)
class Example:
    """One training row: a rollout, its reward, the group it is compared within, and the unit it is shuffled with.

    Rows of one `unit` stay together when a batch is split (both sides of a pair); `role` says which side a row is.
    """

    rollout: Rollout
    reward: float
    group: int
    unit: int
    role: str = "sample"
    step_rewards: tuple[tuple[int, float], ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    forfeits: tuple[float, ...] = ()


#: The roles of the two rows of a pair.
CHOSEN, REJECTED = "chosen", "rejected"


#: Who fills a column that is not there from the start, and what to do when it is missing.
PROVIDERS: Mapping[str, str] = {
    "old_logprobs": "the learner before the update; run the batch through `annotate`",
    "ref_logprobs": "a reference model; give `train(..., reference=...)` or `reference` in the config",
    "old_values": "a critic; give the policy one, e.g. `critic=ValueHead()` or `[stages.critic]` in the config",
    "final_values": "a critic; give the policy one, e.g. `critic=ValueHead()` or `[stages.critic]` in the config",
    "advantages": "a credit; give the algorithm one, e.g. `credit=group_centered()`",
    "returns": "a credit that computes returns, e.g. `gae()`",
    "weights": "`weigh`, once for each optimiser step",
    "pairs": 'a select that forms pairs, e.g. `pairs("one")` or `given_pairs()`',
    "step_rewards": "a reward that scores steps, e.g. `StepRewards(...)`",
    "reward_parts": "a reward with named parts, e.g. `weighted({...})`",
    "forfeits": "an environment that pays turns, of games that were left",
    "teacher_logprobs": "a teacher; give `train(..., teacher=...)` or `[stages.teacher]` in the config",
    "teacher_spans": "a teacher of other tokens; give `[stages.teacher] align = true` in the config",
    "teacher_top_ids": "a teacher; give `train(..., teacher=...)` or `[stages.teacher]` in the config",
    "teacher_top_logprobs": "a teacher; give `train(..., teacher=...)` or `[stages.teacher]` in the config",
}

#: The shapes of columns that are not `[B, T]`: F forfeits, K kept teacher candidates, P pairs, R reward parts.
SHAPES: Mapping[str, str] = {
    "final_values": "[B]",
    "forfeits": "[B, F]",
    "pairs": "[P, 2]",
    "reward_parts": "[B, R]",
    "teacher_top_ids": "[B, T, K]",
    "teacher_top_logprobs": "[B, T, K]",
}


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as right-padded tensors. Always token-aligned; packing without padding is the learner's private affair.

    column               shape    filled by
    tokens               [B, T]   pack (padding holds token 0; `lengths` says where a row ends, never a pad id)
    mask                 [B, T]   pack: True where the model chose the token
    lengths              [B]      pack: tokens of each row
    sampler_logprobs     [B, T]   pack: nats, under the policy that sampled, at `temperature`; 0 off the mask
    rewards              [B]      pack: outcome reward
    token_rewards        [B, T]   pack: the outcome and forfeits on the last chosen token, step rewards at step ends
    terminated           [B]      pack: False where the length limit cut, and nothing was forfeited
    groups, units        [B]      pack: row relations
    pairs                [P, 2]   pack, of rows that a select tied: row numbers (chosen, rejected)
    reward_parts         [B, R]   pack, where rewards have named parts: one column for each of `part_names`, or NaN
    step_rewards         [B, T]   pack, where steps have rewards: that of the step which ends there, NaN elsewhere
    forfeits             [B, F]   pack, where games were left: rewards of the steps that each lacks, then NaN
    final_values         [B]      a critic: of the state after the last token where the length limit cut, else 0
    old_values           [B, T]   a critic: of the state in which each token was chosen
    others               –        see `PROVIDERS`; reading a missing one raises `MissingColumn`
    """

    tokens: Tensor
    mask: Tensor
    lengths: Tensor
    sampler_logprobs: Tensor
    rewards: Tensor
    token_rewards: Tensor
    terminated: Tensor
    groups: Tensor
    units: Tensor
    temperature: float = 1.0
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    part_names: tuple[str, ...] = ()
    """The names of the reward's parts, in alphabetical order."""
    task_ids: tuple[str, ...] = ()
    """The task of each row; nothing where the batch was made by hand."""

    def __getattr__(self, name: str) -> Tensor:
        if name in PROVIDERS:
            if name in self.columns:
                return self.columns[name]
            raise MissingColumn(f"this batch has no {name!r}. It is filled by {PROVIDERS[name]}.")
        raise AttributeError(name)

    @property
    def size(self) -> int:
        """Rows `B`."""
        return int(self.tokens.shape[0])

    def has(self, name: str) -> bool:
        """Whether the column is filled."""
        return name not in PROVIDERS or name in self.columns

    def with_(self, **columns: Tensor) -> Batch:
        """A batch with these columns filled or replaced: `batch.with_(advantages=a)`."""
        own = {name: value for name, value in columns.items() if name not in PROVIDERS}
        added = {name: value for name, value in columns.items() if name in PROVIDERS}
        return replace(self, columns={**self.columns, **added}, **own)  # type: ignore[arg-type]

    def rows(self, index: Tensor) -> Batch:
        """The rows at `index [b]`, in that order. Pairs of which both rows are there are kept and renumbered."""
        own = {name: getattr(self, name)[index] for name in ROW_COLUMNS}
        columns = {name: value[index] for name, value in self.columns.items() if name != "pairs"}
        if "pairs" in self.columns:
            number = self.pairs.new_full((self.size,), -1)
            number[index] = number.new_tensor(range(len(index)))
            renamed = number[self.pairs]
            columns["pairs"] = renamed[(renamed >= 0).all(1)]
        names = tuple(self.task_ids[row] for row in index.tolist()) if self.task_ids else ()
        return replace(self, columns=columns, task_ids=names, **own)

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on that device."""
        own = {name: getattr(self, name).to(device) for name in ROW_COLUMNS}
        return replace(self, columns={name: value.to(device) for name, value in self.columns.items()}, **own)


ROW_COLUMNS = (
    "tokens", "mask", "lengths", "sampler_logprobs", "rewards", "token_rewards", "terminated", "groups", "units",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outputs:
    """What a policy says of a batch now, with gradient. Off the mask every entry is 0.

    `logprobs [B, T]` and `entropy [B, T]` in nats at the batch's temperature; `values [B, T]` where there is a critic;
    `top_logprobs [B, T, K]`, where the batch has `teacher_top_ids`: those of the teacher's candidates.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None
    top_logprobs: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one iteration of the loop did. `batch` is None when no group carried a signal and no update was made.

    Row `i` of `batch` is `examples[i]`.
    """

    index: int
    groups: tuple[Group, ...]
    examples: tuple[Example, ...]
    batch: Batch | None
    metrics: Mapping[str, float]
