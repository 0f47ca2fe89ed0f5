"""The formulas of a forecast, worked by hand on a tiny shape."""

from __future__ import annotations

from dataclasses import replace

import pytest

from maieutic.forecast import memory, work
from maieutic.forecast.memory import Item, Memory, Pass
from maieutic.forecast.needs import Remedy, remedies, stage_memory
from maieutic.forecast.predict import EFFICIENCY, UPDATE, forecast, step_tokens, steps_of
from maieutic.forecast.sizes import Product, Sizes, Weight
from maieutic.forecast.stage import Asked, Beside, Lengths, StageInputs

#: One layer of width 8: 2 query heads and 1 key-value head of 4, a gated feed-forward part of 16, 10 tokens.
PRODUCTS = (Product(8, 8, times=2), Product(8, 4, times=2), Product(8, 16, times=2), Product(16, 8))
WEIGHTS = (
    Weight(80, 320, True, (10, 8)),  # the embedding, which is the head, too
    Weight(64, 256, True, (8, 8), hidden=True),
    Weight(8, 32, True, (8,)),
    Weight(20, 80, False, (4, 5)),
)
SIZES = Sizes(
    weights=WEIGHTS, buffers=12, products=PRODUCTS, head=Product(8, 10), layers=1, heads=2, kv_heads=1, head_width=4,
    mlp=16, normed=24, norm_kept=3, mlp_kept=4, plugged=True,
)  # fmt: skip


def inputs(**changed) -> StageInputs:
    """A stage of 2 prompts of 3 tokens with 2 completions of 5 each."""
    told = {
        "index": 0, "name": "rl", "algorithm": "grpo", "sizes": SIZES, "lengths": Lengths(3.0, 3, 5.0, 5),
        "groups": 2, "siblings": 2, "samples": True, "steps": 10, "passes": 1.0, "optimiser_steps": 1,
        "optimiser": "adamw", "max_rows": 64, "micro_batch_tokens": 1024, "cache_bytes": 1 << 30, "together": 4,
    }  # fmt: skip
    return StageInputs(**{**told, **changed})


def test_weights_and_their_bytes():
    assert SIZES.parameters() == 172
    assert (SIZES.parameters(True), SIZES.parameters(False)) == (152, 20)
    assert SIZES.bytes(True) == 608
    assert SIZES.bytes(False) == 80 + 12  # buffers are with what is not trained
    assert memory.gradients(WEIGHTS) == 608


def test_adamw_keeps_two_moments_and_a_counter_for_each_tensor():
    assert memory.optimiser_state(WEIGHTS, "adamw") == 2 * 608 + 3 * 4


def test_muon_keeps_one_of_its_matrices_and_adamw_the_rest():
    # the hidden matrix: 256. The embedding and the norm: 2 * (320 + 32) + 2 * 4
    assert memory.optimiser_state(WEIGHTS, "muon") == 256 + 704 + 8
    assert memory.orthogonalising(WEIGHTS, "muon") == 4 * 2 * 64
    assert memory.orthogonalising(WEIGHTS, "adamw") == 0


@pytest.mark.parametrize(
    ("budget", "ease", "rows"),
    [
        (1000, None, (3, 4)),  # a group is 40 + 4 * 60 = 280 tokens: three fit
        (1000, 600, (2, 4)),  # into 600, two
        (1000, 100, (1, 4)),  # one at least, which has the budget
        (280, None, (1, 4)),
        (279, None, (1, 3)),  # (279 - 40) // 60 = 3 rows of one group
        (50, None, (1, 1)),
    ],
)
def test_rows_of_a_micro_batch(budget, ease, rows):
    assert memory.rows_at_once(budget, 40, 60, 4, ease) == rows


def test_a_micro_batch_reads_each_prompt_once_and_feeds_all_but_the_last_token():
    # 2 prompts of 3, 4 rows of 5 - 1: 6 + 16 tokens; 20 predictions
    run = memory.micro_batch(SIZES, 1024, 2, 3, 5, 2)
    assert run == Pass(tokens=22, rows=4, predictions=20)
    # on a GPU each row gathers its 3 + 4 keys, and its 4 queries are masked against them
    assert memory.micro_batch(SIZES, 1024, 2, 3, 5, 2, on_cpu=False) == Pass(22, 4, 20, context=28, masked=112)


def test_without_the_fast_engine_rows_are_whole_and_logits_are_of_every_token():
    plain = replace(SIZES, plugged=False)
    assert memory.micro_batch(plain, 1024, 2, 3, 5, 2) == Pass(32, 4, 20, heads=True)
    assert memory.micro_batch(plain, 16, 2, 3, 5, 2).rows == 2  # two rows of 8


def test_activations():
    # a token: norms 3 * 24, feed-forward 4 * 16, attention 2 * 8 (q, out) + 2 * 4 (k, v) + 2 (a number a head)
    token = 72 + 64 + 16 + 8 + 2
    assert token == 162
    assert memory.activations(SIZES, Pass(22, 4, 20)) == 4 * (22 * 162 + 20 * 8)
    # gathered: the result once more (8), keys and values of 28 (2 * 4 each), 112 masked
    gathered = Pass(22, 4, 20, context=28, masked=112)
    assert memory.activations(SIZES, gathered) == 4 * (22 * 170 + 8 * 28 + 112 + 20 * 8)


def test_an_adapter_keeps_what_its_first_matrix_makes_and_frozen_norms_keep_less():
    frozen = tuple(replace(p, trained=False) for p in PRODUCTS)
    adapted = replace(SIZES, products=(*frozen, Product(8, 2, times=3), Product(2, 8, times=3)), norm_kept=2)
    # 2 * 24 instead of 3 * 24, and 3 * 2 between the matrices
    assert memory.activations(adapted, Pass(22, 4, 0)) == 4 * 22 * (162 - 24 + 6)


def test_logits_are_held_or_made_again():
    # 20 predictions of 10: 800 bytes, whose gradient is one piece
    assert memory.logits(SIZES, Pass(22, 4, 20)) == (800, 800)
    many = Pass(22, 4, 1 << 23)  # 80 M logits: more than are held
    held, beside = memory.logits(SIZES, many)
    assert held == 0
    assert beside == 2 * 4 * ((1 << 20) // 10 * 10)  # a chunk and its gradient
    assert memory.logits(SIZES, Pass(22, 4, 20, heads=True)) == (800, 800 + 2 * 4 * 22 * 10)


def test_compiled_scores_hold_logits_with_their_gradient_in_the_same_place():
    compiled = replace(SIZES, lean=True, compiled=True)
    assert memory.logits(compiled, Pass(22, 4, 20)) == (800, 0)
    # 300 predictions are filled up to 320
    assert memory.logits(compiled, Pass(322, 4, 300)) == (4 * 320 * 10, 0)
    # more than are held: pieces of 2²² logits, one at a time
    assert memory.logits(compiled, Pass(22, 4, 1 << 23)) == (0, 4 * ((1 << 22) // 10 * 10))
    # a piece has 256 rows at least
    wide = replace(compiled, head=Product(8, 1 << 17))
    assert memory.logits(wide, Pass(2000, 4, 1000)) == (0, 4 * 256 * (1 << 17))
    # on a GPU nothing is compiled
    assert memory.logits(compiled, Pass(22, 4, 20, context=28)) == (800, 800)
    # a pass that keeps nothing: 4 * 8 + 3 * 16 numbers a token, and a piece
    assert memory.passing(compiled, Pass(322, 4, 300)) == 4 * 322 * (32 + 48) + 4 * 3000


def test_enough_tokens_go_through_memory_in_few_passes_and_are_filled_up():
    lean = replace(SIZES, lean=True)
    assert not memory.few(lean, Pass(255, 4, 20))
    assert not memory.few(lean, Pass(256, 4, 20, context=28))
    assert not memory.few(SIZES, Pass(256, 4, 20))
    # 2 * 24 instead of 3 * 24, 3 * 16 instead of 4 * 16
    assert memory.activations(lean, Pass(256, 4, 20)) == 4 * (256 * (162 - 24 - 16) + 20 * 8)
    # 2 prompts of 30, 16 rows of 14: 284 tokens, up to 320
    assert memory.micro_batch(SIZES, 1024, 2, 30, 15, 8) == Pass(320, 16, 240)


def test_weights_are_laid_out_forth_and_back_while_an_update_goes_on():
    lean, run = replace(SIZES, lean=True), Pass(320, 16, 256)
    # products: 576 weights; the head's 80 only where scores are compiled
    assert memory.laid_out_to_learn(lean, run) == 2 * 4 * 576
    compiled = replace(lean, compiled=True)
    assert memory.laid_out_to_learn(compiled, run) == 2 * 4 * (576 + 80)
    assert memory.laid_out_to_learn(compiled, replace(run, predictions=255)) == 2 * 4 * 576
    assert memory.laid_out_to_learn(compiled, replace(run, tokens=255)) == 0
    assert memory.laid_out_to_learn(compiled, replace(run, context=28)) == 0
    large = replace(lean, products=(Product(1 << 14, 1 << 14),))
    assert memory.laid_out_to_learn(large, run) == 1 << 30  # of 2 GB


def test_keys_that_are_seen():
    assert work.seen(0, 3) == 1 + 2 + 3
    assert work.seen(3, 7) == 4 + 5 + 6 + 7


def test_operations_of_a_forward_pass():
    # weights of the products: 2 * 64 + 2 * 32 + 2 * 128 + 128 = 576; of the head: 80
    run = work.forward(SIZES, tokens=22, keys=100, predictions=20, passes=1)
    assert sum(run.products.values()) == 2 * 576 * 22 + 2 * 80 * 20
    assert run.products[8, 16] == 2 * 256 * 22
    assert run.attention == 4 * 8 * 100
    assert run.weights == 4 * (576 + 80)
    assert run.calls == work.CALLS_OF_LAYER + work.CALLS_OF_PASS
    assert run.rows == 22


def test_micro_batches_of_what_is_not_compiled_take_more_calls():
    told = (22, 100, 20, 3)
    assert work.scoring(SIZES, *told).calls == 3 * (1200 + 2500)
    compiled = replace(SIZES, compiled=True)
    assert work.scoring(compiled, *told) == work.forward(compiled, *told)


def test_what_one_pass_over_a_step_sees():
    # prompts: 2 * (1 + 2 + 3) keys; rows: 4 * (4 + 5 + 6 + 7)
    assert work.read_once(SIZES, 2, 2, 3, 5) == (22, 2 * 6 + 4 * 22, 20)
    # without sharing: 4 prompts, and predictions of every token
    assert work.read_once(replace(SIZES, plugged=False), 2, 2, 3, 5) == (28, 4 * 6 + 4 * 22, 28)


def test_a_backward_pass_is_two_forward_ones_where_all_is_trained_and_one_where_nothing_is():
    run = work.forward(SIZES, 22, 100, 20, 1)
    assert work.backward(SIZES, run).operations == 2 * run.operations
    frozen = replace(SIZES, products=tuple(replace(p, trained=False) for p in PRODUCTS), head=Product(8, 10, False))
    back = work.backward(frozen, run)
    assert sum(back.products.values()) == sum(run.products.values())
    assert back.attention == 2 * run.attention  # scores and values have gradients all the same


def test_decoding_takes_a_step_for_each_token_but_the_first():
    run = work.decode(SIZES, rows=4, at_once=4, prompt=3, mean=5, longest=5)
    assert run.rows == 4
    assert run.calls == 4 * (work.CALLS_OF_LAYER + work.CALLS_OF_PASS)
    assert run.products[16, 8] == 2 * 128 * 4 * 4
    # two at a time: twice as many steps
    assert work.decode(SIZES, 4, 2, 3, 5, 5).calls == 2 * run.calls
    # short on average, but one is long: as many steps as that one has
    assert work.decode(SIZES, 4, 4, 3, 2, 9).calls == 8 * (work.CALLS_OF_LAYER + work.CALLS_OF_PASS)


def test_decoding_by_kernels_takes_fewer_calls():
    run = work.decode(replace(SIZES, compiled=True), rows=4, at_once=4, prompt=3, mean=5, longest=5)
    assert run.calls == 4 * (120 + 450)
    assert replace(run, calls=0.0) == replace(work.decode(SIZES, 4, 4, 3, 5, 5), calls=0.0)


def test_muon_multiplies_and_adamw_moves():
    adam = work.optimiser_step(SIZES, "adamw")
    assert (adam.operations, adam.moved) == (0, 32 * 152)
    muon = work.optimiser_step(SIZES, "muon")
    # five rounds on the 8 x 8 matrix: A = X Xᵀ and B X (2 * 512 each), A A (2 * 512)
    assert muon.operations == 5 * 3 * 2 * 512


def test_seconds_are_of_what_takes_longer_and_of_what_adds_up():
    machine = work.Known(operations=100.0, bytes=10.0, seconds=0.5)
    told = work.Work({(2, 3): 400.0}, 1, attention=200.0, weights=30.0, keys=60.0, moved=20.0, calls=3.0)
    # products max(4, 3) + attention max(2, 6) + moved 2 + calls 1.5
    assert told.seconds(machine) == 4 + 6 + 2 + 1.5
    assert told.times(2).seconds(machine) == 27
    assert work.together([told, told]).seconds(machine) == 27


def test_tokens_of_a_step_and_steps_of_a_budget():
    tokens = step_tokens(inputs())
    assert (tokens.samples, tokens.generated, tokens.trained) == (4, 20, 4 * 8)
    assert steps_of(inputs()) == 10
    for kind, amount, steps in [("samples", 9, 3), ("generated_tokens", 100, 5), ("trained_tokens", 33, 2)]:
        assert steps_of(inputs(steps=None, budget=(kind, amount))) == steps
    # flops: 2 N (32 tokens of sampling) + 6 N * 32, N = 100: 25,600 a step
    assert steps_of(inputs(steps=None, budget=("flops", 51_200), counted=100)) == 2
    assert steps_of(inputs(steps=None, budget=("trained_tokens", 33), passes=None)) is None


def test_a_step_takes_the_sum_of_its_phases_and_a_stage_its_evaluations_too():
    machine = work.Known(1e9, 1e9, 1e-6)
    asked = Asked("test", 3, 0, Lengths(3.0, 3, 5.0, 5), times=2.0, every=5)
    told = forecast(inputs(evaluations=(asked,)), machine, process=0)
    assert told.step_seconds == pytest.approx(sum(told.seconds.values()))
    once = forecast(inputs(evaluations=(replace(asked, times=1.0, every=0),)), machine, process=0)
    assert told.evaluation == pytest.approx(4 * once.evaluation)  # twice, and after every 5 of 10 steps
    assert told.total_seconds == pytest.approx(10 * told.step_seconds + told.evaluation)
    slower = forecast(inputs(), machine, 0, factors={UPDATE: 3.0})
    assert slower.seconds[UPDATE] == pytest.approx(3 * told.seconds[UPDATE])
    assert set(told.seconds) <= set(EFFICIENCY)


def test_what_depends_on_the_batch_is_not_known_before():
    told = forecast(inputs(passes=None), work.Known(1e9, 1e9, 1e-6), process=0)
    assert told.seconds[UPDATE] is None
    assert told.step_seconds is None
    assert told.total_seconds is None


def test_one_step_ahead_a_step_is_as_long_as_the_longer_of_both():
    machine = work.Known(1e9, 1e9, 1e-6)
    alone, ahead = (forecast(inputs(overlap=wanted), machine, process=1000) for wanted in (False, True))
    sampling = sum(value for name, value in alone.seconds.items() if name.startswith("sampling"))
    assert ahead.step_seconds == pytest.approx(max(sampling, alone.seconds[UPDATE]))
    # the other process has a Python and weights of its own, and samples while this one learns
    more = ahead.memory.peak("update") - alone.memory.peak("update")
    assert more == 1000 + SIZES.bytes() + sum(item.bytes for item in alone.memory.phases["sampling"])


def test_memory_adds_up_and_the_store_is_there_while_it_is_sampled_from():
    told = stage_memory(inputs(beside=Beside(reference=500, teacher=70, restart=9)), process=1000)
    held = {item.what: item.bytes for item in told.standing}
    assert held["Python and torch"] == 1000
    assert (held["reference"], held["teacher"], held["weights to restart from"]) == (500, 70, 9)
    assert held["optimiser"] == 2 * 608 + 12
    update = {item.what: item.bytes for item in told.phases["update"]}
    assert update["gradients"] == 608
    assert update["activations"] == 4 * (22 * 162 + 20 * 8)
    assert update["their gradients, a layer's"] == 4 * 22 * (2 * 8 + 3 * 16 + 2 * 8 + 2 * 4)
    assert "keys and values" not in update
    assert "keys and values" in [item.what for item in told.phases["sampling"]]
    assert told.peak("update") == sum(held.values()) + sum(update.values())
    assert Memory((Item("a", 1),), {"x": (Item("b", 2),), "y": (Item("c", 5),)}).highest == "y"


def test_kernels_and_the_weights_laid_out_for_them_are_there_on_a_cpu():
    compiled = replace(SIZES, lean=True, compiled=True)
    many = {"sizes": compiled, "lengths": Lengths(30.0, 30, 20.0, 20), "siblings": 8, "together": 16}
    told = stage_memory(inputs(**many), process=1000)
    assert Item("compiled kernels", 130 << 20) in told.standing
    # 2 * 30 + 16 * 19 = 364 tokens, 320 predictions
    assert Item("weights, laid out", 2 * 4 * (576 + 80)) in told.phases["update"]
    ahead = stage_memory(inputs(**many, overlap=True), process=1000)
    assert Item("second process", 1000 + (130 << 20) + SIZES.bytes()) in ahead.phases["update"]
    there = stage_memory(inputs(**many, device="cuda"), process=0)
    assert not {"compiled kernels", "weights, laid out"} & {i.what for i in (*there.standing, *there.phases["update"])}


def test_a_remedy_is_a_value_that_fits():
    # one group of 30 + 64 * 200 tokens, more than a CPU takes of several at once
    large = inputs(
        groups=1, siblings=64, together=64, lengths=Lengths(30.0, 30, 200.0, 200), micro_batch_tokens=1 << 14
    )
    told = stage_memory(large, process=0)
    peak, kept = told.peak("update"), next(i.bytes for i in told.phases["update"] if i.what == "activations")
    assert remedies(large, 0, peak) == []
    found = [remedy for remedy in remedies(large, 0, peak - kept // 2) if remedy.phase == "update"]
    assert (found[0].key, found[0].present) == ("micro_batch_tokens", 1 << 14)
    value = found[0].value
    assert value is not None
    assert stage_memory(replace(large, micro_batch_tokens=value), 0).peak("update") <= peak - kept // 2
    assert stage_memory(replace(large, micro_batch_tokens=2 * value), 0).peak("update") > peak - kept // 2
    # what this process has already is not to be had once more
    assert remedies(replace(large), 1000, peak) == []
    # on a GPU nothing is there before, and rollouts are elsewhere
    there = replace(large, device="cuda")
    most = stage_memory(there, 0)
    assert "rollouts and batch" not in [item.what for item in most.standing]
    assert remedies(there, 0, most.peak("update")) == []
    assert remedies(there, 0, most.peak("update") - 1) != []
    # where nothing helps, no value is told
    assert {remedy.value for remedy in remedies(large, 0, 1000)} == {None}
    assert Remedy("update", "micro_batch_tokens", 1 << 14, value) in found
