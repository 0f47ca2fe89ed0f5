"""Rollouts: from a task to a scored group, failures included."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat, ToyModel, ToySampler
from maieutic.core import select
from maieutic.core.measures import group_measures
from maieutic.errors import ModelError, PromptTooLong, RewardError
from maieutic.loops import run_async
from maieutic.protocols import Completion
from maieutic.rollout import Roller, spans_of
from maieutic.types import Finish, Message, Score, Span, Task

CHAT = ToyChat(["add", "1", "2", "3", "+", "="])
IDS = CHAT.ids
TASK = Task("sum/1", (Message("user", "add 1 2"),), answer="1 + 2 = 3")
PROMPT = CHAT.encode("add 1 2")


@dataclass
class Adder:
    """A tool that writes the sum of two one-digit numbers after "="."""

    trigger: str = "="
    asked: list[str] = field(default_factory=list)

    def __call__(self, text):
        self.asked.append(text)
        left, plus, right, _ = text.split()[-4:] if len(text.split()) >= 4 else ("", "", "", "")
        return str(int(left) + int(right)) if plus == "+" else None


async def by_text(task, rollouts):
    """1 for the right text."""
    return [Score(float(r.text == task.answer), correct=r.text == task.answer) for r in rollouts]


def certain(words):
    """A sampler of a policy that writes these words with certainty: a table with one high logit at every position."""
    ids = (*CHAT.encode(words), STOP)
    model = ToyModel(len(CHAT.words), 12)
    model.table.data.zero_()
    for place, token in enumerate(ids):
        model.table.data[:, place, :, token] = 50.0
    return ToySampler(model)


def roller(sampler, **options):
    options = {"max_completion_length": 12, **options}
    return Roller(sampler, CHAT, options.pop("reward", by_text), **options)


def scripted(words):
    return ScriptedSampler(lambda prompt, sibling: (*CHAT.encode(words), STOP))


def group_of(sampler, n=1, visit=0, task=TASK, **options):
    return asyncio.run(roller(sampler, **options).group(task, n, visit))


def test_a_rollout_is_the_prompt_and_what_was_sampled():
    group = group_of(scripted("1 + 2 = 3"), n=2, visit=17)
    assert group.id == 17
    assert group.task is TASK
    first, second = group.rollouts
    assert first.tokens == (*PROMPT, *CHAT.encode("1 + 2 = 3"), STOP)
    assert first.mask == (False,) * 3 + (True,) * 6  # the stop token is chosen too
    assert first.text == "1 + 2 = 3"
    assert first.finish is Finish.STOP
    assert (first.sibling, second.sibling) == (0, 1)
    assert first.spans == (Span("prompt", 0, 3), Span("assistant", 3, 9))
    assert [s.reward for s in group.scores] == [1.0, 1.0]


def test_what_a_tool_writes_is_masked_and_has_a_span_of_its_own():
    """A18: sampled ids and inserted ids are joined as ids; nothing is tokenised again."""
    # the policy writes "1 + 2 =", the tool 3 in the place after it, and the policy goes on there with its own next word
    tool = Adder()
    (rollout,) = group_of(certain("1 + 2 = 2 = 1"), tool=tool).rollouts
    assert tool.asked[0] == "1 + 2 ="
    assert rollout.text == "1 + 2 = 3 = 1"
    assert rollout.tokens[3 + 4] == IDS["3"]
    assert rollout.mask == (False,) * 3 + (True,) * 4 + (False,) + (True,) * 3
    assert rollout.logprobs[7] == 0.0
    assert rollout.spans == (
        Span("prompt", 0, 3), Span("assistant", 3, 7), Span("tool", 7, 8), Span("assistant", 8, 11),
    )  # fmt: skip
    assert rollout.completion_length == 7


def test_a_tool_that_has_nothing_to_say_writes_nothing():
    (rollout,) = group_of(certain("1 = 2"), tool=Adder()).rollouts
    assert rollout.text == "1 = 2"
    assert rollout.mask == (False,) * 3 + (True,) * 4


def test_a_tool_at_the_length_limit_is_cut_with_the_completion():
    # 4 tokens "1 + 2 =" fill the limit: there is no room for the tool's
    (rollout,) = group_of(certain("1 + 2 = 2"), tool=Adder(), max_completion_length=4).rollouts
    assert rollout.text == "1 + 2 ="
    assert rollout.finish is Finish.LENGTH
    assert len(rollout.tokens) == 3 + 4


def test_a_tool_that_could_never_be_asked_is_refused():
    with pytest.raises(ModelError, match="no token of this model can end in it"):
        group_of(scripted("1"), tool=Adder(trigger="?"))


def test_spans_cover_every_token_once_in_order():
    mask = (True, False, False, True, True, False)
    spans = spans_of(4, mask)
    assert [s.start for s in spans[1:]] == [s.stop for s in spans[:-1]]
    assert (spans[0].start, spans[-1].stop) == (0, 10)
    assert [s.role for s in spans] == ["prompt", "assistant", "tool", "assistant", "tool"]
    assert spans_of(4, ()) == (Span("prompt", 0, 4),)


@dataclass
class Full:
    """A sampler that has no room."""

    async def sample(self, prompt_tokens, params, n):
        raise PromptTooLong("the prompt has 3 tokens, the model takes 2")


async def refuses(task, rollouts):
    """A reward that must not be asked."""
    raise AssertionError("a rollout that failed was judged")


def test_a_prompt_that_does_not_fit_is_data_and_not_an_exception():
    group = group_of(Full(), n=3, reward=refuses)
    assert [r.finish for r in group.rollouts] == [Finish.ERROR] * 3
    assert [s.reward for s in group.scores] == [None] * 3
    assert all("the model takes 2" in r.note for r in group.rollouts)
    assert all("the model takes 2" in s.note for s in group.scores)
    assert [r.sibling for r in group.rollouts] == [0, 1, 2]
    measures = group_measures([group])
    assert measures["rollouts/errors"] == measures["rollouts/unscorable"] == measures["rollouts/count"] == 3
    assert select.everything()([group]) == []


def test_a_completion_that_does_not_fit_the_toy_is_such_a_failure():
    group = group_of(certain("1"), max_completion_length=13)
    assert "12 positions" in group.rollouts[0].note


def test_other_errors_of_a_sampler_are_not_swallowed():
    class Broken:
        async def sample(self, prompt_tokens, params, n):
            raise RuntimeError("the engine is gone")

    with pytest.raises(RuntimeError, match="the engine is gone"):
        group_of(Broken())


@dataclass
class Noting:
    """A sampler that notes the parameters it is called with."""

    calls: list = field(default_factory=list)

    async def sample(self, prompt_tokens, params, n):
        self.calls.append((tuple(prompt_tokens), params, n))
        return [Completion((STOP,), (True,), (0.0,), Finish.STOP, version=5) for _ in range(n)]


def test_what_the_sampler_is_asked():
    sampler = Noting()
    group_of(sampler, n=4, temperature=0.6)
    ((prompt, params, n),) = sampler.calls
    assert (prompt, n) == (PROMPT, 4)
    assert params.max_tokens == 12
    assert params.temperature == 0.6
    assert params.stop_ids == CHAT.stop_ids
    assert params.interject is None
    assert params.interject_ids == frozenset()


def test_keys_differ_by_visit_task_and_seed():
    sampler, other = Noting(), Task("sum/2", TASK.prompt, TASK.answer)
    for seed, visit, task in [(0, 0, TASK), (0, 1, TASK), (0, 0, other), (1, 0, TASK), (0, 0, TASK)]:
        group_of(sampler, visit=visit, task=task, seed=seed)
    keys = [params.key for _, params, _ in sampler.calls]
    assert len(set(keys)) == 4
    assert keys[0] == keys[4]


def wide(seed=0, n=8, visit=0):
    """A group of a policy that is nearly uniform, so that equal rollouts are no accident."""
    return group_of(ToySampler(ToyModel(len(CHAT.words), 12, seed=3)), n=n, visit=visit, seed=seed).rollouts


def test_siblings_and_visits_draw_numbers_of_their_own_and_a_visit_is_repeatable():
    first, again, later, other = wide(), wide(), wide(visit=1), wide(seed=1)
    assert first == again
    assert len({r.tokens for r in first}) > 5
    assert [r.tokens for r in first] != [r.tokens for r in later]
    assert [r.tokens for r in first] != [r.tokens for r in other]
    assert wide(n=3) == first[:3]  # a sibling does not depend on how many there are


def test_version_and_temperature_are_noted_and_greedy_is_scored_at_one():
    (rollout,) = group_of(Noting(), temperature=0.5).rollouts
    assert (rollout.version, rollout.temperature) == (5, 0.5)
    (greedy,) = group_of(Noting(), temperature=0.0).rollouts
    assert greedy.temperature == 1.0
    (failed,) = group_of(Full(), temperature=0.0, reward=refuses).rollouts
    assert failed.temperature == 1.0


async def value():
    """Gives way to others once, then returns."""
    await asyncio.sleep(0)
    return 42


async def failing():
    """Raises after giving way."""
    await asyncio.sleep(0)
    raise KeyError("lost")


def test_run_async_from_ordinary_code():
    assert run_async(value()) == 42
    with pytest.raises(KeyError, match="lost"):
        run_async(failing())


def test_run_async_inside_a_running_loop():
    """As in a notebook, where a loop is already running and asyncio.run refuses."""

    async def notebook():
        assert run_async(value()) == 42
        with pytest.raises(KeyError, match="lost"):
            run_async(failing())
        return "done"

    assert asyncio.run(notebook()) == "done"


@pytest.mark.parametrize(("reward", "said"), [(float("nan"), "expected a finite number"), (None, "exactly one")])
def test_a_reward_of_ones_own_that_breaks_its_word_stops_the_run(reward, said):
    async def broken(task, rollouts):
        return [Score(reward) for _ in rollouts] if reward is not None else []

    chat = ToyChat(["a"])
    roller = Roller(ToySampler(ToyModel(2, 2)), chat, broken, max_completion_length=2)
    with pytest.raises(RewardError, match=said):
        run_async(roller.group(Task("t", (Message("user", "a"),)), 2, visit=0))


def rewards_of(*given):
    """A reward that gives these, one rollout after the other."""
    left = list(given)

    async def judge(task, rollouts):
        return [Score(left.pop(0)) for _ in rollouts]

    return judge


def two_first(*rewards):
    """A group of four at most, of which two are written before the others."""
    keeps = select.informative().keeps
    sampler = ToySampler(ToyModel(len(CHAT.words), 12))
    roller = Roller(
        sampler, CHAT, rewards_of(*rewards), max_completion_length=6, first=2, decided=lambda group: not keeps(group)
    )
    return asyncio.run(roller.group(TASK, 4, 0))


def test_a_group_whose_first_rewards_are_alike_stays_at_these():
    group = two_first(1.0, 1.0)
    assert group.rewards == (1.0, 1.0)
    assert [r.sibling for r in group.rollouts] == [0, 1]


def test_a_group_whose_first_rewards_differ_is_written_to_its_end():
    group = two_first(1.0, 0.0, 1.0, 1.0)
    assert group.rewards == (1.0, 0.0, 1.0, 1.0)
    assert [r.sibling for r in group.rollouts] == [0, 1, 2, 3]
    assert len({r.tokens for r in group.rollouts}) == 4  # the second two are not the first two again


def test_the_first_of_a_group_are_the_same_whether_others_follow():
    short, long = two_first(1.0, 1.0), two_first(1.0, 0.0, 1.0, 1.0)
    assert [r.tokens for r in short.rollouts] == [r.tokens for r in long.rollouts[:2]]
