"""Sources: which tasks are drawn when, refilling, demonstrations, and going on where one stopped."""

from __future__ import annotations

import json
import logging

import pytest

from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat, ToyModel, ToySampler, ToySums
from maieutic.core.select import everything, informative
from maieutic.errors import ConfigError, DataError, RewardError
from maieutic.rollout import Roller
from maieutic.sources import MAX_EMPTY_STEPS, Order, Recorded, Sampled, demonstration
from maieutic.types import Finish, Message, Score, Span, Task

TASKS = ToySums(limit=3)
CHAT = ToyChat(TASKS.vocabulary)


async def by_text(task, rollouts):
    """1 for the right text."""
    return [Score(float(r.text == task.answer), correct=r.text == task.answer) for r in rollouts]


def sampled(sampler=None, tasks=TASKS, seed=0, **options):
    sampler = sampler or ToySampler(ToyModel(len(CHAT.words), 3, 16))
    roller = Roller(sampler, CHAT, by_text, max_completion_length=3, seed=seed)
    return Sampled(tasks, roller, **{"prompts": 2, "num_generations": 2, "seed": seed, **options})


class TestOrder:
    def test_every_task_comes_once_an_epoch(self):
        order = Order(7, seed=0)
        for epoch in range(4):
            assert sorted(order[7 * epoch + i] for i in range(7)) == list(range(7))

    def test_each_epoch_and_each_seed_has_an_order_of_its_own(self):
        order = Order(20, seed=0)
        epochs = [tuple(order[20 * e + i] for i in range(20)) for e in range(3)]
        assert len(set(epochs)) == 3
        assert epochs[0] != tuple(range(20))
        assert tuple(Order(20, seed=1)[i] for i in range(20)) != epochs[0]

    def test_it_is_a_pure_function_of_seed_and_visit(self):
        first, second = Order(9, "a/b"), Order(9, "a/b")
        visits = [40, 3, 17, 3, 0, 88, 40]  # in whatever order and however often they are asked for
        assert [first[v] for v in visits] == [second[v] for v in reversed(visits)][::-1]

    def test_no_tasks_are_refused(self):
        with pytest.raises(DataError, match="needs at least one task"):
            Order(0, seed=0)


class TestSampled:
    def test_groups_come_in_the_order_of_their_visits(self):
        source, order = sampled(prompts=4, num_generations=3), Order(9, 0)
        groups = source.next() + source.next() + source.next()
        assert [g.id for g in groups] == list(range(12))
        assert [g.task.id for g in groups] == [TASKS[order[v]].id for v in range(12)]
        assert all(len(g.rollouts) == 3 for g in groups)

    def test_a_task_drawn_twice_makes_two_different_groups(self):
        source = sampled(tasks=[TASKS[0]], prompts=2, num_generations=6)
        first, second = source.next()
        assert first.task is second.task
        assert first.id != second.id
        assert [r.tokens for r in first.rollouts] != [r.tokens for r in second.rollouts]

    def test_going_on_is_the_same_as_never_having_stopped(self):
        unbroken = sampled()
        expected = [unbroken.next() for _ in range(6)]
        begun = sampled()
        assert [begun.next() for _ in range(2)] == expected[:2]
        state = json.loads(json.dumps(begun.state()))
        resumed = sampled()
        resumed.restore(state)
        assert [resumed.next() for _ in range(4)] == expected[2:]
        assert resumed.state() == unbroken.state() == {"visits": 12}

    @pytest.mark.parametrize("wrong", [{"prompts": 0}, {"num_generations": 0}])
    def test_nothing_to_draw_is_refused(self, wrong):
        with pytest.raises(ConfigError, match="expected at least 1 each"):
            sampled(**wrong)


async def silent(task, rollouts):
    """A reward that can say nothing."""
    return [Score(None, note="no opinion") for _ in rollouts]


class TestNothingToLearnFrom:
    def empty(self, reward, length=3):
        roller = Roller(ToySampler(ToyModel(len(CHAT.words), 3, 16)), CHAT, reward, max_completion_length=length)
        return Sampled(TASKS, roller, prompts=2, num_generations=2)

    def test_steps_without_a_single_reward_end_the_run(self):
        source = self.empty(silent)
        for _ in range(MAX_EMPTY_STEPS - 1):
            assert len(source.next()) == 2
        with pytest.raises(RewardError, match=r"no rollout could be scored in 3 steps in a row; the last.*no opinion"):
            source.next()

    def test_steps_without_a_single_rollout_end_the_run(self):
        source = self.empty(by_text, length=4)  # one token more than the toy model has positions
        for _ in range(MAX_EMPTY_STEPS - 1):
            assert {r.finish for g in source.next() for r in g.rollouts} == {Finish.ERROR}
        with pytest.raises(DataError, match=r"no rollout could be made in 3 steps in a row.*3 positions"):
            source.next()

    def test_one_reward_starts_the_count_anew(self):
        async def now_and_then(task, rollouts):
            asked.append(task)
            return [Score(1.0 if len(asked) % 6 == 5 else None) for _ in rollouts]  # in each third step

        asked = []
        source = self.empty(now_and_then)
        steps = [source.next() for _ in range(9)]
        scored = [any(s.reward is not None for g in step for s in g.scores) for step in steps]
        assert scored == [False, False, True] * 3


def every_other(prompt, sibling):
    """Right for sibling 0 and wrong for the others where the first number is even; always wrong where it is odd."""
    a, _, b = (int(w) if w != "+" else w for w in CHAT.decode(prompt).split())
    right = sibling == 0 and a % 2 == 0
    return (*CHAT.encode(" ".join(str(a + b if right else 9))), STOP)


class TestRefilling:
    """Tasks a + b with a, b below 3; of the nine, the six with a = 0 or 2 are informative under `every_other`."""

    def refilled(self, script=every_other, **options):
        options = {"prompts": 4, "until": informative().keeps, **options}
        return sampled(ScriptedSampler(script), **options)

    def test_it_returns_exactly_as_many_informative_groups_as_prompts(self, caplog):
        source = self.refilled()
        with caplog.at_level(logging.WARNING):
            steps = [source.next() for _ in range(5)]
        keeps = informative().keeps
        assert [sum(map(keeps, groups)) for groups in steps] == [4] * 5
        assert all(0 < sum(g.rewards) / len(g.rewards) < 1 for groups in steps for g in groups if keeps(g))
        assert any(len(groups) > 4 for groups in steps)  # some were drawn again, and all drawn ones are there
        assert not caplog.records

    def test_every_task_is_still_visited_once_an_epoch(self):
        source = self.refilled()
        drawn = [g.task.id for _ in range(8) for g in source.next()]
        assert len(drawn) > 27
        for epoch in range(3):
            assert len(set(drawn[9 * epoch : 9 * epoch + 9])) == 9

    def test_only_what_is_missing_is_drawn_again(self):
        groups = self.refilled().next()
        # the first round is four groups; each further one is as many as did not count so far
        ids = [g.id for g in groups]
        assert ids == list(range(len(groups)))
        keeps, missing, at = informative().keeps, 4, 0
        while missing:
            part = groups[at : at + missing]
            at += len(part)
            missing -= sum(map(keeps, part))
        assert at == len(groups)

    def test_it_gives_up_with_a_warning_and_returns_all_that_it_drew(self, caplog):
        source = self.refilled(lambda prompt, sibling: (STOP,), max_refill=2)
        with caplog.at_level(logging.WARNING, "maieutic.sources"):
            groups = source.next()
        assert len(groups) == 4 * 3  # the first round and two more, of four each
        assert [g.id for g in groups] == list(range(12))
        (record,) = caplog.records
        assert "4 of 4 prompts gave no usable group after 2 refills" in record.getMessage()
        assert source.next()[0].id == 12
        assert [r.levelno for r in caplog.records].count(logging.WARNING) == 1  # said once, not at every step

    def test_no_refill_means_one_round(self, caplog):
        with caplog.at_level(logging.WARNING, "maieutic.sources"):
            groups = self.refilled(lambda prompt, sibling: (STOP,), max_refill=0).next()
        assert len(groups) == 4
        assert len(caplog.records) == 1

    def test_going_on_after_a_refill_is_the_same_as_never_having_stopped(self):
        unbroken = self.refilled()
        expected = [unbroken.next() for _ in range(6)]
        begun = self.refilled()
        for _ in range(3):
            begun.next()
        resumed = self.refilled()
        resumed.restore(begun.state())
        assert [resumed.next() for _ in range(3)] == expected[3:]

    def test_without_until_nothing_is_drawn_again(self, caplog):
        groups = self.refilled(lambda prompt, sibling: (STOP,), until=None).next()
        assert len(groups) == 4
        assert not caplog.records


WORDS = ToyChat(["add", "1", "2", "3", "4", "+", "=", "so"])
SOLUTION = "1 + 2 = 3 so 3 + 1 = 4"


class Adder:
    """A tool that writes the sum of two one-digit numbers after "="; it writes the space before it, too."""

    trigger = "="

    def __call__(self, text):
        left, plus, right, _ = text.split()[-4:]
        return f" {int(left) + int(right)}" if plus == "+" else None


def shown(id="d/0", solution=SOLUTION):
    meta = {} if solution is None else {"solution": solution}
    return Task(id, (Message("user", "add 1 2"), Message("user", "so")), answer="4", meta=meta)


class TestDemonstrations:
    def test_without_a_tool_every_word_and_the_stop_token_are_chosen(self):
        rollout = demonstration(shown(), SOLUTION, WORDS)
        assert rollout.tokens == (*WORDS.encode("add 1 2 so"), *WORDS.encode(SOLUTION), STOP)
        assert rollout.mask == (False,) * 4 + (True,) * 12
        assert rollout.logprobs == (0.0,) * 16
        assert rollout.finish is Finish.STOP
        assert rollout.text == SOLUTION
        assert rollout.spans == (Span("prompt", 0, 4), Span("assistant", 4, 16))

    def test_what_the_tool_would_write_is_masked(self):
        rollout = demonstration(shown(), SOLUTION, WORDS, Adder())
        written = [i for i in range(4, 16) if not rollout.mask[i]]
        assert written == [8, 14]  # "3" after the first "=", "4" after the second
        assert [s.role for s in rollout.spans] == ["prompt", "assistant", "tool", "assistant", "tool", "assistant"]
        assert rollout.tokens == demonstration(shown(), SOLUTION, WORDS).tokens

    def test_a_wrong_result_in_a_solution_is_the_demonstrators_own(self):
        rollout = demonstration(shown(), "1 + 2 = 4", WORDS, Adder())
        assert rollout.mask == (False,) * 4 + (True,) * 6

    def test_text_is_cut_into_the_pieces_in_which_a_rollout_would_have_made_it(self):
        class Pieces(ToyChat):
            """A chat that notes what it is asked to encode."""

            def encode(self, text):
                pieces.append(text)
                return super().encode(text)

        pieces = []
        chat = Pieces(WORDS.words[1:])
        demonstration(shown(), SOLUTION, chat, Adder())
        # the prompt, then up to a trigger, what the tool adds to it, and the end of the turn
        assert pieces == ["add 1 2 so", "1 + 2 =", " 3", " so 3 + 1 =", " 4", ""]

    def test_a_demonstration_is_the_rollout_that_would_have_written_it(self):
        """A policy certain of the demonstration's chosen tokens writes it, with the tool, token for token."""
        rollout = demonstration(shown(), SOLUTION, WORDS, Adder())
        model = ToyModel(len(WORDS.words), 12)
        model.table.data.zero_()
        for place, token in enumerate(rollout.tokens[4:]):
            if rollout.mask[4 + place]:
                model.table.data[:, place, :, token] = 50.0
        roller = Roller(ToySampler(model), WORDS, by_text, max_completion_length=12, tool=Adder())
        (written,) = Sampled([shown()], roller, prompts=1, num_generations=1).next()[0].rollouts
        assert written.tokens == rollout.tokens
        assert written.mask == rollout.mask
        assert written.spans == rollout.spans
        assert written.text == rollout.text


class TestRecorded:
    def recorded(self, **options):
        tasks = [shown(f"d/{i}", f"{i} + 1 =") for i in range(1, 5)]
        return Recorded(tasks, WORDS, **{"batch": 2, "seed": 3, **options})

    def test_demonstrations_are_groups_of_one_with_reward_one(self):
        groups = self.recorded().next()
        assert [g.id for g in groups] == [0, 1]
        assert all(g.scores == (Score(1.0),) and len(g.rollouts) == 1 for g in groups)

    def test_every_task_comes_once_an_epoch_in_the_order_of_its_seed(self):
        source = self.recorded()
        ids = [g.task.id for _ in range(4) for g in source.next()]
        assert sorted(ids[:4]) == sorted(ids[4:]) == ["d/1", "d/2", "d/3", "d/4"]
        order = Order(4, 3)
        assert ids == [f"d/{order[v] + 1}" for v in range(8)]

    def test_going_on_is_the_same_as_never_having_stopped(self):
        unbroken = self.recorded()
        expected = [unbroken.next() for _ in range(5)]
        resumed = self.recorded()
        resumed.restore(json.loads(json.dumps({"visits": 4})))
        assert [resumed.next() for _ in range(3)] == expected[2:]
        assert resumed.state() == {"visits": 10}

    @pytest.mark.parametrize("solution", [None, "", "  \n"])
    def test_a_task_without_a_solution_is_named(self, solution):
        source = Recorded([shown("d/lost", solution)], WORDS, batch=1)
        with pytest.raises(DataError, match=r"'d/lost' has no worked solution.*'solution' column"):
            source.next()

    def test_a_demonstration_that_does_not_fit_the_model_is_counted_and_not_learned_from(self):
        # 4 tokens of prompt, 3 and 11 of solution, the stop token: 8 and 16
        tasks = [shown("d/short", "1 + 2"), shown("d/long", SOLUTION)]
        source = Recorded(tasks, WORDS, batch=2, limit=8)
        groups = {g.task.id: g for g in source.next()}
        assert groups["d/short"].scores == (Score(1.0),)
        (long,), (score,) = groups["d/long"].rollouts, groups["d/long"].scores
        assert long.finish is Finish.ERROR
        assert score.reward is None
        assert "16 tokens; the model has 8 positions" in long.note
        assert [e.rollout.task_id for e in everything()(list(groups.values()))] == ["d/short"]
        assert all(g.scores == (Score(1.0),) for g in Recorded(tasks, WORDS, batch=2, limit=16).next())

    def test_demonstrations_none_of_which_fit_end_the_run(self):
        source = Recorded([shown()], WORDS, batch=1, limit=15)
        for _ in range(MAX_EMPTY_STEPS - 1):
            source.next()
        with pytest.raises(DataError, match=r"in 3 steps in a row.*the model has 15 positions"):
            source.next()

    def test_an_empty_batch_is_refused(self):
        with pytest.raises(ConfigError, match="batch=0; expected at least 1"):
            self.recorded(batch=0)

    def test_no_tasks_are_refused(self):
        with pytest.raises(DataError, match="at least one task"):
            Recorded([], WORDS, batch=1)
