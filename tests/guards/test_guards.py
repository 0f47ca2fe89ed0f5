"""Guards: what a step says, when a series has changed, and each guard on a story of its own."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from maieutic.errors import ConfigError, UnknownName
from maieutic.guards import GUARDS, Guards, History, Rule, chosen_rules, held_out_truth, measures, showing
from maieutic.guards.measures import TEXTS, pay
from maieutic.guards.trend import noise, onset, scan
from maieutic.types import Finish, Group, Message, Rollout, Score, Task, Verdict

ASKED = "Ann has 3 apples and buys 4 . how many ?"


def rollout(text="so # 7", sibling=0, finish=Finish.STOP):
    """A prompt of 5 tokens and a completion of a token a character."""
    own = tuple(map(ord, text))
    mask = (False,) * 5 + (True,) * len(own)
    return Rollout("t", (1, 2, 3, 4, 5, *own), mask, (0.0,) * len(mask), finish, text, sibling=sibling)


def group(*scores, texts=None, number=0, hinted=False):
    texts = texts or ["so # 7"] * len(scores)
    rollouts = tuple(rollout(text, i) for i, text in enumerate(texts))
    return Group(Task("t", (Message("user", ASKED),), "7"), rollouts, scores, number, hinted)


# ---- what a step says


def test_pay_and_truth_of_a_step():
    # answer 1, format .5: rewards 1.5, 1, .5, 0. Scale 1.5; right ones earn (1.5 + 1)/2, wrong ones (.5 + 0)/2
    made = group(
        Score(1.5, True, {"answer": 1, "format": 1}), Score(1.0, True, {"answer": 1, "format": 0}),
        Score(0.5, False, {"answer": 0, "format": 1}), Score(0.0, False, {"answer": 0, "format": 0}),
    )  # fmt: skip
    found = measures([made], weights={"answer": 1.0, "format": 0.5})
    assert found["guards/truth"] == 0.5
    assert found["guards/paid"] == pytest.approx(0.75 / 1.5)
    assert found["guards/scale"] == 1.5
    assert found["guards/alignment"] == pytest.approx((1.25 - 0.25) / 1.5)
    assert (found["guards/pass"], found["guards/uniform"], found["guards/unscorable"]) == (1.0, 0.0, 0.0)


def test_penalties_are_not_pay():
    # −.5 · .4 was taken: 1 − .2 is what is left, 1 is what was paid
    assert pay(Score(0.8, True, {"answer": 1.0, "repetition": -0.4}), {"answer": 1.0, "repetition": 0.5}) == 1.0


def test_uniform_groups_are_those_that_are_not_all_right():
    right, wrong = (group(*[Score(value, bool(value))] * 2) for value in (1.0, 0.0))
    mixed = group(Score(1.0, True), Score(0.0, False))
    assert measures([right, wrong, mixed])["guards/uniform"] == pytest.approx(1 / 3)
    assert measures([right, wrong, mixed])["guards/pass"] == pytest.approx(2 / 3)


def test_unscorable_hinted_and_failed_rollouts():
    found = measures([group(Score(1.0, True), Score(None)), group(Score(1.0, True), hinted=True)])
    assert found["guards/unscorable"] == 0.5
    assert found["guards/truth"] == 1.0  # of the one that was judged
    assert measures([group(Score(1.0, True), hinted=True)]) == {}
    assert measures([]) == {}
    assert "guards/paid" not in measures([group(Score(None), Score(None))])


def test_what_is_right_may_be_said_by_a_verifier_that_the_reward_does_not_ask():
    truth = held_out_truth(lambda task, text: Verdict(text == f"so # {task.answer}"))
    made = group(Score(1.0, True), Score(1.0, True), texts=["so # 7", "# 5 # 6 # 7"])
    assert measures([made])["guards/truth"] == 1.0
    assert measures([made], truth)["guards/truth"] == 0.5
    unanswered = Group(Task("t", ()), made.rollouts, made.scores)
    assert measures([unanswered], truth)["guards/truth"] == 1.0  # a task without an answer: what the reward says


def test_what_texts_show():
    found = measures([group(*[Score(0.0, False)] * 4, texts=["# 5 # 7", "<answer>5 or 7</answer>", "# 7", "答案是七"])])
    assert found["guards/several"] == 0.5
    assert found["guards/foreign"] == pytest.approx(0.5)  # of "answeroranswer" none, of 答案是七 all; digits are none
    assert found["guards/copied"] == 0.0


def test_long_steps_are_looked_at_in_part():
    many = [group(Score(0.0, False), texts=["# 5 # 7" if i % 2 else "# 7"], number=i) for i in range(10 * TEXTS)]
    assert measures(many)["guards/several"] in (
        0.0,
        1.0,
    )  # one parity only: they are spread evenly


# ---- has a series changed?


def test_noise_is_that_of_neighbours():
    assert noise(np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx(math.sqrt(0.5))
    ramp = noise(np.linspace(0, 1, 101))
    assert ramp == pytest.approx(0.01 / math.sqrt(2))  # a slow drift is no noise
    assert noise(np.array([math.nan, 1.0])) == 0.0


def test_a_scan_compares_the_last_stretch_with_each_earlier_one():
    seen = scan(np.array([0.0] * 4 + [1.0] * 4 + [3.0] * 4), 4)
    assert seen is not None
    assert seen.after == 3.0
    assert seen.before.tolist() == [0.0, 0.0, 1.0]  # the first half stretch, then whole ones
    assert scan(np.zeros(5), 4) is None
    gaps = scan(np.array([math.nan] * 3 + [0.0] + [2.0] * 4), 4)
    assert gaps is not None
    assert [math.isnan(value) for value in gaps.before] == [True, True]  # less than half of it is known


def test_where_a_change_began():
    values = np.array([0.0] * 10 + [0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert onset(values, 3, 0.0, 1.0) == 11  # .25 of the way is first exceeded there
    assert onset(1 - values, 3, 1.0, 0.0) == 11


def test_a_history_forgets_and_notes():
    history = History()
    for step in range(5000):
        history.add(step, {"x": float(step), **({"late": 1.0} if step > 4000 else {})})
    assert len(history.steps) == len(history.series("x")) == len(history.series("late")) < 2200
    assert history.series("x")[-1] == 4999
    history.note(4990, "validation", 0.5)
    assert np.flatnonzero(np.isfinite(history.series("validation"))).tolist() == [len(history.steps) - 10]


# ---- guards

#: What an honest run looks like: 64 rollouts a step, more and more of them right.
HONEST = {
    "guards/truth": (0.3, 0.7), "guards/paid": (0.3, 0.7), "guards/scale": (1.0, 1.0), "guards/alignment": (1.0, 1.0),
    "guards/pass": (0.7, 0.95), "guards/uniform": (0.3, 0.1), "guards/copied": (0.0, 0.0),
    "guards/repeated": (0.1, 0.1), "guards/foreign": (0.0, 0.0), "guards/several": (0.05, 0.0),
    "guards/diversity": (0.6, 0.4), "guards/unscorable": (0.0, 0.0), "completions/mean_length": (20.0, 24.0),
    "completions/clipped_ratio": (0.1, 0.0), "policy/entropy": (0.8, 0.2), "kl/reference": (0.0, 0.1),
}  # fmt: skip
#: Guard → what is otherwise in the run that it is for.
STORIES = {
    "proxy": {"guards/truth": (0.5, 0.2), "guards/paid": (0.3, 0.5)},
    "unearned": {"guards/truth": (0.3, 0.3), "guards/paid": (0.3, 0.8)},
    "alignment": {"guards/alignment": (0.02, 0.02)},
    "longer": {"completions/mean_length": (20.0, 60.0), "guards/truth": (0.3, 0.3), "guards/paid": (0.3, 0.4)},
    "shorter": {"completions/mean_length": (20.0, 6.0), "guards/truth": (0.6, 0.2), "guards/paid": (0.3, 0.3)},
    "copied": {"guards/copied": (0.1, 0.9)},
    "repeated": {"guards/repeated": (0.1, 0.7), "guards/truth": (0.3, 0.3), "guards/paid": (0.3, 0.3)},
    "several_answers": {"guards/several": (0.05, 0.6)},
    "language": {"guards/foreign": (0.0, 0.4)},
    "diversity": {"guards/diversity": (0.6, 0.1), "guards/truth": (0.6, 0.2), "guards/paid": (0.3, 0.3)},
    "entropy": {"policy/entropy": (0.8, 0.01), "guards/truth": (0.3, 0.3), "guards/paid": (0.3, 0.3)},
    "pass_at_k": {"guards/pass": (0.8, 0.3), "guards/truth": (0.3, 0.3), "guards/paid": (0.3, 0.3)},
    "uniform_groups": {"guards/uniform": (0.2, 0.9)},
    "kl": {"kl/reference": (0.0, 3.0)},
    "truncated": {"completions/clipped_ratio": (0.0, 0.7)},
    "unscorable": {"guards/unscorable": (0.0, 0.3)},
}


def told(story, seed=0, steps=80, began=30, ramp=12, noisy=1.0):
    """A run that goes as `HONEST`, and from step `began` on as the story: (guards, step of each alarm)."""
    draw, guards, alarms = random.Random(seed), Guards(chosen_rules()), {}
    for step in range(steps):
        said = {}
        for name, (first, last) in {**HONEST, **story}.items():
            at = min(1.0, max(0.0, (step - began) / ramp)) if name in story else step / steps
            value = first + at * (last - first)
            spread = 0.0 if name in ("guards/scale", "guards/alignment") or value == 0 else 0.06 * noisy
            said[name] = max(0.0, value + draw.gauss(0, spread) * (20 if "length" in name else 1))
        if "guards/paid" not in story:
            said["guards/paid"] = said["guards/truth"]  # what is paid for is being right
        for alarm in guards.add(step, said):
            alarms[alarm.guard] = alarm
    return guards, alarms


def test_an_honest_run_raises_no_alarm():
    for seed in range(4):
        assert told({}, seed)[1] == {}
        assert told({}, seed, noisy=2.0)[1] == {}


@pytest.mark.parametrize("guard", STORIES)
def test_every_guard_sees_its_story(guard):
    for seed in range(3):
        alarm = told(STORIES[guard], seed)[1][guard]
        assert alarm.step <= 30 + 25
        if guard != "alignment":  # which holds from the beginning
            assert 15 <= alarm.onset <= 45
        assert "began about step" in alarm.text
        assert alarm.value >= alarm.threshold or guard == "alignment"


def test_every_guard_has_a_story_and_a_validation_falls():
    assert set(STORIES) | {"validation"} == set(GUARDS)
    guards, alarms = Guards(chosen_rules()), []
    for step in range(40):
        alarms += guards.add(step, {"guards/paid": 0.3 + step / 100})
        if step % 10 == 9:
            guards.note_validation(step, 0.6 if step < 20 else 0.4, problems=500)
    (alarm,) = alarms
    assert (alarm.guard, alarm.step) == ("validation", 30)  # the third validation, after step 29
    assert alarm.value == pytest.approx(0.2)
    few = Guards(chosen_rules())
    for step in range(40):
        assert few.add(step, {"guards/paid": 0.3 + step / 100}) == []
        if step % 10 == 9:
            few.note_validation(step, 0.6 if step < 20 else 0.4, problems=10)  # of ten problems two: chance


def test_longer_completions_are_excused_where_more_of_them_are_right():
    story = {"completions/mean_length": (20.0, 60.0), "guards/truth": (0.3, 0.8)}
    assert told(story)[1] == {}


def test_a_guard_speaks_once_and_remembers_by_its_numbers():
    guards, alarms = told(STORIES["copied"])
    assert list(alarms) == ["copied"]
    again, found = Guards(chosen_rules()), []
    curves = {name: guards.history.series(name).tolist() for name in Guards.names()}
    for i, step in enumerate(guards.history.steps):
        found += again.add(step, {name: curve[i] for name, curve in curves.items()})
    assert found == [alarms["copied"]]


def test_thresholds_and_actions_are_a_runs_own():
    rules = {rule.guard: rule for rule in chosen_rules({"copied": {"action": "pause"}, "kl": {"action": "off"}},
                                                       {"copied": {"threshold": 0.95}})}  # fmt: skip
    assert rules["copied"] == Rule("copied", "pause", 0.95)
    assert "kl" not in rules
    assert rules["proxy"].action == "note"
    guards = Guards(list(rules.values()))
    for step in range(40):
        assert guards.add(step, {"guards/copied": 0.0 if step < 15 else 0.9}) == []  # .9 is not .95


def test_names_that_there_are_not():
    with pytest.raises(UnknownName, match="did you mean 'copied'"):
        chosen_rules({"copyed": {}})
    with pytest.raises(UnknownName, match="did you mean 'pause'"):
        Rule("copied", "puase")
    with pytest.raises(ConfigError, match="window of at least 4"):
        Rule("copied", window=2)


def test_rollouts_that_show_it_are_of_different_groups():
    texts = ["# 1", "# 1 # 2"], ["# 1 # 2 # 3", "# 3 # 4"], ["# 5", "# 6"]
    groups = [group(Score(1.0, False), Score(1.0, False), texts=each, number=n) for n, each in enumerate(texts)]
    assert showing("several_answers", groups) == [(0, 1), (1, 0), (2, 0)]
    assert showing("longer", groups)[0] == (1, 0)
    wrong = [group(Score(1.0, True), Score(0.9, False), number=0), group(Score(0.2, False), Score(None), number=1)]
    assert showing("proxy", wrong)[:2] == [(0, 1), (1, 0)]  # wrong, and best paid
