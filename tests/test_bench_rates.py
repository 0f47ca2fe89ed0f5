"""The benchmarks of rates: operations counted by hand, tables from made-up measurements, and a run of each."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import _long_run as long_run
from benchmarks import rollout as rollout_benchmark
from benchmarks import scaling as scaling_benchmark
from benchmarks import update as update_benchmark
from benchmarks._clock import best_in_turn
from benchmarks._memory import slope, training
from benchmarks._operations import (
    Lengths,
    Operations,
    Product,
    Shape,
    Work,
    forward_work,
    positions_seen,
    rollout,
    rollout_bytes,
    rollout_work,
    scoring,
    shape_of,
    update,
)
from benchmarks._shapes import SIZES, random_model
from maieutic.algorithms import grpo
from maieutic.backends.local import LocalLearner, Optimiser
from maieutic.backends.local.evaluate import PaddedForward
from maieutic.run.store import Store

#: Two layers of width 8 with 2 query heads and 1 key-value head of size 4, a feed-forward of 16, 10 tokens.
TINY = {
    "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 10, "max_position_embeddings": 64,
}  # fmt: skip


def tiny(kind: str = "llama") -> torch.nn.Module:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TINY), dtype=torch.float32)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_the_shape_is_read_from_the_modules(kind):
    shape = shape_of(tiny(kind))
    # a layer: q and o 8 × 8, k and v 8 × 4, gate and up 8 × 16, down 16 × 8; two layers
    assert set(shape.products) == {Product(8, 8, 4), Product(8, 4, 4), Product(8, 16, 4), Product(16, 8, 2)}
    assert shape.head == Product(8, 10)
    assert (shape.layers, shape.heads, shape.kv_heads, shape.head_width, shape.bytes_each) == (2, 2, 1, 4, 4)
    # 2 · (64 + 64 + 32 + 32 + 128 + 128 + 128) = 1152 numbers, and 80 of the head, of 4 bytes
    assert shape.weight_bytes == 4 * (1152 + 80)
    assert shape.token_bytes == 4 * 2 * 2 * 4  # keys and values, two layers, one head of 4 numbers of 4 bytes


def test_adapters_are_products_and_what_is_frozen_has_no_gradient():
    shape = shape_of(get_peft_model(tiny(), LoraConfig(r=2, target_modules=["q_proj"])))
    frozen = {product for product in shape.products if not product.trained}
    assert frozen == {Product(8, 8, 4, False), Product(8, 4, 4, False), Product(8, 16, 4, False),
                      Product(16, 8, 2, False)}  # fmt: skip
    assert set(shape.products) - frozen == {Product(8, 2, 2), Product(2, 8, 2)}
    assert not shape.head.trained
    made = update(shape, [Lengths(2, (1,))])  # two tokens fed, one predicted
    # 2 · 2 tokens · (2 · 1152 frozen numbers + 3 · 64 of the adapters); the head 2 · 2 · 80 for one prediction
    assert made.products == 2 * 2 * (2 * 1152 + 3 * 64)
    assert made.head == 2 * 2 * 80


def test_every_position_sees_itself_and_what_precedes():
    assert positions_seen(0, 3) == 1 + 2 + 3
    assert positions_seen(2, 4) == 3 + 4
    assert positions_seen(5, 5) == 0


def test_work_by_hand():
    groups = [Lengths(3, (2, 4)), Lengths(2, (1,))]
    # tokens: 3 + (2 - 1) + (4 - 1) and 2 + 0; seen: 1 + 2 + 3, then 4, then 4 + 5 + 6, and 1 + 2
    assert forward_work(groups) == Work(tokens=9, seen=6 + 4 + 15 + 3, predictions=7)
    assert rollout_work(groups) == Work(tokens=9, seen=28, predictions=6)  # two siblings' first token in one


def test_operations_by_hand():
    shape = Shape((Product(8, 4, 3),), Product(8, 10), layers=3, heads=2, kv_heads=1, head_width=4)
    groups = [Lengths(3, (2,))]  # 4 tokens, 1 + 2 + 3 + 4 = 10 positions, 2 predictions
    # products 2 · 4 · 96, head 2 · 2 · 80, attention 4 · 3 layers · 8 · 10
    assert scoring(shape, groups) == Operations(768, 320, 960)
    assert rollout(shape, groups) == scoring(shape, groups)
    assert update(shape, groups) == Operations(3 * 768, 3 * 320, 3 * 960)
    assert scoring(shape, groups).total == 2048


def test_bytes_of_decoding_by_hand():
    shape = Shape((Product(8, 4, 3),), Product(8, 10), layers=3, heads=2, kv_heads=1, head_width=4)
    # 4 bytes · (96 + 80) numbers a step, 4 · 2 · 3 · 4 = 96 bytes a position
    assert rollout_bytes(shape, [Lengths(3, (3, 2))]) == 3 * 704 + 96 * ((4 + 5) + 4)


def test_a_dense_model_takes_six_operations_a_weight_and_token():
    """The customary 6·N, with `N` without embeddings, is what remains of `update` without attention."""
    model = tiny()
    shape = shape_of(model)
    linear = sum(part.weight.numel() for part in model.modules() if isinstance(part, torch.nn.Linear))
    made = update(shape, [Lengths(1, (101,))])  # 101 tokens fed, 101 predicted
    assert made.products + made.head == 6 * linear * 101


# ---- what is run in turn


def test_the_best_of_several_times_counts_and_all_run_in_turn():
    order: list[str] = []
    times = iter([9.0, 9.0, 3.0, 5.0, 2.0, 6.0, 4.0, 4.0])  # the first round is not measured

    def clock(work):
        work()
        return next(times)

    works = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    assert best_in_turn(works, clock, repeats=3, most=1000) == {"a": 2.0, "b": 4.0}
    assert order == ["a", "b"] * 4


def test_slow_works_are_repeated_less_and_never_less_than_twice():
    for most, rounds in ((1000.0, 7), (50.0, 4), (1.0, 2)):  # a round takes 10 seconds, and one is not measured
        calls: list[int] = []
        best_in_turn({"a": lambda calls=calls: calls.append(1)}, lambda work: work() or 10.0, repeats=7, most=most)
        assert len(calls) == 1 + rounds


# ---- rollouts

SHAPE = Shape((Product(8, 4, 3),), Product(8, 10), layers=3, heads=2, kv_heads=1, head_width=4)


def test_rows_are_groups_of_siblings():
    assert rollout_benchmark.lengths_of(11, 5) == [Lengths(32, (5,) * 8), Lengths(32, (5,) * 3)]
    assert rollout_benchmark.points_of(9, [1, 64], [9, 20]) == [(1, 9), (64, 9), (64, 20)]


def limits() -> rollout_benchmark.Limits:
    # a product of 4 columns runs at 100 operations a second and row, the head of 10 columns at 400
    return rollout_benchmark.Limits(SHAPE, 1000.0, lambda rows, _inner, columns: rows * {4: 100.0, 10: 400.0}[columns])


def test_products_are_combined_by_the_time_that_they_take():
    # 2 rows: 2 · 2 · 96 operations at 200 a second are 1.92 s, 2 · 2 · 80 at 800 are 0.4 s
    assert limits().products(2) == pytest.approx((384 + 320) / (1.92 + 0.4))


def test_a_point_by_hand():
    said = rollout_benchmark.Point("tiny", 2, 3, seconds=8.0, generate=16.0).report(limits())
    assert said["tokens_per_second"] == 6 / 8
    assert said["generate_tokens_per_second"] == 6 / 16
    assert said["times_generate"] == 2
    # two decode steps of two rows after the prompt: 4 tokens through products and head, 4 · (192 + 160) operations, at
    # the limit's rate 2 · (1.92 + 0.4) s of the 8
    assert said["share"] == pytest.approx(2 * 2.32 / 8)
    # tokens 32 + 2 · 2, predictions 1 + 2 · 2, seen 32 · 33 / 2 by the prompt and twice 33 + 34
    work = 2 * 36 * 96 + 2 * 5 * 80 + 4 * 3 * 8 * (528 + 2 * 67)
    assert said["gflops"] == pytest.approx(work / 8 / 1e9)
    # 3 steps read 704 bytes of weights each, and 2 · 67 positions of 96 bytes
    assert said["share_of_memory"] == pytest.approx((3 * 704 + 134 * 96) / 1000 / 8)


def test_the_table_of_rollouts():
    point = {
        "size": "4M", "rows": 64, "completion": 128, "tokens_per_second": 12345.6, "gflops": 61.2, "gemm_gflops": 95.4,
        "share": 0.578, "share_of_memory": 0.321, "generate_tokens_per_second": 3210.9, "times_generate": 3.838,
    }  # fmt: skip
    text = rollout_benchmark.table({"points": [point], "target_share": 0.5, "share_at_64": {"4M": 0.578}})
    assert "| 4M | 64 | 128 | 12,346 | 61.2 | 95.4 | 0.58 | 0.32 | 3,211 | 3.84 |" in text
    assert "Share at 64 rows (to be at least 0.5): 4M 0.58." in text


def test_rollouts_are_measured(tmp_path, capsys):
    asked = ["--sizes", "tiny", "--rows", "1", "64", "--completion", "4", "--lengths", "6", "--limit-seconds", "0.01"]
    assert rollout_benchmark.main([*asked, "--quick", "--repeats", "2", "--json", str(tmp_path / "made.json")]) == 0
    made = json.loads((tmp_path / "made.json").read_text())
    assert [(p["rows"], p["completion"]) for p in made["points"]] == [(1, 4), (64, 4), (64, 6)]
    assert made["share_at_64"] == {"tiny": made["points"][1]["share"]}  # of the sweep over rows, not over lengths
    assert all(p["tokens_per_second"] > 0 and p["share"] > 0 for p in made["points"])
    assert capsys.readouterr().out.count("| tiny |") == 3


# ---- updates


def test_a_step_of_the_update_by_hand():
    case = update_benchmark.Case("tiny", rows=16, longest=32, prompt=10)
    # from a quarter of 32 in strides of 24 / 7, rounded down
    assert case.groups == [Lengths(10, (8, 11, 14, 18, 21, 25, 28, 32))] * 2
    said = case.report({"packed": 2.0, "padded": 5.0}, SHAPE, fastest=1e6)
    assert said["trained_tokens"] == 2 * 157
    assert said["prompt_share"] == pytest.approx(20 / (20 + 314))
    operations = update(SHAPE, case.groups).total
    assert said["packed"]["tokens_per_second"] == 157
    assert said["packed"]["share_of_peak"] == pytest.approx(operations / 2 / 1e6)
    assert said["padded"]["share_of_peak"] == pytest.approx(operations / 5 / 1e6)
    assert said["times_padded"] == 2.5


def test_both_ways_of_the_update_do_the_same_on_rows_of_the_asked_lengths():
    algorithm, size = grpo(), SIZES["tiny"]
    case = update_benchmark.Case("tiny", rows=8, longest=12, prompt=5)
    batch = update_benchmark.batch_of(case.groups, size.vocabulary, algorithm)
    assert batch.mask.sum(1).tolist() == list(case.groups[0].completions)
    assert batch.mask.to(torch.int8).argmax(1).tolist() == [5] * 8
    assert len({tuple(row) for row in batch.tokens[:, :5].tolist()}) == 1  # one prompt
    losses = []
    for padded in (False, True):
        model = random_model(size)
        forward = PaddedForward(model.module) if padded else None
        learner = LocalLearner(model, Optimiser(), forward=forward)
        losses.append(learner.step(batch, algorithm.loss.terms, needs=algorithm.loss.needs))
    assert losses[0]["optim/grad_norm"] == pytest.approx(losses[1]["optim/grad_norm"], rel=1e-4)
    assert losses[0]["optim/grad_norm"] > 0


def test_what_is_varied_is_varied_once():
    made = list(update_benchmark.cases(["0.4M", "4M"], quick=False))
    assert [(c.size, c.prompt, c.budget) for c in made] == [
        ("0.4M", 64, 16384), ("4M", 64, 16384), ("4M", 16, 16384), ("4M", 256, 16384), ("4M", 1024, 16384),
        ("4M", 64, 1024), ("4M", 64, 4096), ("4M", 64, 65536),
    ]  # fmt: skip


def test_updates_are_measured(tmp_path, capsys):
    asked = ["--sizes", "tiny", "--quick", "--repeats", "2", "--json", str(tmp_path / "made.json")]
    assert update_benchmark.main(asked) == 0
    made = json.loads((tmp_path / "made.json").read_text())
    (point,) = made["points"]
    assert (point["rows"], point["longest"], point["prompt"]) == (8, 16, 64)
    assert point["packed"]["share_of_peak"] > 0
    row = f"| tiny | 8 | 64 | ≤ 16 | 16384 | {point['prompt_share']:.2f} | "
    assert row in capsys.readouterr().out


# ---- what grows


def test_a_made_up_run_is_gone_on_with_and_read(tmp_path):
    folder, said = tmp_path / "run", []
    assert long_run.fill(folder, 64, said.append)["written"] == 64
    assert long_run.fill(folder, 192, said.append)["written"] == 128
    assert long_run.fill(folder, 192, said.append)["written"] == 0
    with Store.open_reader(folder / "run.db") as store:
        assert store.count_rollouts() == 192
        assert store.metric_names("rl") == sorted(long_run.METRICS)
        assert len(store.ledger("rl")) == 24
        (stored,) = store.rollouts(limit=1)
    made = long_run.made_step(0).groups[0].rollouts[0]
    assert stored.rollout.tokens == made.tokens
    assert stored.advantages is not None  # as a run stores them
    readings = long_run.readings(folder)
    assert len(readings) == 9
    for name in ("the run (stages, curves, evaluations)", "a page of 50 rollouts of a step", "maieutic show --step"):
        readings[name]()


def test_the_slope_of_memory_by_hand():
    assert slope([(step, 1000 + 24 * step) for step in range(0, 100, 5)]) == (24.0, 0.0)
    # one leap in the middle of ten samples: least squares give 10 · Σ(x - 4.5) over the upper half / Σ(x - 4.5)² =
    # 10 · 12.5 / 82.5
    grown, error = slope([(step, 10 * (step >= 5)) for step in range(10)])
    assert grown == pytest.approx(125 / 82.5)
    assert 0 < error < grown


@pytest.mark.parametrize("engine", ["toy", "local"])
def test_memory_is_sampled_while_it_trains(engine):
    made = training(engine, 20, lambda text: None)
    assert [step for step, _ in made["samples"]] == list(range(1, 21))
    assert made["last_mib"] == made["samples"][-1][1] / 2**20 > 10
    assert made["first_mib"] == made["samples"][4][1] / 2**20  # the first fifth does not count


def test_the_tables_of_what_grows():
    rows = [
        {"siblings": 1, "tokens": 100.0, "rollout_seconds": 2.0, "rollout_gflop": 4.0, "trained_tokens": 50.0,
         "update_seconds": 5.0, "update_gflop": 10.0},
        {"siblings": 8, "tokens": 100.0, "rollout_seconds": 1.0, "rollout_gflop": 1.0, "trained_tokens": 50.0,
         "update_seconds": 4.0, "update_gflop": 5.0},
    ]  # fmt: skip
    store = {"rollouts": 1000, "bytes_a_rollout": 1229.6, "written_a_second": None, "slowest_page": 0.954,
             "pages": {"maieutic show": 0.5, "the report's page": 0.954}}  # fmt: skip
    memory = {"engine": "toy", "steps": 10_000, "first_mib": 357.54, "last_mib": 357.69, "bytes_a_step": 22.7,
              "error": 2.1}  # fmt: skip
    text = scaling_benchmark.table({"siblings": rows, "store": [store], "memory": [memory]})
    assert "| 1 | 50 | 1.00 | 1.00 | 10 | 1.00 | 1.00 |" in text
    assert "| 8 | 100 | 0.50 | 0.25 | 12 | 0.80 | 0.50 |" in text
    assert "| rollouts written a second | – |" in text
    assert "| the report's page, s | 0.954 |" in text
    assert "The slowest page takes 0.95 s (to stay below 1)." in text
    assert "| toy | 10,000 | 357.5 | 357.7 | 23 ± 2 |" in text


def test_what_grows_is_measured(tmp_path, capsys):
    assert scaling_benchmark.main(["--quick", "--parts", "tasks", "--json", str(tmp_path / "made.json")]) == 0
    made = json.loads((tmp_path / "made.json").read_text())
    assert [row["tasks"] for row in made["tasks"]] == [100, 10_000]
    assert made["tasks"][1]["epoch_steps"] == 313
    assert "**tasks**" in capsys.readouterr().out


def test_rollouts_and_updates_of_groups_are_timed_side_by_side():
    groups, trained = [Lengths(5, (6, 6, 6))] * 2, [Lengths(5, (6, 6))]
    made = scaling_benchmark.costs(groups, "tiny", repeats=2, most=1.0, trained=trained)
    assert (made["tokens"], made["trained_tokens"]) == (36, 12)
    shape = shape_of(random_model(SIZES["tiny"]).module)
    assert made["rollout_gflop"] == rollout(shape, groups).total / 1e9
    assert made["update_gflop"] == update(shape, trained).total / 1e9
    assert min(made["rollout_seconds"], made["update_seconds"]) > 0
