"""The five rewards of Wordle by hand, of snapshots and of games, and the game that plays them."""

from __future__ import annotations

import asyncio
import itertools
import tomllib
from pathlib import Path

import pytest

from maieutic.backends.toy import ScriptedSampler
from maieutic.config import parse_config
from maieutic.environments.wordle import Wordle, game_measures
from maieutic.errors import DataError
from maieutic.play import Player as Plays
from maieutic.rewards import load_reward
from maieutic.rewards.wordle import WORDLE
from maieutic.run.rewards import make_reward
from maieutic.tasks.wordle import wordle
from maieutic.types import Finish, Message, Rollout, Task
from maieutic.wordle import feedback, word_list
from maieutic.wordle.judge import (
    Said,
    binary,
    consistent_guess,
    layout_value,
    partial_credit,
    uses_previous_feedback,
    value,
)
from maieutic.wordle.talk import TAGS, layout_of
from maieutic.wordle.words import WordList

WORDS = word_list()
CRA = (("CRANE", "✓✓✓xx"), ("CRASH", "✓✓✓xx"))


def said(guess, history=(), secret="CRAFT", words=WORDS, formed=True):
    return Said(guess, formed, tuple(history), secret, words)


@pytest.mark.parametrize(
    ("guess", "history", "worth"),
    [
        ("CRAFT", CRA, 0.7),  # 3 · 0.2 in place, F and T are new: 2 · 0.05
        ("CRANE", CRA, -0.4),  # 3 · 0.2, N and E are absent: −2 · 0.5
        ("CRABS", CRA, 0.15),  # 3 · 0.2, B is new: 0.05, S is absent: −0.5
        ("CRACK", CRA, 0.7),  # not to be told from CRAFT
        ("CRANE", (("EERIE", "xx-x✓"),), 0.45),  # R elsewhere 0.1, E in place 0.2, three new 0.15
        ("CRANE", (), 0.1),
        ("CRA", CRA, 0.0),
        (None, CRA, 0.0),
    ],
)
def test_what_a_guess_makes_of_the_marks(guess, history, worth):
    assert uses_previous_feedback(said(guess, history)) == pytest.approx(worth)


def test_a_letter_with_another_copy_in_the_secret_is_not_absent():
    """EERIE against THEME is ✗… : one E in place, one elsewhere, one x. Its E may stand at other places."""
    marks = feedback("THEME", "EERIE")
    assert marks == "-xxx✓"
    history = (("EERIE", marks),)
    as_taught = uses_previous_feedback(said("THEME", history, "THEME"), duplicates=False)
    mended = uses_previous_feedback(said("THEME", history, "THEME"))
    assert as_taught == pytest.approx(3 * 0.05 + 0.1 + 0.2)  # E at place 2 is elsewhere in both
    assert mended == pytest.approx(3 * 0.05 + 0.1 + 0.2)
    spelled = (("GEESE", feedback("CRANE", "GEESE")),)
    assert spelled[0][1] == "xxxx✓"
    again = said("ELITE", spelled, "CRANE")
    assert uses_previous_feedback(again, duplicates=False) == pytest.approx(-0.5 + 3 * 0.05 + 0.2)
    assert uses_previous_feedback(again) == pytest.approx(0.1 + 3 * 0.05 + 0.2)  # not at 1 and 2, but perhaps at 0
    repeated = said("GEESE", spelled, "CRANE")
    assert uses_previous_feedback(repeated) == pytest.approx(-0.5 - 0.2 - 0.2 - 0.5 + 0.2)


def test_solving_pays_where_it_is_told_to():
    assert uses_previous_feedback(said("CRAFT", CRA), solved=1.0) == 1.0
    assert uses_previous_feedback(said("CRACK", CRA), solved=1.0) == pytest.approx(0.7)


def test_binary_partial_format_and_value():
    assert binary(said("CRAFT")) == 1.0
    assert binary(said("CRANE")) == binary(said(None)) == 0.0
    assert partial_credit(said("CRANE")) == pytest.approx(0.6)
    assert partial_credit(said("EERIE", secret="CRANE")) == pytest.approx(0.1 + 0.2)  # two passes: one E is told
    assert partial_credit(said("CRAN")) == partial_credit(said(None)) == 0.0
    assert [layout_value(said(g)) for g in ("CRANE", "QQQQQ", "CRAN", None)] == [1.0, 0.5, 0.1, 0.0]
    assert layout_value(said("CRANE", formed=False)) == 0.0
    assert layout_value(said("crane")) == 0.5  # upper case is asked for
    assert value(said(None)) == value(said("QQQQQ")) == 0.0
    lesson = WordList("lesson", ("BRICK", "BRISK", "CRANE", "CRATE", "PROUD", "SLATE", "STALE", "TRACE"), 50)
    assert value(said("PROUD", words=lesson)) == pytest.approx(0.4329, abs=5e-5)


def test_a_consistent_guess_may_be_the_secret():
    assert [consistent_guess(said(g, CRA)) for g in ("CRAFT", "CRACK", "CRANE", "QQQQQ", None)] == [1, 1, 0, 0, 0]
    assert consistent_guess(said("HOUSE")) == 1.0  # nothing is known yet


@pytest.mark.parametrize(
    ("text", "guess", "formed"),
    [
        ("<think>C R A fit.</think>\n<guess>CRAFT</guess>", "CRAFT", True),
        ("<think>C R A fit.</think> <guess> CRAFT </guess>\n", "CRAFT", True),
        ("<guess>CRAFT</guess>", "CRAFT", False),
        ("<think></think><guess>CRAFT</guess>", "CRAFT", False),
        ("<think>a</think><guess>CRAFT</guess> I am sure.", None, False),
        ("<think>a</think><guess>CRANE</guess><guess>CRAFT</guess>", "CRAFT", False),
        ("<think><guess>CRAFT</guess>", None, False),
        ("<think>a</think>CRAFT", None, False),
        ("<think>a</think><guess>CRAFT", None, False),
        ("", None, False),
    ],
)
def test_how_a_reply_is_read(text, guess, formed):
    assert TAGS.read(text) == guess
    assert TAGS.formed(text) is formed


def rollout(text, finish=Finish.STOP):
    return Rollout("t", (1, 2), (False, True), (0.0, -0.1), finish, text)


def judged(name, task, text, **options):
    (score,) = asyncio.run(WORDLE[f"wordle:{name}"](**options)(task, [rollout(text)]))
    return score.reward


def snapshot(**meta):
    rows = {"word_list": "#", "past_guess_history": str([["CRANE", "C(✓) R(✓) A(✓) N(x) E(x)"]])}
    return Task("t", (Message("user", "guess"),), "CRAFT", {**rows, **meta})


REPLY = "<think>F and T.</think>\n<guess>CRAFT</guess>"


def test_each_by_its_name():
    task = snapshot()
    assert judged("binary", task, REPLY) == 1.0
    assert judged("format", task, REPLY) == 1.0
    assert judged("partial_credit", task, REPLY) == pytest.approx(1.0)
    assert judged("uses_previous_feedback", task, REPLY) == pytest.approx(0.7)
    assert 0 < judged("guess_value", task, REPLY) <= 1
    assert judged("binary", task, "") == 0.0
    failed = asyncio.run(WORDLE["wordle:binary"]()(task, [rollout("", Finish.ERROR)]))[0]
    assert failed.reward is None
    with pytest.raises(DataError, match="expected a task of wordle"):
        judged("format", Task("t", (), "4"), "4")


def test_a_begun_reply_is_judged_with_its_beginning():
    rest = REPLY.removeprefix("<think>")
    assert judged("format", snapshot(), rest) == 0.0
    assert judged("format", snapshot(), rest, prefilled=True) == 1.0
    (task,) = wordle(kind="snapshots", size=1, prefill=True)
    assert judged("format", task, task.meta["solution"]) == 1.0


def test_functions_of_a_course_read_the_same_rows(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "import ast\n"
        "def used(prompt, completion, example):\n"
        "    completion = '<think>' + completion\n"
        "    past = ast.literal_eval(example['past_guess_history'])\n"
        "    return float(len(past) == 1 and example['secret'] == 'CRAFT' and completion.endswith('</guess>'))\n"
    )
    task = snapshot(secret="CRAFT")
    (score,) = asyncio.run(load_reward(f"{own}:used", timeout_seconds=30)(task, [rollout(REPLY)]))
    assert score.reward == 1.0


CONFIG = """
name = "w"
[model.small]
[tasks.practice]
taskset = "wordle"
kind = "snapshots"
[[stages]]
name = "rl"
algorithm = "grpo"
tasks = "practice"
steps = 1
prompts = 2
num_generations = 2
rewards = { "wordle:format" = 1.0, "wordle:guess_value" = 0.5, "wordle:binary" = 1.0 }
reward_options = { "wordle:guess_value" = { last = false } }
"""


def test_a_config_sums_them_and_keeps_each():
    config = parse_config(tomllib.loads(CONFIG))
    (task,) = wordle(kind="snapshots", size=1)
    total = make_reward(config.stages[0], wordle(kind="snapshots", size=1))
    text = f"<think>Try.</think><guess>{task.answer}</guess>"
    (score,) = asyncio.run(total(task, [rollout(text)]))
    assert set(score.parts) == {"wordle:format", "wordle:guess_value", "wordle:binary"}
    assert score.reward == pytest.approx(2.0 + 0.5 * score.parts["wordle:guess_value"])
    assert score.correct is True


class Words:
    """A chat of whole words: a message's words with a mark after each turn. Grows as it reads."""

    stop_ids = frozenset({0})

    def __init__(self):
        self.words = ["<end>", "<turn>"]

    def encode(self, text):
        for word in text.split():
            if word not in self.words:
                self.words.append(word)
        return tuple(self.words.index(word) for word in text.split())

    def prompt(self, messages):
        return (*self.encode(" ".join(m.content for m in messages)), 1)

    def continuation(self, messages):
        return (1, *self.prompt(messages))

    def completion(self, text):
        return (*self.encode(text), 0)

    def decode(self, tokens):
        return " ".join(self.words[t] for t in tokens if t > 1)

    def tokens_ending(self, trigger):
        return frozenset()


def episode(replies, secret="CRAFT", **options):
    """The one rollout and score of a game in which the model says these."""
    chat = Words()
    game = Wordle(WORDS, **options)
    task = Task("g", (Message("user", "guess"),), secret, {"word_list": "#", "past_guess_history": "[]"})

    def script(tokens, sibling):
        turn = sum(1 for a, b in itertools.pairwise(tokens) if (a, b) == (0, 1))
        return chat.completion(replies[turn])

    reward = make_reward(parse_config(tomllib.loads(CONFIG)).stages[0], wordle(kind="snapshots", size=1))
    player = Plays(ScriptedSampler(script), chat, reward, game, max_completion_length=500)
    group = asyncio.run(player.group(task, 1, 0))
    return group.rollouts[0], group.scores[0]


def reply(word):
    return f"<think>So.</think> <guess>{word}</guess>"


def test_a_game_that_is_cut_off_is_worth_no_more_than_one_that_is_played():
    """The second turn runs on over its limit: one guess of six was made, and that one may have been the secret."""
    options = {"reward": {"consistent": 1.0}, "max_turn_length": 12}
    rollout, score = episode([reply("CRANE"), " ".join(["word"] * 40)], **options)
    assert rollout.finish is Finish.LENGTH
    assert score.parts["guesses"] == 1.0
    assert score.reward == pytest.approx(1 / 6)
    assert episode([reply("CRAFT")], **options)[1].reward == 1.0


def test_a_game_that_is_won():
    rollout, score = episode([reply("CRANE"), reply("CRASH"), reply("CRAFT")])
    assert rollout.finish is Finish.ENVIRONMENT
    assert (score.reward, score.correct, score.answer) == (1.0, True, "CRAFT")
    assert score.parts["win"] == 1.0
    assert score.parts["guesses"] == score.parts["guesses_in_win"] == 3.0
    assert score.parts["valid_format"] == score.parts["valid_word"] == 1.0
    assert score.parts["violates"] == 0.0
    assert score.parts["left_1"] >= score.parts["left_2"] >= score.parts["left_3"] == 1.0
    assert "won with guess 3" in score.note
    told = [span.text for span in rollout.spans if span.role == "environment"]
    assert told == ["C(✓) R(✓) A(✓) N(x) E(x)", "C(✓) R(✓) A(✓) S(x) H(x)"]
    assert not any(rollout.mask[i] for s in rollout.spans if s.role == "environment" for i in range(s.start, s.stop))


def test_what_is_no_guess_uses_up_a_turn_and_is_told_why():
    replies = [reply("house"), reply("CRAN"), "CRAFT", reply("CRANE"), reply("CRANE"), reply("EERIE")]
    rollout, score = episode(replies, reward={"win": 1.0, "format": 0.5})
    told = [span.text for span in rollout.spans if span.role == "environment"]
    assert "'house' is not a word of the list (upper case)" in told[0]
    assert "'CRAN' has 4 letters, not 5" in told[1]
    assert "end your reply with <guess>WORD</guess>" in told[2]
    assert score.parts["win"] == 0.0
    assert "guesses_in_win" not in score.parts
    assert score.parts["guesses"] == 6.0
    assert score.parts["valid_word"] == 0.5
    assert score.parts["violates"] == pytest.approx(2 / 3)  # CRANE again, and EERIE; of three valid guesses
    assert score.reward == pytest.approx(0.5 * (0.5 + 0.1 + 0.0 + 1 + 1 + 1) / 6)
    assert "lost: the secret was CRAFT" in score.note


def test_an_invalid_guess_may_end_the_game():
    rollout, score = episode([reply("house")], invalid="end")
    assert score.parts["guesses"] == 1.0
    assert score.reward == 0.0
    assert rollout.finish is Finish.ENVIRONMENT


def test_turns_may_be_paid_and_early_wins_may_pay_more():
    rollout, score = episode(
        [reply("CRANE"), reply("CRAFT")], reward={"win": 1.0, "early": 1.0}, turn_reward={"partial_credit": 1.0}
    )
    assert score.reward == pytest.approx(1.0 + 4 / 5)
    assert [round(paid, 6) for _, paid in score.step_rewards] == [0.6, 1.0]
    assert all(rollout.mask[token] for token, _ in score.step_rewards)


def test_a_game_may_be_left_to_the_rewards_of_the_run():
    _, score = episode([reply("CRANE"), reply("CRAFT")], reward={})
    assert score.parts["wordle:binary"] == score.parts["wordle:format"] == 1.0
    assert score.correct is True
    assert 0 < score.parts["wordle:guess_value"] < 1
    assert score.reward == pytest.approx(2.0 + 0.5 * score.parts["wordle:guess_value"])


def test_the_measures_of_games():
    scores = [
        episode([reply("CRANE"), reply("CRASH"), reply("CRAFT")])[1],
        episode([reply("CRAFT")])[1],
        episode([reply("house")], invalid="end")[1],
    ]
    measures = game_measures(scores)
    assert measures["win_rate"] == pytest.approx(2 / 3)
    assert measures["mean_guesses"] == 2.0  # of the two wins
    assert measures["valid_word"] == pytest.approx(2 / 3)
    assert measures["violations"] == 0.0
    assert measures["left_2"] >= 1.0
    with pytest.raises(DataError, match="no games"):
        game_measures([])


def test_small_models_spell_or_say_a_word():
    for layout, texts in (("letters", ("C R A N E", "C R A F T")), ("compact", ("CRANE", "CRAFT"))):
        rollout, score = episode(texts, layout=layout_of(layout))
        assert (score.correct, score.answer) == (True, "CRAFT")
        assert [s.text for s in rollout.spans if s.role == "environment"] == ["1C✓ 2R✓ 3A✓ 4Nx 5Ex"]
        tasks = wordle(words=60, layout=layout)
        assert tasks.verifier(Task("g", (), "CRAFT"), rollout.text).correct
        assert not tasks.verifier(Task("g", (), "CRAFT"), "").correct
        rollout, score = episode(["C R", texts[1]], layout=layout_of(layout))
        assert (score.parts["valid_word"], score.parts["guesses"]) == (0.5, 2.0)


def test_a_secret_that_is_no_word_ends_in_an_error_that_says_so():
    rollout, score = episode([reply("CRANE")], secret="QQQQQ")
    assert score.reward is None
    assert "not a word of the list" in rollout.note


def test_the_words_come_with_the_package():
    import maieutic.wordle

    assert (Path(maieutic.wordle.__file__).parent / "words.txt").is_file()
