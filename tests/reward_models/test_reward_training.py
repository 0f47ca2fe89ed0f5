"""Reward models learn, are written as ordinary folders, and go on after a stop to the same weights."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from maieutic.backends.local import LocalLearner, Optimiser
from maieutic.backends.local.evaluate import PaddedForward
from maieutic.backends.local.judging import JudgeHead
from maieutic.config.reward_training import RewardTrainConfig
from maieutic.core.judging import auc
from maieutic.core.reward_modelling import outcome_model, pair_model, process_model
from maieutic.errors import DataError, RunError
from maieutic.models.causal import load_causal
from maieutic.models.reward_model import KINDS, Settings, from_policy, load_reward_model
from maieutic.models.small import SmallModel, build_small
from maieutic.pack import pack
from maieutic.reward_models.data import outcome_groups, pair_groups, process_groups, written
from maieutic.run.reward_data import gather
from maieutic.run.reward_training import train_reward_model
from maieutic.run.runner import Interrupted
from maieutic.tasks.judged import Judged, Preference, read_judged
from maieutic.types import Message

WORDS = [*"0123456789", *"+-=;", "#"]


def sums(count: int, seed: int) -> list[tuple[str, list[int], list[int]]]:
    """Two-digit sums without a carry, digit by digit: a prompt, its right digits, and those with one of them wrong."""
    draw, made = random.Random(seed), []
    for _ in range(count):
        digits = [(a := draw.randrange(10), draw.randrange(10 - a)) for _ in range(2)]
        right = [a + b for a, b in digits]
        wrong, at = list(right), draw.randrange(2)
        wrong[at] = draw.choice([d for d in range(10) if d != right[at]])
        made.append((" + ".join(" ".join(map(str, side)) for side in zip(*digits)), right, wrong))
    return made


def said(digits: list[int]) -> str:
    return " ".join(map(str, digits))


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    spec = SmallModel(layers=2, width=64, heads=4, kv_heads=2, context=32)
    return build_small(tmp_path_factory.mktemp("policy") / "small", spec, vocabulary=WORDS, seed=0)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pointwise(tmp_path_factory) -> Path:
    rows = [
        {"prompt": prompt, "completion": said(digits), "label": label}
        for prompt, right, wrong in sums(1500, 0)
        for digits, label in ((right, True), (wrong, False))
    ]
    return write(tmp_path_factory.mktemp("data") / "sums.jsonl", rows)


def config(policy: Path, data: Path, **settings) -> RewardTrainConfig:
    muon = {"kind": "muon", "learning_rate": 5e-3, "schedule": "linear"}
    given = {"epochs": 6, "prompts": 32, "optimiser": muon, **settings}
    return RewardTrainConfig.model_validate({"model": str(policy), "data": [str(data)], **given})


def test_an_outcome_model_learns_to_tell_right_from_wrong(policy, pointwise, tmp_path):
    summary = train_reward_model(config(policy, pointwise, holdout=0.15, epochs=5), tmp_path / "orm")
    held = summary["held_out"]
    assert held["count"] > 100
    assert held["auc"] >= 0.8
    assert held["pair_accuracy"] >= 0.8
    assert held["bce"] < 0.6
    # the folder by itself, on sums that are in no file, by plain transformers
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "orm").eval()
    model = load_reward_model(tmp_path / "orm")
    seen = {row.prompt[0].content for row in read_judged(pointwise)}
    scores, labels = [], []
    for prompt, right, wrong in sums(60, 1):
        for digits, label in ((right, 1), (wrong, 0)):
            made = model.encode([Message("user", prompt)], said(digits))
            if prompt not in seen:
                with torch.no_grad():
                    scores.append(float(plain(input_ids=torch.tensor([made[0] + made[1]])).logits))
                labels.append(label)
    assert auc(scores, labels) >= 0.75


def test_a_training_that_was_stopped_ends_with_the_same_weights(policy, pointwise, tmp_path):
    told = config(policy, pointwise, epochs=0.2, checkpoint_every=2, lm=0.1, at="tokens")
    train_reward_model(told, tmp_path / "whole")
    asked = iter([False, False, True, *[False] * 100])
    with pytest.raises(Interrupted, match="stopped after step 3"):
        train_reward_model(told, tmp_path / "stopped", stop=lambda: next(asked))
    assert not (tmp_path / "stopped" / "config.json").exists()
    with pytest.raises(RunError, match="--resume"):
        train_reward_model(told, tmp_path / "stopped")
    train_reward_model(told, tmp_path / "stopped", resume=True)
    whole, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    # told again, it is done already
    again = train_reward_model(told, tmp_path / "stopped", resume=True)
    assert again["steps"] == 6


def test_pairs_learn_from_preferences_with_margins(policy, tmp_path):
    rows = [
        {"prompt": prompt, "chosen": said(right), "rejected": said(wrong), "margin": 0.5}
        for prompt, right, wrong in sums(1000, 2)
    ]
    data = write(tmp_path / "pairs.jsonl", rows)
    made = train_reward_model(config(policy, data, kind="pairs", epochs=2, centre=0.01), tmp_path / "rm")
    assert made["held_out"]["pair_accuracy"] > 0.6
    assert load_reward_model(tmp_path / "rm").kind == "pairs"


def steps_file(folder: Path) -> Path:
    rows = []
    for prompt, right, wrong in sums(700, 3):
        digits = random.Random(prompt).choice([right, wrong])
        labels = [int(digit == other) for digit, other in zip(digits, right)]
        rows.append({"prompt": prompt, "steps": [f"{digits[0]} ;", f" {digits[1]} ;"], "labels": labels})
    return write(folder / "steps.jsonl", rows)


def test_a_process_model_finds_wrong_steps(policy, tmp_path):
    told = config(policy, steps_file(tmp_path), kind="process", delimiter=";", holdout=0.15)
    held = train_reward_model(told, tmp_path / "prm")["held_out"]
    assert held["auc"] > 0.65  # of 250 steps: knowing nothing, it would be 0.5 ± 0.04
    assert held["first_error/wrong"] > 0.1
    assert load_reward_model(tmp_path / "prm").settings == Settings("process", "tokens", ";")


def test_a_process_model_may_judge_by_two_words(policy, tmp_path):
    told = config(policy, steps_file(tmp_path), kind="process", saved_as="causal", delimiter=";", epochs=0.5)
    summary = train_reward_model(told, tmp_path / "prm")
    model = load_reward_model(tmp_path / "prm")
    assert model.settings == Settings("process", "causal", ";")
    (whole,) = model.steps([(1, 5)], [(6, 7)], [[2]])
    assert 0 < whole[0] < 1
    assert summary["held_out"]["bce"] < 0.69  # the words' logits moved together with the labels


def test_an_adapter_is_merged_into_the_folder(policy, pointwise, tmp_path):
    told = config(policy, pointwise, epochs=0.1, lora={"rank": 2})
    train_reward_model(told, tmp_path / "orm")
    tensors = load_file(tmp_path / "orm" / "model.safetensors")
    assert not [name for name in tensors if "lora" in name]
    before = load_file(policy / "model.safetensors")
    moved = [name for name, value in before.items() if name in tensors and not torch.equal(value, tensors[name])]
    assert moved
    assert "model.embed_tokens.weight" not in moved


def test_a_row_of_trl_has_two_labels_on_its_two_separators(policy, tmp_path):
    row = {"prompt": "1 + 2", "completions": ["1 + 2 = 3", "3"], "labels": [True, False]}
    (judged,) = read_judged(write(tmp_path / "trl.jsonl", [row]), "stepwise", separator=" ;")
    base = load_causal(policy, dtype="float32", device="cpu")
    model = from_policy(base, Settings("process", "tokens", delimiter=";", mark=";"))
    (group,) = process_groups(model, [judged])
    rollout, labels = group.rollouts[0], group.scores[0].step_rewards
    separator = base.chat.encode(";")[0]
    assert [rollout.tokens[at] for at, _ in labels] == [separator, separator]
    assert [label for _, label in labels] == [1.0, 0.0]
    assert rollout.tokens.count(separator) == 2
    assert rollout.tokens[-1] == separator  # and no stop token after it
    made = written(model, judged.prompt, judged.steps, judged.finished)
    assert made.ends == (6, 8)


def test_prompts_are_held_out_whole_and_classes_balanced(policy, pointwise):
    data = gather(config(policy, pointwise, holdout=0.2))
    learned, held = ({each.prompt for each in part} for part in (data.learned, data.held))
    assert not learned & held
    labels = [each.label for each in data.learned]
    assert sum(labels) == len(labels) / 2


def test_data_of_another_kind_are_refused(policy, pointwise):
    with pytest.raises(DataError, match="nothing of kind 'process'"):
        gather(config(policy, pointwise, kind="process"))


def test_gradients_do_not_depend_on_micro_batches_or_packing(policy, tmp_path):
    def gradient(kind, algorithm, groups, tokens: int, padded: bool) -> list[torch.Tensor]:
        base = load_causal(policy, dtype="float32", device="cpu")
        model = from_policy(base, Settings(kind, KINDS[kind]))
        torch.manual_seed(3)
        torch.nn.init.normal_(model.head.weight)
        forward = PaddedForward(base.module) if padded else None
        learner = LocalLearner(base, Optimiser(), micro_batch_tokens=tokens, forward=forward,
                               critic=JudgeHead(model.head, reads=kind == "outcome"))  # fmt: skip
        batch = algorithm.credit(pack(algorithm.select(groups)))
        learner.accumulate(batch.with_(weights=algorithm.weigh(batch)), algorithm.loss.terms)
        return [torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in learner.weights().values()]

    judged, preferences = [], []
    for prompt, right, wrong in sums(6, 4):
        message = (Message("user", prompt),)
        for digits, label in ((right, 1.0), (wrong, 0.0), (right[:1], 0.5)):
            steps = tuple(f" {digit}" for digit in digits)
            judged.append(Judged(message, steps, label, (label, None)[: len(steps)]))
        preferences.append(Preference(message, said(right), said(wrong[:1])))
    made = from_policy(load_causal(policy, dtype="float32", device="cpu"), Settings())
    for kind, algorithm, groups in (
        ("outcome", outcome_model(at="tokens", lm=0.3), outcome_groups(made, judged)),
        ("process", process_model(), process_groups(made, judged)),
        ("pairs", pair_model(centre=0.1), pair_groups(made, preferences)),
    ):
        whole = gradient(kind, algorithm, groups, 16384, padded=False)
        length = sum(float((slope**2).sum()) for slope in whole) ** 0.5
        assert length > 0
        for tokens, padded in ((16, False), (16384, True), (64, True)):
            other = gradient(kind, algorithm, groups, tokens, padded)
            apart = sum(float(((a - b) ** 2).sum()) for a, b in zip(whole, other, strict=True)) ** 0.5
            assert apart < 2e-6 * length, (kind, tokens, padded, apart / length)
