"""Comparison and sweep files: what they say, and what is refused."""

from __future__ import annotations

import pytest

from maieutic.compare.plan import Plan, read_comparison
from maieutic.compare.sweep import SweepConfig, sweep
from maieutic.config import StageConfig, parse_table, write_toml
from maieutic.errors import ConfigError

SFT = {"name": "more sft", "algorithm": "sft"}

WRONG = {
    "a misspelt key of an arm": (
        {"arms": [{"name": "x", "algoritm": "grpo"}, {"algorithm": "rloo"}]},
        "arm 'x': algorithm is missing; unknown key 'algoritm'; did you mean 'algorithm'?",
    ),
    "a misspelt key of the file": ({"sedes": [1]}, "unknown key 'sedes'; did you mean 'seeds'?"),
    "an unknown algorithm": (
        {"arms": [{"algorithm": "gpro"}, {"algorithm": "rloo"}]},
        "unknown algorithm 'gpro'; did you mean 'grpo'?",
    ),
    "two arms of one name": (
        {"arms": [{"algorithm": "grpo"}, {"algorithm": "grpo"}]},
        "two arms are called 'grpo'; give each a `name`",
    ),
    "an arm called start": ({"arms": [{"name": "start", "algorithm": "grpo"}, {"algorithm": "rloo"}]}, "'start'"),
    "one arm": ({"arms": [{"algorithm": "grpo"}]}, "arms"),
    "a name that is no folder": ({"arms": [{"name": "a/b", "algorithm": "grpo"}, {"algorithm": "rloo"}]}, "'a/b'"),
    "an arm with steps of its own": (
        {"arms": [{"algorithm": "grpo", "steps": 9}, {"algorithm": "rloo"}]},
        "arm 'grpo': got steps; every arm has the same [budget]",
    ),
    "an arm that may end early": (
        {"stage": {"validation": {"tasks": "test", "patience": 2}}},
        "validation.patience, which would end an arm before its budget is spent",
    ),
    "two budgets": ({"budget": {"samples": 8, "flops": 9}}, "exactly one of samples, generated_tokens"),
    "a seed twice": ({"seeds": [1, 2, 1]}, "got the seed 1 more than once"),
    "a reference that is no arm": ({"reference_arm": "grop"}, "unknown reference_arm 'grop'"),
    "a metric that needs more samples": ({"metric": "pass@8"}, "got metric = 'pass@8' with 4 samples a problem"),
    "a metric of which less is better": ({"metric": "length"}, "expected greedy, pass@k, vote@k or strict@k"),
    "a small model without a start": ({"start": []}, "knows nothing: give it stages to begin with, [[start]]"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_answered_with_the_remedy(make_plan, case):
    changes, said = WRONG[case]
    with pytest.raises(ConfigError) as error:
        make_plan(**changes)
    assert said in str(error.value)


def test_few_seeds_and_as_many_samples_as_k_are_told(make_plan):
    evaluation = {"tasks": "test", "samples": 4, "max_completion_length": 6}
    one, k = make_plan(seeds=[1], evaluation=evaluation).warnings
    assert one == "1 seed: at least 3 are needed to tell an algorithm from luck"
    assert k.startswith("k is the number of samples (4)")
    assert make_plan(seeds=[1, 2, 3]).warnings == ()


def test_arms_differ_only_in_what_they_say(make_plan, tables):
    stage = {**tables["stage"], "options": {"epsilon": 0.1}}
    arms = [
        {"name": "slow", "algorithm": "grpo", "optimiser": {"warmup_steps": 3}},
        {"name": "wide", "algorithm": "grpo", "options": {"beta": 0.5}, "num_generations": 4},
    ]
    slow, wide = (arm.stage for arm in make_plan(stage=stage, arms=arms).arms)
    assert (slow.optimiser.learning_rate, slow.optimiser.warmup_steps) == (1e-3, 3)
    assert (slow.options, wide.options) == ({"epsilon": 0.1}, {"epsilon": 0.1, "beta": 0.5})
    assert (slow.num_generations, wide.num_generations) == (2, 4)
    assert slow.budget == wide.budget
    assert slow.budget is not None
    assert slow.budget.amount == 8


def test_seeds_are_of_everything_and_arms_of_a_seed_are_paired(make_plan):
    plan = make_plan()
    a, b = (plan.arm_config(arm, 2, "model") for arm in plan.arms)
    assert (a.seed, b.seed, a.threads) == (2, 2, 1)
    assert a.evaluation is not None
    assert b.evaluation is not None
    # the same random numbers for both arms of a seed, others for another seed
    assert a.evaluation.seed == b.evaluation.seed == 2
    assert a.evaluation.seed != plan.arm_config(plan.arms[0], 1, "model").evaluation.seed
    assert a.stages[0].name == b.stages[0].name  # what orders of tasks and samplings are drawn from, with the seed
    assert (a.model.path, a.model.small) == ("model", None)


def test_an_arm_that_samples_nothing_inherits_nothing_about_sampling(make_plan):
    plan = make_plan(budget={"trained_tokens": 100}, arms=[{**SFT, "name": "sft"}, {"algorithm": "rloo"}])
    whole = plan.whole(plan.arms[0], 1)
    assert [stage.algorithm for stage in whole.stages] == ["sft", "sft"]
    from maieutic.run.build import make_stage_algorithm

    assert not make_stage_algorithm(whole.stages[1]).samples


def test_an_arm_with_a_step_of_its_own_inherits_no_optimiser(make_plan):
    trpo = next(arm for arm in make_plan(arms=[{"algorithm": "trpo"}, {"algorithm": "rloo"}]).arms)
    assert trpo.stage.optimiser == StageConfig(algorithm="trpo", steps=1).optimiser
    assert trpo.stage.num_generations == 2


def test_without_start_stages_the_first_arm_measures_the_model_that_all_start_from(make_plan):
    plan = make_plan(start=[], model={"path": "somewhere"})
    first, second = (plan.arm_config(arm, 1, None) for arm in plan.arms)
    assert first.evaluation is not None
    assert first.evaluation.at_start
    assert second.evaluation is not None
    assert not second.evaluation.at_start
    assert first.model.path == second.model.path == "somewhere"


def test_a_plan_survives_being_written_down(make_plan):
    plan = make_plan(reference_arm="a")
    again = Plan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    for arm in plan.arms:
        assert write_toml(again.arm_config(again.arm(arm.name), 1, "m")) == write_toml(plan.arm_config(arm, 1, "m"))


def test_a_file_with_overrides(tables, tmp_path):
    import tomli_w

    path = tmp_path / "study.toml"
    path.write_text(tomli_w.dumps(tables))
    plan = read_comparison(path, ("budget.samples=12", "arms.1.name=other"))
    assert [arm.name for arm in plan.arms] == ["a", "other"]
    assert plan.arms[0].stage.budget is not None
    assert plan.arms[0].stage.budget.amount == 12


def made(tables: dict, **changes: object):
    kept = {key: value for key, value in tables.items() if key not in ("arms", "budget")}
    stage = {**tables["stage"], "algorithm": "grpo", "steps": 2}
    return sweep(parse_table(SweepConfig, {**kept, "seeds": [1, 2, 3], "stage": stage, **changes}, "s.toml"), "s.toml")


GRID = {"optimiser.learning_rate": [1e-4, 1e-3], "options.beta": [0.0, 0.04], "num_generations": [2, 4]}


def test_a_grid_has_every_combination(tables):
    found = made(tables, grid=GRID)
    assert len(found.plan.arms) == 8
    stages = {
        (arm.stage.optimiser.learning_rate, arm.stage.options["beta"], arm.stage.num_generations)
        for arm in found.plan.arms
    }
    assert len(stages) == 8
    assert found.settings["s007"] == {"optimiser.learning_rate": 1e-3, "options.beta": 0.04, "num_generations": 4}


def test_one_at_a_time_goes_around_what_the_stage_has(tables):
    # the centre is the stage's: learning rate 1e-3, G = 2, and beta 0, the default of GRPO; so one more value of each
    found = made(tables, grid=GRID, design="one_at_a_time")
    centre = {"optimiser.learning_rate": 1e-3, "options.beta": 0.0, "num_generations": 2}
    assert list(found.settings.values()) == [
        centre,
        {**centre, "optimiser.learning_rate": 1e-4},
        {**centre, "options.beta": 0.04},
        {**centre, "num_generations": 4},
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1, 2]}, "got 2 seeds; expected at least 3: with fewer, a setting cannot be told from its luck"),
        ({"grid": {"options.bta": [0, 1]}}, "has no option 'bta'; did you mean 'beta'?"),
        ({"grid": {"temprature": [0.5, 1.0]}}, "unknown key 'temprature'; did you mean 'temperature'?"),
        ({"grid": {"learning_rate": [1e-4, 1e-3]}, "design": "one_at_a_time"}, "did you mean optimiser.learning_rate"),
        ({"grid": {"temperature": [1.0]}}, "expected at least two values, each once"),
        ({"grid": {"a.b.c": [1, 2]}}, "expected a key of a stage, options.KEY or optimiser.KEY"),
        ({"grid": {"prompts": list(range(1, 40)), "max_refill": list(range(40))}}, "got 1,560 settings, 4,680 runs"),
    ],
)
def test_a_mistaken_sweep_is_answered_with_the_remedy(tables, changes, said):
    with pytest.raises(ConfigError) as error:
        made(tables, **{"grid": GRID, **changes})
    assert said in str(error.value)
