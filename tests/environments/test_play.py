"""A task becomes a group of episodes: tokens in, tokens out, whatever else is played, and whatever goes wrong."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable

import pytest
import torch

from maieutic.algorithms import make_algorithm
from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat, ToySampler, toy_policy
from maieutic.core.measures import group_measures
from maieutic.environments.episodes import turn_count, turns_of
from maieutic.errors import ConfigError, ModelError
from maieutic.evaluate import Evaluation, evaluate_sync
from maieutic.play import Player
from maieutic.protocols import Completion, Reply, Sampling
from maieutic.rewards.compose import answer_reward
from maieutic.run.played import under_rules
from maieutic.run.tasksets import named_taskset
from maieutic.sources import Sampled
from maieutic.tasks import guess, mixture
from maieutic.train import train
from maieutic.types import Finish, Message, Score, Task

CHAT = ToyChat(["ask", *"123456789", "higher", "lower", "say"])
TASK = Task("t", (Message("user", "ask"),), "5")


class Scripted:
    """Does what it is told to do at each turn; counts what is open."""

    name, at_once = "scripted", True

    def __init__(self, step: Callable[[int, Message], Reply], max_turns: int = 3, score: Score | None = None, **own):
        self.act, self.max_turns, self.given, self.open, self.seeds = step, max_turns, score, 0, []
        vars(self).update(own)

    async def start(self, task, seed):
        self.seeds.append(seed)
        self.open += 1
        return Episode(self, task)


class Episode:
    def __init__(self, environment, task):
        self.environment, self.opening, self.turns = environment, task.prompt, 0

    async def step(self, message):
        self.turns += 1
        found = self.environment.act(self.turns, message)
        return await found if asyncio.iscoroutine(found) else found

    async def score(self):
        return self.environment.given

    async def close(self):
        self.environment.open -= 1


def higher(turn, message):
    return Reply((Message("user", "higher"),), reward=0.25 * turn, parts={"turn": float(turn)}, note=f"turn {turn}")


async def fixed(task, rollouts):
    return [Score(1.0, parts={"fixed": 1.0}, step_rewards=((1, 0.5),)) for _ in rollouts]


def writer(*words: str):
    """Says these words, one a turn, then goes on with the last one."""
    return ScriptedSampler(lambda prompt, _: (CHAT.ids[words[min(prompt.count(STOP), len(words) - 1)]], STOP))


def player(environment, sampler=None, **options):
    given = {"reward": fixed, "max_completion_length": 20, "seed": 7, **options}
    return Player(sampler or writer("1", "2", "3"), CHAT, environment=environment, **given)


def play(environment, sampler=None, n=1, **options):
    return asyncio.run(player(environment, sampler, **options).group(TASK, n, 0))


# ---- what an episode becomes ---------------------------------------------------------------------------------------


def test_an_episode_by_hand():
    (rollout,), (score,) = (group := play(Scripted(higher))).rollouts, group.scores
    words = [CHAT.words[token] for token in rollout.tokens]
    assert words == ["ask", "1", "<stop>", "higher", "2", "<stop>", "higher", "3", "<stop>"]
    assert rollout.mask == (False, True, True, False, True, True, False, True, True)
    assert [(s.role, s.start, s.stop, s.text) for s in rollout.spans] == [
        ("prompt", 0, 1, ""), ("assistant", 1, 3, "1"), ("environment", 3, 4, "higher"),
        ("assistant", 4, 6, "2"), ("environment", 6, 7, "higher"), ("assistant", 7, 9, "3"),
    ]  # fmt: skip
    assert rollout.finish is Finish.ENVIRONMENT  # it has had its three turns
    assert rollout.text == "1 higher 2 higher 3"
    assert [(m.role, m.content) for m in turns_of(rollout)] == [
        ("assistant", "1"), ("user", "higher"), ("assistant", "2"), ("user", "higher"), ("assistant", "3"),
    ]  # fmt: skip
    assert turn_count(rollout) == 3
    # the run's reward judges; what turns were paid stands at their last chosen tokens, beside the reward's own steps
    assert (score.reward, score.parts) == (1.0, {"fixed": 1.0, "turn": 2.0})
    assert score.step_rewards == ((1, 0.5), (2, 0.25), (5, 0.5), (8, 0.75))
    assert score.note == "turn 3"


def test_the_environments_own_score_is_taken():
    own = Score(0.4, correct=True, parts={"turn": 9.0}, answer="3")
    (score,) = play(Scripted(higher, score=own)).scores
    assert (score.reward, score.correct, score.answer, score.parts) == (0.4, True, "3", {"turn": 9.0})
    assert score.step_rewards == ((2, 0.25), (5, 0.5), (8, 0.75))
    unscorable = play(Scripted(higher, score=Score(None, note="a draw"))).scores[0]
    assert (unscorable.reward, unscorable.step_rewards) == (None, ())


def test_what_the_model_wrote_is_never_rendered_again():
    """Each turn is asked for with the very tokens that came back before, though they are no text's own tokens."""
    asked = []

    class Drawing:
        async def sample(self, prompt, params: Sampling, n):
            asked.append((prompt, params.key, params.max_tokens))
            draw = random.Random(params.key)
            tokens = (*draw.choices(range(1, 10), k=draw.randint(1, 3)), STOP)
            return [Completion(tokens, (True,) * len(tokens), (-1.0,) * len(tokens), Finish.STOP)]

    group = play(Scripted(higher, max_turn_length=4), Drawing(), n=3, max_completion_length=30)
    for rollout in group.rollouts:
        mine = [row for row in asked if row[1].split("/")[-2] == str(rollout.sibling)]
        ends = [span.start for span in rollout.spans if span.role == "assistant"]
        assert [prompt for prompt, _, _ in mine] == [rollout.tokens[:end] for end in ends]
    assert len({key for _, key, _ in asked}) == len(asked) == 9  # every turn has a key of its own
    assert {most for _, _, most in asked} == {4}


def test_siblings_meet_the_same_chance():
    environment = Scripted(higher)
    one = player(environment)

    async def both():
        await asyncio.gather(one.group(TASK, 3, 0), one.group(TASK, 2, 1))

    asyncio.run(both())
    assert sorted(environment.seeds) == ["7/0/t"] * 3 + ["7/1/t"] * 2


# ---- how it ends ---------------------------------------------------------------------------------------------------


def test_the_environment_ends_it():
    def step(turn, message):
        return Reply((Message("user", "say"),), done=True) if message.content == "2" else higher(turn, message)

    (rollout,) = (group := play(Scripted(step, max_turns=9))).rollouts
    assert (rollout.finish, rollout.text) == (Finish.ENVIRONMENT, "1 higher 2")  # what was said last is shown to nobody
    assert group.scores[0].note == "say"  # but to people


def test_half_a_turn_is_cut_and_the_environment_is_not_asked():
    environment = Scripted(lambda *_: pytest.fail("asked"), max_turn_length=1)
    (rollout,) = play(environment).rollouts
    assert (rollout.finish, rollout.tokens, rollout.mask) == (Finish.LENGTH, (1, 2), (False, True))
    assert environment.open == 0


@pytest.mark.parametrize(("room", "words"), [(2, 1), (3, 1), (4, 3), (5, 3), (6, 3), (7, 5)])
def test_the_whole_completion_has_a_limit(room, words):
    """A turn is 2 tokens, what is said to it 1. With room for no more than that the last reply is left out."""
    (rollout,) = play(Scripted(higher, max_turns=5), max_completion_length=room).rollouts
    assert rollout.finish is Finish.LENGTH
    assert len(rollout.text.split()) == words
    assert rollout.mask[-1]
    assert len(rollout.tokens) - 1 <= room


def test_a_context_that_is_full_later_cuts_and_at_first_fails():
    model = toy_policy(CHAT, length=3, opening=1).sampler.model
    sampler = ToySampler(model, opening=1)
    first = play(Scripted(higher), sampler, max_completion_length=9)  # the first turn is asked for with 9
    assert first.rollouts[0].finish is Finish.ERROR
    assert "3 positions" in first.scores[0].note

    class Stops(ToySampler):
        async def sample(self, prompt, params, n):
            await ToySampler.sample(self, prompt, params, n)  # raises where there is no room
            return [Completion((3, STOP), (True, True), (-1.0, -1.0), Finish.STOP)]

    later = play(Scripted(higher, max_turn_length=2), Stops(model, opening=1), max_completion_length=9)
    assert (later.rollouts[0].finish, later.rollouts[0].text) == (Finish.LENGTH, "2")


def broken(turn, message):
    if message.content == "2":
        raise ValueError("it broke")
    return higher(turn, message)


def nothing(turn, message):
    return None


def infinite(turn, message):
    return Reply(reward=float("inf"))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (broken, "scripted.step: ValueError: it broke"),
        (nothing, "scripted.step: got NoneType; expected a maieutic.protocols.Reply"),
        (infinite, "scripted.step: got inf for 'reward'; expected a finite number"),
    ],
)
def test_an_episode_that_fails_is_counted_and_the_others_go_on(step, said):
    def sometimes(turn, message):
        return step(turn, message) if message.content == "2" else Reply(done=True)

    class Each(ScriptedSampler):
        async def sample(self, prompt, params, n):
            word = "2" if params.key.split("/")[-2] == "1" else "1"
            return await ScriptedSampler(lambda *_: (CHAT.ids[word], STOP)).sample(prompt, params, n)

    environment = Scripted(sometimes)
    group = play(environment, Each(lambda *_: ()), n=3)
    assert [r.finish for r in group.rollouts] == [Finish.ENVIRONMENT, Finish.ERROR, Finish.ENVIRONMENT]
    assert [s.reward for s in group.scores] == [1.0, None, 1.0]
    assert said in group.rollouts[1].note
    assert group.rollouts[1].text == "2"  # what was written stays to be seen
    assert environment.open == 0
    measures = group_measures([group])
    assert (measures["rollouts/errors"], measures["rollouts/unscorable"]) == (1.0, 1.0)


def test_a_setting_that_is_impossible_stops_the_run():
    def refuse(turn, message):
        raise ConfigError("not installed")

    environment = Scripted(refuse)
    with pytest.raises(ConfigError, match="not installed"):
        play(environment, n=4)
    assert environment.open == 0


def test_a_time_limit_is_kept_whether_it_waits_or_not():
    free = threading.Event()

    async def waits(turn, message):
        await asyncio.sleep(3600)

    def computes(turn, message):
        free.wait(60)
        return higher(turn, message)

    for step in (waits, computes):
        environment = Scripted(step, at_once=False, timeout_seconds=0.1)
        began = time.monotonic()
        (rollout,) = play(environment).rollouts
        assert "no answer within 0.1 s" in rollout.note
        assert time.monotonic() - began < 50  # and not the minute, or the hour
    free.set()
    after = play(Scripted(higher, at_once=False))  # who comes next is answered
    assert after.rollouts[0].finish is Finish.ENVIRONMENT


def test_cancelled_games_are_closed():
    async def waits(turn, message):
        await asyncio.sleep(3600)

    environment = Scripted(waits, at_once=False)

    async def stopped():
        game = asyncio.create_task(player(environment).group(TASK, 4, 0))
        while environment.open < 4:
            await asyncio.sleep(0.01)
        game.cancel()
        with pytest.raises(asyncio.CancelledError):
            await game

    asyncio.run(stopped())
    assert environment.open == 0


# ---- what it does not depend on ------------------------------------------------------------------------------------


def toy(learning_rate=0.3, **options):
    tasks = guess(3, max_turns=2, max_turn_length=2)
    chat = ToyChat(tasks.environment.vocabulary)
    policy = toy_policy(chat, length=20, opening=len(chat.prompt(tasks[0].prompt)), learning_rate=learning_rate, seed=1)
    made = Player(policy.sampler, chat, answer_reward(tasks.verifier), tasks.environment, 12, seed=3, **options)
    return tasks, policy, made


def test_a_group_does_not_depend_on_what_is_played_beside_it_or_on_how_long_answers_take():
    tasks, _, alone = toy()
    expected = [asyncio.run(alone.group(tasks[i], 4, i)) for i in range(3)]

    class Slow:
        """The same game, in which some answers take a while."""

        name, max_turns, max_turn_length = "slow", 2, 2

        async def start(self, task, seed):
            game = await tasks.environment.start(task, seed)
            step = game.step

            async def later(message):
                await asyncio.sleep(random.random() / 50)
                return await step(message)

            game.step = later
            return game

    _, policy, _ = toy()
    order = []

    class Watched(ToySampler):
        async def sample(self, prompt, params, n):
            order.append(params.key.rpartition("/")[2])
            return await super().sample(prompt, params, n)

    sampler = Watched(policy.sampler.model, opening=policy.sampler.opening)
    slow = Player(sampler, alone.chat, alone.reward, Slow(), 12, seed=3)

    async def all_at_once():
        return await asyncio.gather(*(slow.group(tasks[i], 4, i) for i in range(3)))

    assert asyncio.run(all_at_once()) == expected
    assert order == sorted(order)  # everybody's first turn, then everybody's second


def test_early_stopping_plays_the_first_half_first():
    tasks, _, whole = toy()
    four = asyncio.run(whole.group(tasks[0], 4, 0))
    _, _, decided = toy(first=2, decided=lambda group: True)
    assert asyncio.run(decided.group(tasks[0], 4, 0)).rollouts == four.rollouts[:2]
    _, _, undecided = toy(first=2, decided=lambda group: False)
    assert asyncio.run(undecided.group(tasks[0], 4, 0)) == four


def test_it_learns_to_heed_what_it_is_told():
    """Two guesses at one of three numbers: who does not heed the answer wins two games of three at most."""
    tasks, policy, made = toy(learning_rate=0.1)
    table = policy.sampler.model.table
    with torch.no_grad():  # the form is known: a number, then the end of the turn
        for number, end in ((0, 1), (3, 4)):
            table[:, number, :, [made.chat.ids[word] for word in "123"]] += 6.0
            table[:, end, :, STOP] += 9.0
    source = Sampled(tasks, made, prompts=6, num_generations=8)
    algorithm = make_algorithm("grpo", {}, max_completion_length=12)
    steps = list(train(source, policy, algorithm, steps=40))
    won = [step.metrics["reward/correct"] for step in steps]
    assert sum(won[:4]) / 4 < 2 / 3
    assert sum(won[-10:]) / 10 > 0.75
    assert (
        max(step.metrics["policy/sampler_mismatch_nats"] for step in steps) < 1e-6
    )  # the learner sees what was played


def test_evaluation_plays_too():
    tasks, policy, made = toy()
    found = evaluate_sync(policy.sampler, made.chat, tasks, max_tokens=12, samples=3, limit=6)
    metrics = found.metrics()
    assert 1.0 <= metrics["turns"].value <= 2.0
    assert metrics["won"].value == metrics["pass@1"].value
    assert Evaluation.from_json(found.to_json()) == found
    again = evaluate_sync(policy.sampler, made.chat, tasks, max_tokens=12, samples=3, limit=6, concurrency=1)
    assert again.problems == found.problems


# ---- tasks that are played -----------------------------------------------------------------------------------------


def test_rules_of_play_in_a_table_of_tasks():
    tasks = named_taskset("guess", {"highest": 4, "turn_timeout_seconds": 5.0})
    assert (tasks.environment.max_turns, tasks.environment.timeout_seconds) == (3, 5.0)
    shorter = under_rules(tasks, {"max_turns": 2, "max_turn_length": 7})
    assert (shorter.environment.max_turns, shorter.environment.max_turn_length) == (2, 7)
    plain = named_taskset("arithmetic", {"size": 4, "environment": "guess", "environment_options": {"highest": 99}})
    assert (plain.environment.name, plain.environment.highest) == ("guess", 99)
    with pytest.raises(ConfigError, match="the model answers its tasks once"):
        named_taskset("arithmetic", {"max_turns": 3})
    with pytest.raises(ConfigError, match="got max_turns = 0; expected a number above 0"):
        named_taskset("arithmetic", {"environment": "guess", "max_turns": 0})
    with pytest.raises(ConfigError, match="environment_options without an environment"):
        named_taskset("arithmetic", {"environment_options": {}})


def test_tasks_of_two_games_are_mixed_each_with_its_own_turns():
    easy, hard = guess(3, size=4), guess(8, size=4)
    hard = under_rules(hard, {"max_turns": 4})
    mixed = mixture({easy: 1, type(easy)("hard", hard.items, hard.verifier, None, hard.environment): 1}, seed=0)
    chat = ToyChat(mixed.environment.vocabulary)
    sampler = ScriptedSampler(lambda *_: (chat.ids["1"], STOP))
    made = Player(sampler, chat, fixed, mixed.environment, 50)
    for task in mixed:
        (rollout,) = asyncio.run(made.group(task, 1, 0)).rollouts
        least = 1 if task.answer == "1" else {"guess": 2, "hard": 4}[task.meta["mixture"][0]]
        assert turn_count(rollout) == least
    with pytest.raises(ConfigError, match="are answered once and the others played"):
        mixture({easy: 1, named_taskset("arithmetic", {"size": 4}): 1}, seed=0)


def test_who_cannot_be_played_with_is_refused():
    class Silent:
        stop_ids = frozenset({0})

    with pytest.raises(ModelError, match="without `continuation"):
        Player(writer("1"), Silent(), fixed, Scripted(higher), 9)
    with pytest.raises(ConfigError, match="max_turns = 0"):
        player(Scripted(higher, max_turns=0))
    with pytest.raises(ConfigError, match="expected at least 1 token"):
        player(Scripted(higher, max_turn_length=0))
