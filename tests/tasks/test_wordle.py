"""Wordle: the rules by hand, the lists, the scripted player, games and snapshots as tasks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.tasks.wordle import wordle, wordle_vocabulary
from maieutic.types import Message
from maieutic.wordle import Player, candidates, feedback, guess_value, parse_history, play, word_list
from maieutic.wordle.player import heeding
from maieutic.wordle.rules import PATTERNS, left, pattern_code
from maieutic.wordle.words import WordList, word_list_at

LESSON = ("CRANE", "CRATE", "TRACE", "SLATE", "STALE", "BRICK", "BRISK", "PROUD")


def listed(*words):
    """These words as a list; which of them are held out is of no account here."""
    return WordList("lesson", tuple(sorted(words)), 50)


@pytest.mark.parametrize(
    ("secret", "guess", "marks"),
    [
        ("BRISK", "STORM", "-xx-x"),
        ("CRAFT", "CRANE", "✓✓✓xx"),
        ("ABBEY", "BABES", "--✓✓x"),
        ("LEVEL", "ELLEN", "---✓x"),
        ("POUND", "FROWN", "xx-x-"),
        ("CRANE", "EERIE", "xx-x✓"),  # by membership alone it would be ---x✓: CRANE has one E, and that is in place
    ],
)
def test_marks_by_hand(secret, guess, marks):
    assert feedback(secret, guess) == marks


five = st.text("ABCE", min_size=5, max_size=5)


@given(five, five)
def test_marks_say_how_many_letters_are_shared_and_where(secret, guess):
    marks = feedback(secret, guess)
    assert [m == "✓" for m in marks] == [s == g for s, g in zip(secret, guess)]
    shared = sum((Counter(secret) & Counter(guess)).values())
    assert sum(m != "x" for m in marks) == shared


@settings(max_examples=20)
@given(st.sets(five, min_size=2, max_size=30))
def test_the_matrix_holds_the_marks_of_every_pair(words):
    known = WordList("some", tuple(sorted(words)), 50) if splits(words) else None
    if known is None:
        return
    assert known.patterns.dtype == np.uint8
    for i, guess in enumerate(known.all):
        assert [pattern_code(feedback(s, guess)) for s in known.all] == known.patterns[i].tolist()


def splits(words):
    """Whether both splits get a secret, without which there is no list."""
    try:
        listed(*words)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize(
    ("guess", "value"), [("CRANE", 0.8333), ("CRATE", 0.9167), ("SLATE", 0.9167), ("BRISK", 0.5833), ("PROUD", 0.4329)]
)
def test_what_a_first_guess_reveals(guess, value):
    """CRATE leaves 1, 1, 1, 1, 1, 1 and a pair: of 3 bits (1/8)·2·1 = 0.25 stay, 1 − 0.25/3 = 0.9167."""
    assert guess_value(listed(*LESSON), guess, ()) == pytest.approx(value, abs=5e-5)


def test_two_words_left_and_one_word_left():
    told = [("STARE", feedback("BRICK", "STARE"))]
    assert told[0][1] == "xxx-x"
    words = listed(*LESSON)
    assert candidates(words.all, told) == ["BRICK", "PROUD"]
    assert guess_value(words, "BRICK", told) == 1.0
    one = [*told, ("PROUD", feedback("BRICK", "PROUD"))]
    assert candidates(words.all, one) == ["BRICK"]
    assert guess_value(words, "BRICK", one) == 1.0
    assert guess_value(words, "BRICK", one, last=False) == 0.0
    assert guess_value(words, "CRANE", one) == 0.0
    assert guess_value(words, "BRICK", [("BRICK", "xxxxx"), ("CRANE", "xxxxx"), ("SLATE", "xxxxx")]) in (0.0, 1.0)
    assert guess_value(words, "BRICK", [("BRICK", "xxxxx"), ("BRICK", "✓✓✓✓✓")]) == 0.0  # no word goes with both
    assert guess_value(words, "HOUSE", told) == 0.0  # not in the list


def test_value_is_a_share_and_1_only_where_all_words_are_told_apart():
    words = word_list(80)
    random = Random(1)
    for _ in range(60):
        history = play(random.choice(words.all), Player(), words, random)[: random.randrange(3)]
        open_ = left(words, history)
        assert [words.all[i] for i in open_] == candidates(words.all, history)
        guess = random.choice(words.all)
        value = guess_value(words, guess, history)
        assert 0.0 <= value <= 1.0
        if len(open_) > 1:
            apart = len({feedback(words.all[i], guess) for i in open_}) == len(open_)
            assert (value == 1.0) is apart
    assert words.patterns.max() < PATTERNS


def test_histories_are_read_in_both_spellings():
    assert parse_history("[['CRANE', 'C(✓) R(✓) A(✓) N(x) E(x)']]") == (("CRANE", "✓✓✓xx"),)
    assert parse_history([["crane", "✓✓✓xx"]]) == (("CRANE", "✓✓✓xx"),)
    assert parse_history("[]") == parse_history("") == ()


@pytest.mark.parametrize(
    "text",
    ["[['CRANE']]", "nonsense", "[['CRANE', 'C(✓)']]", "[['CRANE', 'C(✓) R(✓) A(✓) N(x) X(x)']]", "[['CRAN', '✓✓✓x']]",
     "__import__('os')", 3, "[['CRANE', '✓✓✓x?']]", "(" * 5000],
)  # fmt: skip
def test_what_is_no_history_is_said(text):
    with pytest.raises(DataError, match=r"line 7: got .* expected a list of \[guess, feedback\]"):
        parse_history(text, "line 7")


def test_the_list_that_comes_along():
    words = word_list()
    assert len(words.all) >= 1200
    assert all(len(w) == 5 and w.isascii() and w.isalpha() and w.isupper() for w in words.all)
    assert list(words.all) == sorted(set(words.all))
    assert len(words.secrets("test")) >= 200
    assert set(words.secrets("train")) | set(words.secrets("test")) == set(words.all)
    assert not set(words.secrets("train")) & set(words.secrets("test"))
    assert words.secrets("all") == words.all
    assert {task.answer for task in wordle("all", words=60)} == set(word_list(60).all)


def test_a_shorter_list_splits_its_words_as_the_whole_does():
    whole, short = word_list(), word_list(60)
    assert len(short.all) == 60
    assert set(short.secrets("test")) < set(whole.secrets("test"))
    assert word_list_at(short.reference).all == short.all
    assert word_list_at(whole.reference).all == whole.all


def test_a_list_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("Word,count\n" + "".join(f"{w.lower()},3\n" for w in LESSON))
    own = word_list(path=str(path), held_out=50)
    assert own.all == tuple(sorted(LESSON))
    assert word_list_at(own.reference).all == own.all
    path.write_text("crane\nfour\n")
    with pytest.raises(DataError, match=r"mine.csv:2: got 'FOUR'; expected a word of five letters"):
        word_list(path=str(path), held_out=49)
    with pytest.raises(DataError, match="cannot be read"):
        word_list(path=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="expected 2 to 1"):
        word_list(words=10**6)


def test_who_heeds_everything_is_consistent_and_who_heeds_nothing_is_not():
    words, random = word_list(), Random(0)
    history = (("EERIE", feedback("CRANE", "EERIE")), ("CHART", feedback("CRANE", "CHART")))
    fits = np.ones(len(words.all), dtype=bool)
    for guess, marks in history:
        for place in range(5):
            fits &= heeding(words, guess, marks, place)
    assert [w for w, fit in zip(words.all, fits) if fit] == candidates(words.all, history)
    good, bad = Player.of_skill(1.0), Player.of_skill([0.0, 0.0, 0.0])
    assert all(good.guess(words, history, random) in candidates(words.all, history) for _ in range(20))
    games = {who: [play(s, who, words, Random(s)) for s in words.secrets("test")[:60]] for who in (good, bad)}
    wins = {who: sum(game[-1][1] == "✓✓✓✓✓" for game in played) for who, played in games.items()}
    assert wins[good] >= 54
    assert wins[bad] <= 6
    assert all(len({guess for guess, _ in game}) == len(game) for game in games[bad])  # never a word twice
    with pytest.raises(ConfigError, match="3 probabilities"):
        Player.of_skill(1.5)


def test_games_are_of_the_splits_secrets_each_once():
    train, test = wordle(words=60), wordle("test", words=60)
    assert {t.answer for t in train} == set(word_list(60).secrets("train"))
    assert {t.answer for t in test} == set(word_list(60).secrets("test"))
    assert train.environment is not None
    assert train.environment.max_turns == 6
    assert "BRISK" in train[0].prompt[0].content
    assert "S(-) T(x) O(x) R(-) M(x)" in train[0].prompt[0].content
    more = wordle(words=60, size=100)
    assert Counter(t.answer for t in more).most_common()[-1][1] >= 2


@pytest.mark.parametrize("layout", ["compact", "letters"])
def test_a_demonstrated_game_ends_with_its_last_guess(layout):
    task = wordle(words=60, layout=layout, demonstrations=1.0)[0]
    roles = [role for role, _ in task.meta["demonstrated_turns"]]
    assert roles == ["assistant", "user"] * (len(roles) // 2) + ["assistant"]
    assert task.meta["demonstrated_turns"][-1][1].replace(" ", "") == task.answer
    known = set(wordle_vocabulary(word_list(60), layout))
    assert set(f"{task.prompt[0].content} {task.meta['solution']}".split()) <= known


def test_snapshots_are_states_of_games_that_are_not_over():
    tasks = wordle(kind="snapshots", size=80, skill=0.3, seed=5)
    lengths = Counter()
    for task in tasks:
        history = parse_history(task.meta["past_guess_history"])
        lengths[len(history)] += 1
        assert len(history) < 6
        assert all(feedback(task.answer, guess) == marks != "✓✓✓✓✓" for guess, marks in history)
        assert task.meta["secret"] == task.answer in word_list().secrets("train")
        assert tasks.verifier(task, f"<guess>{task.answer}</guess>").correct
    assert len(lengths) == 6
    again = wordle(kind="snapshots", size=80, skill=0.3, seed=5)
    assert list(again) == list(tasks)
    assert wordle(kind="snapshots", size=80, skill=0.3, seed=6)[0] != tasks[0]


def test_a_reply_may_be_begun():
    task = wordle(kind="snapshots", size=1, prefill=True)[0]
    assert task.prompt[-1] == Message("assistant", "Let me solve this step by step.\n<think>")
    assert task.meta["solution"].count("<think>") == 0
    assert "</think>" in task.meta["solution"]
    with pytest.raises(ConfigError, match="prefill"):
        wordle(prefill=True)


def test_rows_of_a_course(tmp_path):
    row = {"prompt": "Make a guess.", "word_list": "five_letter_words.csv", "secret": "craft",
           "past_guess_history": "[['CRANE', 'C(✓) R(✓) A(✓) N(x) E(x)']]"}  # fmt: skip
    (tmp_path / "five_letter_words.csv").write_text("Word\n" + "".join(f"{w}\n" for w in (*LESSON, "CRAFT")))
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (task,) = wordle(kind="snapshots", rows=str(path))
    assert (task.answer, task.prompt[0].content) == ("CRAFT", "Make a guess.")
    assert parse_history(task.meta["past_guess_history"]) == (("CRANE", "✓✓✓xx"),)
    assert "CRAFT" in word_list_at(task.meta["word_list"]).all
    table = tmp_path / "rows.csv"
    quoted = ",".join('"' + row[c].replace('"', '""') + '"' for c in row)
    table.write_text(",".join(row) + "\n" + quoted + "\n")
    (same,) = wordle(kind="snapshots", rows=str(table))
    assert same.meta == task.meta
    path.write_text(json.dumps({**row, "word_list": "none.csv"}) + "\n")
    with pytest.raises(DataError, match=r"rows.jsonl:1: the word list 'none.csv' is not there"):
        wordle(kind="snapshots", rows=str(path))
    assert wordle(kind="snapshots", rows=str(path), words=1551)[0].meta["word_list"] == "#1551"
    path.write_text(json.dumps({**row, "secret": None}) + "\n")
    with pytest.raises(DataError, match="no 'secret'"):
        wordle(kind="snapshots", rows=str(path))


def test_wrong_options_are_said():
    for options, match in (
        ({"kind": "game"}, "did you mean 'games'"),
        ({"split": "validation"}, "split of wordle"),
        ({"layout": "tag"}, "did you mean 'tags'"),
        ({"size": 0}, "at least one task"),
        ({"invalid": "turns"}, "did you mean 'turn'"),
        ({"reward": {"wins": 1.0}}, "did you mean 'win'"),
        ({"turn_reward": {"win": 1.0}}, "part of a turn's reward"),
        ({"rows": "x.jsonl"}, "rows are snapshots"),
        ({"held_out": 0}, "percentage"),
    ):
        with pytest.raises((UnknownName, ConfigError), match=match):
            wordle(words=60, **options)


def test_it_needs_no_torch():
    code = "import sys; from maieutic.tasks import wordle; wordle(words=60)[0]; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).stdout == b"False\n"
