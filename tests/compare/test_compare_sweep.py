"""What a sweep says, worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maieutic.compare.places import Failure
from maieutic.compare.sensitivity import diverged, divergence, median, quartiles, sensitivity
from maieutic.compare.sweep import Sweep
from maieutic.compare.sweep_page import summary

#: Final correct samples of 4, of one problem each, by seed; every start has 2 of 4: pass@1 .5.
FINALS = {"s000": [[4], [3], [3]], "s001": [[2], [2], [0]]}
SETTINGS = {"s000": {"temperature": 1.0}, "s001": {"temperature": 0.5}}


@pytest.fixture
def results(make_results):
    return make_results(FINALS, start=[[2]] * 3)


def found(results, margin: float = 0.02) -> Sweep:
    return Sweep(results.plan, SETTINGS, margin)


def test_a_sweep_by_hand(results):
    said = sensitivity(found(results), results, "test")
    first, second = said.settings
    assert [run.final for run in first.runs] == [1.0, 0.75, 0.75]
    # quartiles of .75, .75, 1: .75 and halfway from .75 to 1, .875; of 0, .5, .5: .25 and .5
    assert (median(first.runs), quartiles(first.runs)) == (0.75, (0.75, 0.875))
    assert quartiles(second.runs) == (0.25, 0.5)
    # of the second setting, seed 3 fell from .5 to 0
    assert [run.reason for run in second.runs] == [None, None, "pass@1 fell from 50.0 to 0.0 %"]
    assert diverged(second.runs) == pytest.approx(1 / 3)
    # all six: 0, .5, .5, .75, .75, 1: the median halfway between .5 and .75
    assert median(said.runs) == 0.625
    assert diverged(said.runs) == pytest.approx(1 / 6)
    assert said.spread("temperature") == 0.25
    told = " ".join(summary(said))
    assert "2 settings, 6 runs on test: the median final pass@1 is 62.5 %" in told
    assert "16.7 % of the runs diverged" in told
    assert "temperature: the medians at its values are 25.0 points apart (1: 75.0 %; 0.5: 50.0 %)." in told


def test_a_failure_for_numbers_counts_as_diverged_and_another_one_does_not(results):
    trials = {"s000": results.trials["s000"], "s001": {1: results.trials["s001"][1]}}
    numbers, disk = Failure(2, "s001", 6, "the gradient was not finite"), Failure(3, "s001", 7, "the disk is full")
    said = sensitivity(found(results), replace(results, trials=trials, failures=(numbers, disk)), "test")
    assert [run.reason for run in said.settings[1].runs] == [None, "the gradient was not finite"]
    assert diverged(said.runs) == pytest.approx(1 / 5)


def test_what_counts_as_diverged(results):
    trial = results.trials["s001"][1]  # pass@1 .5, as its start
    assert divergence(results, trial, "test", 0.02) is None
    assert divergence(results, replace(trial, skipped=2), "test", 0.02).startswith("2 updates were skipped")
    collapsed = replace(trial, entropy=(2.0, 0.1))
    assert divergence(results, collapsed, "test", 0.02).startswith("entropy fell from 2 to 0.1 nats")
    surer = replace(results.trials["s000"][1], entropy=(2.0, 0.1))  # pass@1 1: sure, and right
    assert divergence(results, surer, "test", 0.02) is None
    fallen = results.trials["s001"][3]
    assert divergence(results, fallen, "test", 0.5) is None  # .5 down is not more than this margin


def test_one_at_a_time_compares_with_the_centre_only(make_results):
    finals = {name: [[c]] * 3 for name, c in (("s000", 2), ("s001", 4), ("s002", 0))}
    results = make_results(finals, start=[[2]] * 3)
    centre = {"temperature": 1.0, "prompts": 2}
    settings = {"s000": centre, "s001": {**centre, "temperature": 0.5}, "s002": {**centre, "prompts": 8}}
    said = sensitivity(Sweep(results.plan, settings, 0.02, around_centre=True), results, "test")
    assert [(level.key, level.value, median(level.runs)) for level in said.levels] == [
        ("temperature", 1.0, 0.5), ("temperature", 0.5, 1.0), ("prompts", 2, 0.5), ("prompts", 8, 0.0),
    ]  # fmt: skip
    crossed = sensitivity(Sweep(results.plan, settings, 0.02), results, "test")
    # in a grid every run with temperature 1 counts: .5 three times, 0 three times
    assert median(crossed.levels[0].runs) == 0.25
