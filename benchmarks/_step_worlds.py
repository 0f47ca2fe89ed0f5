"""The small worlds of the study of step-by-step supervision: what is asked, how steps are judged, and who learns.

Everything is trained by `maieutic.train`; a world is tasks, a policy and a reward.

    traces     a + b + c in two written steps, by a table that learned from solutions whose errors cancel
    key door   the first of n words decides; a decoder of 1 layer and width 16 writes them
    padding    neutral steps before an answer, by a table
    late       500 words, of which the first decides, by a table of which word follows which
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maieutic.algorithms import grpo, ppo, reinforce, reinforce_plus_plus, sft
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.backends.local.critic import SeparateCritic
from maieutic.backends.toy import ToyChat, ToyCritic, ToyLearner, ToyModel, ToySampler, toy_policy
from maieutic.core.parts import Algorithm
from maieutic.loops import run_async
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.pack import pack
from maieutic.protocols import Chat, Policy, Reward, Scorer, Tool
from maieutic.rewards.compose import weighted
from maieutic.rewards.shaping import repetition
from maieutic.rewards.stepwise import Stepwise
from maieutic.rollout import Roller
from maieutic.sources import Recorded, Sampled
from maieutic.steps import Steps, split_steps
from maieutic.train import train
from maieutic.types import Batch, Example, Finish, Group, Message, Rollout, Score, Step, Task

Point = tuple[int, float]


def learn(
    policy: Policy, tasks: Sequence[Task], reward: Reward, algorithm: Algorithm, *, steps: int, length: int,
    prompts: int, rollouts: int, seed: int, reference: Scorer | None = None, tool: Tool | None = None,
) -> Iterator[Step]:  # fmt: skip
    """The library's loop on fresh rollouts."""
    roller = Roller(policy.sampler, policy.chat, reward, max_completion_length=length, seed=seed, tool=tool)
    source = Sampled(tasks, roller, prompts=prompts, num_generations=rollouts, seed=seed)
    return train(source, policy, algorithm, steps=steps, reference=reference)


def groups_of(policy: Policy, tasks: Sequence[Task], reward: Reward, *, length: int, n: int, seed: str) -> list[Group]:
    """`n` rollouts of each task, to measure and not to learn from."""
    roller = Roller(policy.sampler, policy.chat, reward, max_completion_length=length, seed=seed)
    return [run_async(roller.group(task, n, visit)) for visit, task in enumerate(tasks)]


class Bigrams(ToyModel):
    """One table for all places: which word follows which, `[buckets, V, V]`; a logit of -40 at the start stays there.

    So what is learned of one place holds for all of them, as in a model that generalises: a policy that has seen two
    neutral steps can write twenty.
    """

    def __init__(self, start: Tensor, length: int) -> None:
        nn.Module.__init__(self)
        self.follows = nn.Parameter(start.clone())
        self.length = length
        self.register_buffer("possible", start > -10.0)

    @property
    def table(self) -> Tensor:  # type: ignore[override]
        """`[buckets, length, V, V]`."""
        held = torch.where(self.possible, self.follows, torch.full_like(self.follows, -40.0))
        return held[:, None].expand(-1, self.length, -1, -1)


def bigram_policy(chat: ToyChat, model: Bigrams, rate: float, critic: ToyCritic | None = None) -> Policy:
    """A policy of such a table."""
    learner = ToyLearner(model, rate, critic=critic)
    return Policy(learner, ToySampler(model, lambda: learner.version), chat)


# --- traces: right answers by wrong reasoning -------------------------------------------------------------------------

NUMBERS = [str(n) for n in range(11)]
TRACE_LENGTH = 15
TRACE_ARMS = ("outcome", "process", "min")


def sums() -> list[Task]:
    """The 27 sums of three numbers from 1 to 3."""
    parts = [(a, b, c) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3)]
    return [Task(f"{a}+{b}+{c}", (Message("user", f"{a} + {b} + {c}"),), str(a + b + c)) for a, b, c in parts]


def written(task: Task, kind: str) -> str:
    """A "right" solution; a "cancelling" one, with 1 too much in its first step and too little in its second; a "wrong"
    one."""
    a, b, c = (int(x) for x in task.id.split("+"))
    slip, off = (1 if kind == "cancelling" else 0), (1 if kind == "wrong" else 0)
    first, last = a + b + slip, a + b + c + off
    return f"{a} + {b} = {first} ; {first} + {c} = {last} ; # {last}"


def checked(task: Task, text: str) -> list[float]:
    """1 or 0 for each step: its sum is right, and it goes on from what stands before it."""
    a, b, c = (int(x) for x in task.id.split("+"))
    labels, carried = [], None
    expected = [lambda _: (a, b), lambda z: (z, c)]
    for k, step in enumerate(split_steps(text, " ;")):
        words = step.replace(";", "").split()
        if k < 2:
            x, y = expected[k](carried)
            right = words[:4] == [str(x), "+", str(y), "="] and words[4:] == [str(x + y)] if x is not None else False
            carried = int(words[4]) if len(words) == 5 and words[4].isdigit() else None
        else:
            right = k == 2 and words == ["#", str(carried)]
        labels.append(float(right))
    return labels


def trace_reward(chat: Chat) -> Reward:
    """1 for the right number after `#`, whatever stands before it; and the checker's label at the end of each step."""
    steps = Steps(chat, " ;")

    async def judge(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = []
        for rollout in rollouts:
            right = rollout.text.partition("#")[2].split() == [task.answer]
            places = [stop - 1 for _, stop in steps.of(rollout)]
            labels = checked(task, rollout.text)
            labels += [0.0] * (len(places) - len(labels))  # the stop token alone
            scores.append(Score(float(right), correct=right, step_rewards=tuple(zip(places, labels))))
        return scores

    return judge


def trace_start(seed: int, steps: int) -> Policy:
    """A table that imitates: of ten solutions of a sum four are right, four right by two errors, two wrong."""
    chat, kinds = ToyChat([*NUMBERS, "+", "=", ";", "#"]), ("right",) * 4 + ("cancelling",) * 4 + ("wrong",) * 2
    shown = [
        Task(f"{task.id}/{i}", task.prompt, task.answer, {"solution": written(task, kind)})
        for task in sums()
        for i, kind in enumerate(kinds)
    ]
    policy = toy_policy(chat, TRACE_LENGTH, buckets=509, learning_rate=0.3, seed=seed)
    for _ in train(Recorded(shown, chat, batch=90, seed=seed), policy, sft(), steps=steps):
        pass
    return afresh(policy, 0.1)


def afresh(policy: Policy, rate: float) -> Policy:
    """The same table, with a new optimiser at another rate."""
    learner = policy.learner
    assert isinstance(learner, ToyLearner)
    learner.learning_rate = rate
    learner.reset(keep_weights=True)
    return policy


def traces(policy: Policy, seed: str, n: int) -> dict[str, float]:
    """What of the policy's rollouts is right, and what of the right ones has a wrong step in it."""
    scores = [
        s
        for g in groups_of(policy, sums(), trace_reward(policy.chat), length=TRACE_LENGTH, n=n, seed=seed)
        for s in g.scores
    ]
    right = [s for s in scores if s.correct]
    bad = [s for s in right if min(v for _, v in s.step_rewards) < 0.5]
    return {"correct": len(right) / len(scores), "trace_error": len(bad) / max(1, len(right))}


def wrong_share(step: Step) -> float:
    """Of the right rollouts of a step those with a wrong step in them."""
    right = [(g.task, r.text) for g in step.groups for r, s in zip(g.rollouts, g.scores) if s.correct]
    return sum(min(checked(task, text)) < 0.5 for task, text in right) / max(1, len(right))


def trace_study(arm: str, seed: int, *, steps: int, imitation: int, n: int) -> dict[str, Any]:
    """One arm from the start of its seed: shares before and after, and along the way."""
    policy = trace_start(seed, imitation)
    before, judge = traces(policy, f"{seed}/before", n), trace_reward(policy.chat)
    reward, algorithm = {
        "outcome": (Stepwise(judge, "min", coef=0.0), grpo()),
        "process": (judge, grpo(supervision="process")),
        "min": (Stepwise(judge, "min"), grpo()),
    }[arm]
    curve = []
    for step in learn(
        policy, sums(), reward, algorithm, steps=steps, length=TRACE_LENGTH, prompts=27, rollouts=8, seed=seed
    ):
        curve.append((step.index, step.metrics["reward/correct"], wrong_share(step)))
    return {"before": before, "after": traces(policy, f"{seed}/after", n), "curve": curve}


# --- key door: which of n words was it? -------------------------------------------------------------------------------

DOOR_WORDS = [f"{letter}x" for letter in "abcdef"]
KEY = "cx"
DOOR_ARMS = ("step", "critic", "reinforce")


class Door:
    """What stands after each word that was chosen: whether the key is held, which the first word took or none."""

    trigger = "x"

    def __call__(self, text: str) -> str:
        """The state."""
        return " held" if text.split()[:1] == [KEY] else " bare"


class Endless:
    """A chat that never stops by itself: a chain is as long as it may be."""

    stop_ids: frozenset[int] = frozenset()

    def __init__(self, chat: Chat) -> None:
        self.chat = chat

    def __getattr__(self, name: str) -> Any:
        return getattr(self.chat, name)


def door_reward(key: int, steps: bool) -> Reward:
    """1 at the end where the first word was the key. `steps`: said at the first word too, as a potential."""

    async def judge(_: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = []
        for rollout in rollouts:
            found = float(rollout.tokens[rollout.prompt_length] == key)
            said = ((rollout.prompt_length, found), (len(rollout.tokens) - 1, found)) if steps else ()
            scores.append(Score(found, correct=bool(found), step_rewards=said))
        return scores

    return Stepwise(judge, "potential") if steps else judge


def door_study(
    arm: str, n: int, seed: int, *, rate: float, critic_rate: float = 1e-2, lam: float = 1.0, warmup: int = 0,
    epochs: int = 4, width: int = 16, rollouts: int = 8, most: int = 400, goal: float = 0.9,
) -> dict[str, Any]:  # fmt: skip
    """Updates until P(the key is taken) ≥ `goal`, computed exactly before each (None: not in `most`), and the curve."""
    with tempfile.TemporaryDirectory() as folder:
        for name, size in (("policy", 16), ("critic", width)):
            shape = SmallModel(layers=1, width=size, heads=2, kv_heads=1, context=2 * n + 8)
            build_small(Path(folder) / name, shape, vocabulary=[*DOOR_WORDS, "go", "held", "bare"], seed=seed)
        model, beside = (load_causal(Path(folder) / name) for name in ("policy", "critic"))
    critic = SeparateCritic(beside, learning_rate=critic_rate) if arm == "critic" else None
    made = LocalBackend(threads=1).policy(model, Optimiser(learning_rate=rate), critic=critic)
    policy = Policy(made.learner, made.sampler, Endless(made.chat), made.publish)
    task, key = Task("door", (Message("user", "go"),)), made.chat.encode(KEY)[-1]
    algorithm = reinforce_plus_plus(0.0, epochs=epochs)  # PPO without a critic: all else is alike
    if arm == "critic":
        algorithm = ppo(0.0, lam=lam, bootstrap=False, value_clip=None, critic_warmup=warmup, epochs=epochs)
    prompt = made.chat.prompt(task.prompt)
    mask = (False,) * len(prompt) + (True,)
    taken = Rollout("door", (*prompt, key), mask, (0.0,) * len(mask), Finish.LENGTH)
    probe = pack([Example(taken, 0.0, 0, 0)])

    def chance() -> float:
        return math.exp(float(policy.learner.logprobs(probe)[0, -1]))

    curve: list[Point] = [(0, chance())]
    steps = learn(
        policy, [task], door_reward(key, arm == "step"), algorithm,
        steps=most, length=2 * n, prompts=1, rollouts=rollouts, seed=seed, tool=Door(),
    )  # fmt: skip
    for step in steps:
        curve.append((step.index + 1, chance()))
        if curve[-1][1] >= goal:
            return {"updates": step.index + 1, "curve": curve}
    return {"updates": None, "curve": curve}


# --- padding: what is paid for steps ----------------------------------------------------------------------------------

PADDING_LENGTH = 24
PADDING_ARMS = ("outcome", "sum", "mean", "process", "potential", "min", "last")
QUESTIONS = [Task(f"q{i}", (Message("user", f"q{i}"),), answer) for i, answer in enumerate(("yes", "no", "no", "yes"))]


def plausibility(task: Task, step: str) -> float:
    """A process reward model that nobody could call bad: .9 for a neutral step and for the right answer, .1 for the
    wrong one, .2 for what is neither."""
    return {"hm ;": 0.9, "yes": 0.9 if task.answer == "yes" else 0.1, "no": 0.9 if task.answer == "no" else 0.1}.get(
        step.strip(), 0.2
    )


def padding_reward(chat: Chat) -> Reward:
    """1 for a completion that ends with the right answer; and how plausible each step is."""
    steps = Steps(chat, " ;")

    async def judge(task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = []
        for rollout in rollouts:
            places, texts = [stop - 1 for _, stop in steps.of(rollout)], split_steps(rollout.text, " ;")
            right = rollout.finish is Finish.STOP and bool(texts) and texts[-1].strip() == task.answer
            values = [plausibility(task, text) for text in texts] + [0.2] * (len(places) - len(texts))
            scores.append(Score(float(right), correct=right, step_rewards=tuple(zip(places, values))))
        return scores

    return judge


def padding_study(arm: str, seed: int, *, steps: int, imitation: int) -> dict[str, Any]:
    """Steps of a completion and success along the way, from a policy that writes none, one or two neutral steps."""
    chat = ToyChat(["hm", ";", "yes", "no", *(task.id for task in QUESTIONS)])
    size, draw = len(chat.words), torch.Generator().manual_seed(seed)
    policy = bigram_policy(chat, Bigrams(0.1 * torch.randn(61, size, size, generator=draw), PADDING_LENGTH), 0.3)
    shown = [
        Task(f"{task.id}/{k}/{said}", task.prompt, said, {"solution": " ".join(["hm ;"] * k + [said])})
        for task in QUESTIONS
        for k in range(3)
        for said in ("yes", "no")
    ]
    for _ in train(Recorded(shown, chat, batch=24, seed=seed), policy, sft(), steps=imitation):
        pass
    afresh(policy, 0.1)
    judge = padding_reward(chat)
    reward: Reward = Stepwise(judge, arm) if arm in ("sum", "mean", "potential", "min", "last") else judge
    if arm == "outcome":
        reward = Stepwise(judge, "min", coef=0.0)
    algorithm = grpo(supervision="both") if arm == "process" else reinforce()
    curve = []
    for step in learn(
        policy, QUESTIONS, reward, algorithm, steps=steps, length=PADDING_LENGTH, prompts=4, rollouts=8, seed=seed
    ):
        said = [len(split_steps(r.text, " ;")) for g in step.groups for r in g.rollouts]
        curve.append((step.index, statistics.fmean(said), step.metrics["reward/correct"]))
    last = curve[-10:]
    return {
        "steps": statistics.fmean(x for _, x, _ in last), "success": statistics.fmean(x for _, _, x in last),
        "before": curve[0][1:], "curve": curve,
    }  # fmt: skip


# --- late: one score after 500 words ----------------------------------------------------------------------------------

ANSWERS, FILLERS = ["a1", "a2", "a3", "a4"], [f"f{i}" for i in range(12)]
LATE_ARMS = ("outcome", "value", "step", "step and value", "penalty", "kl")


class Frozen:
    """A table as a reference."""

    def __init__(self, model: ToyModel) -> None:
        self.model = model

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]` nats."""
        return self.model.outputs(batch).logprobs


class Remembering(ToyCritic):
    """Values by place and by the first word that was said: `table[0, place, first word]`."""

    def values(self, model: ToyModel, batch: Batch) -> Tensor:
        """See `ToyCritic`."""
        _, position, _ = model.states(batch)
        starts = batch.mask.to(torch.int8).argmax(1, keepdim=True)
        first = torch.where(position > 0, batch.tokens.gather(1, starts).expand_as(batch.tokens), 0)
        found = self.table[0, position.clamp(0, model.length), first]
        return torch.where(batch.mask, found, torch.zeros_like(found))


def habit(chat: ToyChat, seed: int, repeat: float) -> Tensor:
    """Logits `[1, V, V]`: answers alike after the question, then fillers, each by `repeat` more after itself."""
    size = len(chat.words)
    draw = torch.Generator().manual_seed(seed)
    logits = torch.full((size, size), -40.0)
    fillers, answers = [chat.ids[w] for w in FILLERS], [chat.ids[w] for w in ANSWERS]
    noise = 0.1 * torch.randn(size, size, generator=draw)
    for before in (*fillers, *answers):
        logits[before, fillers] = noise[before, fillers]
    logits[chat.ids["ask"], answers] = noise[chat.ids["ask"], answers]
    logits[fillers, fillers] += repeat
    return logits[None]


def repeats(rollout: Rollout) -> list[bool]:
    """Of every token whether it was chosen and is the one before it again."""
    return [own and i > 0 and rollout.tokens[i] == rollout.tokens[i - 1] for i, own in enumerate(rollout.mask)]


def late_reward(chat: ToyChat, fine: float) -> Reward:
    """1 at the end where the first word was the right answer; `fine` where a word is said again, as a step's reward."""

    async def judge(_: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        scores = []
        for rollout in rollouts:
            right = rollout.tokens[rollout.prompt_length] == chat.ids["a2"]
            said = [(i, -fine) for i, again in enumerate(repeats(rollout)) if again] if fine else []
            scores.append(Score(float(right), correct=right, step_rewards=tuple(said)))
        return scores

    return judge


def blame(step: Step) -> tuple[float | None, float | None]:
    """(advantage of repeated words − of the others in the same rollout, in deviations of all; the share of all credit,
    in absolute numbers, that the deciding word has). None where the rollouts were all alike and got no credit."""
    batch = step.batch
    if batch is None:
        return None, None
    spread = float(batch.advantages[batch.mask].std())
    apart, share = [], []
    for example, given in zip(step.examples, batch.advantages):
        again = torch.tensor(repeats(example.rollout))
        chosen = torch.tensor(example.rollout.mask)
        given = given[: len(chosen)]
        total = float(given.abs().sum())
        if total:
            share.append(float(given[example.rollout.prompt_length].abs()) / total)
        if again.any():
            apart.append(float(given[again].mean() - given[chosen & ~again].mean()))
    mean = statistics.fmean
    return (mean(apart) / spread if apart and spread else None), (mean(share) if share else None)


def late_study(arm: str, seed: int, *, steps: int, length: int = 500, fine: float = 0.02) -> dict[str, Any]:
    """Success, repetition, and where the credit goes, along the way."""
    chat = ToyChat([*ANSWERS, *FILLERS, "ask"])
    model = Bigrams(habit(chat, seed, repeat=2.0), length)
    critic = Remembering(model) if arm in ("value", "step and value") else None
    policy = bigram_policy(chat, model, 0.05, critic)
    reward = late_reward(chat, fine if arm.startswith("step") else 0.0)
    algorithm, reference = grpo(), None
    if arm == "penalty":
        reward = weighted({"answer": reward, "repetition": repetition(n=3)}, {"answer": 1.0, "repetition": 1.0})
    if arm == "kl":
        algorithm, reference = grpo(beta=0.05), Frozen(Bigrams(habit(chat, seed, repeat=0.0), length))
    if arm == "step":
        algorithm = reinforce()
    if critic is not None:
        lam = 0.9 if arm == "step and value" else 1.0  # what is near counts; the critic learns what was really got
        algorithm = ppo(0.0, lam=lam, value_lam=1.0, bootstrap=False, value_clip=None, epochs=1)
    curve = []
    task = Task("late", (Message("user", "ask"),))
    for step in learn(
        policy, [task], reward, algorithm, steps=steps, length=length, prompts=1, rollouts=16, seed=seed,
        reference=reference,
    ):  # fmt: skip
        every = [repeats(r) for g in step.groups for r in g.rollouts]
        said = sum(map(sum, every)) / sum(g.rollouts[0].completion_length * len(g.rollouts) for g in step.groups)
        curve.append((step.index, step.metrics["reward/correct"], said, *blame(step)))
    names = ("success", "repetition", "blame", "deciding")
    known = {  # what is reached at the end; where credit goes, over the second half of the run
        name: [p[i + 1] for p in curve[(-5 if i < 2 else len(curve) // 2) :] if p[i + 1] is not None]
        for i, name in enumerate(names)
    }
    reached = {name: statistics.fmean(values) if values else None for name, values in known.items()}
    return {**reached, "before": dict(zip(names, curve[0][1:])), "curve": curve}


#: Study → its arms.
ARMS: Mapping[str, Sequence[str]] = {"a": TRACE_ARMS, "b": DOOR_ARMS, "c": PADDING_ARMS, "d": LATE_ARMS}
