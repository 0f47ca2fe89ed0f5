"""Step-by-step supervision at small size: each demonstration of the study, with a threshold that it can miss.

a   right answers by wrong reasoning      b   a key at the start of a chain
c   rewards that pay for steps            d   one score after many words
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import pytest

from benchmarks import _step_worlds as worlds
from benchmarks import step_supervision
from benchmarks._step_pictures import Panel, band, draw, smoothed
from maieutic.loops import run_async
from maieutic.rewards.stepwise import Stepwise
from maieutic.types import Finish, Message, Rollout, Task


def text_of(policy, task, text):
    tokens = policy.chat.prompt(task.prompt)
    own = (*policy.chat.encode(text), 0)
    mask = (False,) * len(tokens) + (True,) * len(own)
    return Rollout(task.id, (*tokens, *own), mask, (0.0,) * len(mask), Finish.STOP, text)


def test_two_errors_that_cancel_are_right_for_the_outcome_and_wrong_at_the_first_bad_step():
    task = Task("2+3+1", (Message("user", "2 + 3 + 1"),), "6")
    policy = worlds.trace_start(seed=1, steps=0)
    rows = [text_of(policy, task, worlds.written(task, kind)) for kind in ("right", "cancelling", "wrong")]
    assert rows[1].text == "2 + 3 = 6 ; 6 + 1 = 6 ; # 6"
    right, cancelling, wrong = run_async(worlds.trace_reward(policy.chat)(task, rows))
    assert (right.reward, cancelling.reward, wrong.reward) == (1.0, 1.0, 0.0)
    assert [value for _, value in right.step_rewards] == [1, 1, 1]
    assert [value for _, value in cancelling.step_rewards] == [
        0,
        0,
        1,
    ]  # wrong from the first step on, right in the end
    assert [value for _, value in wrong.step_rewards] == [1, 0, 1]
    # a slip that is carried on: the second step adds rightly to what stands there
    assert worlds.checked(task, "2 + 3 = 4 ; 4 + 1 = 5 ; # 5") == [0, 1, 1]
    assert worlds.checked(task, "2 + 3 = 5 ; 4 + 1 = 5 ; # 5") == [1, 0, 1]  # not what stands there
    assert worlds.checked(task, "# 6 ; + ; #") == [0, 0, 0]


def test_an_outcome_cannot_see_what_a_process_reward_mends():
    found = {arm: worlds.trace_study(arm, 1, steps=16, imitation=25, n=8) for arm in ("outcome", "process")}
    start = found["outcome"]["before"]
    assert start["trace_error"] > 0.4  # of what is right, by imitation
    for arm in found:
        assert found[arm]["after"]["correct"] > start["correct"]
    assert found["outcome"]["after"]["trace_error"] > 0.5  # as right by wrong steps as ever
    assert found["process"]["after"]["trace_error"] < 0.25


def test_a_key_is_found_sooner_by_a_step_reward_and_length_costs_it_little():
    updates = {
        (arm, n): worlds.door_study(arm, n, 1, rate=3e-3, most=60)["updates"] or 60
        for arm in ("step", "reinforce")
        for n in (4, 16)
    }
    gap = {n: updates["reinforce", n] - updates["step", n] for n in (4, 16)}
    assert gap[4] > 0
    assert gap[16] > gap[4]


def test_a_critic_learns_who_holds_the_key():
    found = worlds.door_study("critic", 8, 1, rate=3e-3, most=60)
    assert found["updates"] is not None
    assert found["curve"][0][1] < 0.2
    assert found["curve"][-1][1] >= 0.9


def test_a_sum_of_scores_pays_for_steps_until_there_is_no_room_for_an_answer():
    found = {arm: worlds.padding_study(arm, 1, steps=50, imitation=20) for arm in ("sum", "potential", "min")}
    assert found["sum"]["before"][0] < 2.5
    assert found["sum"]["steps"] > 8  # of the 12 that there is room for
    assert found["sum"]["success"] < 0.4
    for arm in ("potential", "min"):
        assert found[arm]["steps"] < 2.5
        assert found[arm]["success"] > 0.9


def test_one_late_score_blames_nothing_in_particular():
    found = {
        arm: worlds.late_study(arm, 1, steps=24, length=80) for arm in ("outcome", "value", "step and value", "kl")
    }
    first = found["outcome"]["before"]["repetition"]
    assert abs(found["outcome"]["blame"]) < 1e-5  # the same credit for every word of a rollout
    assert found["outcome"]["deciding"] == pytest.approx(1 / 80, rel=1e-3)
    assert found["outcome"]["repetition"] > 0.75 * first
    assert found["value"]["deciding"] > 5 * found["outcome"]["deciding"]  # a critic knows which word it was …
    assert found["value"]["repetition"] > 0.75 * first  # … and has nothing against the others
    assert found["step and value"]["blame"] < -0.2
    assert found["step and value"]["repetition"] < 0.6 * first
    assert found["kl"]["repetition"] < 0.9 * first


def test_runs_are_kept_and_what_is_kept_is_not_run_again(tmp_path, capsys):
    file = tmp_path / "runs.json"
    arguments = ["--only", "c", "--quick", "--json", str(file), "--pictures", str(tmp_path / "pictures")]
    assert step_supervision.main(arguments) == 0
    first = capsys.readouterr()
    assert "| potential |" in first.out
    assert first.err.count("c/") == len(worlds.PADDING_ARMS)
    kept = json.loads(file.read_text())
    del kept["runs"]["c/min/1"]
    file.write_text(json.dumps(kept))
    assert step_supervision.main(arguments) == 0
    again = capsys.readouterr()
    assert again.err.startswith("c/min/1")
    assert again.err.count("c/") == 1
    assert again.out == first.out
    picture = ElementTree.fromstring((tmp_path / "pictures" / "padding-steps.svg").read_text())
    assert len(picture.findall(".//{http://www.w3.org/2000/svg}polyline")) == len(worlds.PADDING_ARMS)
    assert step_supervision.main([*arguments[:2], "--json", str(file)]) == 2  # a full run, into a file of a quick one
    assert "another --json" in capsys.readouterr().err


def test_bands_are_medians_and_extremes_and_a_curve_that_ended_stays():
    curves = [[(0, 0.0), (1, 1.0)], [(0, 0.5), (1, 0.5), (2, 0.9)], [(0, 0.1), (1, 0.2), (2, 0.3)]]
    assert band(curves) == [(0, 0.0, 0.1, 0.5), (1, 0.2, 0.5, 1.0), (2, 0.3, 0.9, 1.0)]
    assert smoothed([(0, 1.0), (1, 2.0), (2, 6.0)], window=2) == [(0, 1.0), (1, 1.5), (2, 4.0)]
    drawn = draw(Panel("a < b", "x", "y", {"one": curves}, log=False))
    assert "a &lt; b" in drawn
    assert ElementTree.fromstring(drawn).get("viewBox")


def test_a_potential_of_the_key_is_paid_where_it_is_taken():
    rollout = Rollout("door", (1, 5, 6, 7), (False, True, True, True), (0.0,) * 4, Finish.LENGTH)
    assert isinstance(worlds.door_reward(5, steps=True), Stepwise)
    (score,) = run_async(worlds.door_reward(5, steps=True)(Task("door", ()), [rollout]))
    assert (score.reward, score.step_rewards) == (1.0, ((1, 1.0), (3, -1.0)))
    (score,) = run_async(worlds.door_reward(5, steps=False)(Task("door", ()), [rollout]))
    assert (score.reward, score.step_rewards) == (1.0, ())
