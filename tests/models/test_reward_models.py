"""Reward models: plain transformers reads what is written, and everything that reads it says the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from maieutic.backends.local.check import why_not
from maieutic.backends.local.judging import quick
from maieutic.clock import listening, phase
from maieutic.errors import ConfigError, DataError, ModelError
from maieutic.models.causal import load_causal
from maieutic.models.reward_model import RewardModel, Settings, from_policy, load_reward_model
from maieutic.models.small import tiny_folder
from maieutic.types import Message

PROMPTS = [(1, 5, 6, 7), (1, 8, 9), (1, 5, 6, 7)]
COMPLETIONS = [(10, 11, 2), (12, 13, 14, 15, 2), (16, 17, 18, 2)]
ENDS = [[1, 3], [2, 4, 5], [4]]


@pytest.fixture(scope="session")
def policies(tmp_path_factory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("policies")
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tiny_folder(architecture, root)
        return made[architecture]

    return folder


def a_model(folder: Path, kind: str, layout: str) -> RewardModel:
    """With a head that has learned something."""
    model = from_policy(load_causal(folder, dtype="float32", device="cpu"), Settings(kind, layout))
    assert model.head is not None
    torch.manual_seed(1)
    for weight in model.head.parameters():
        torch.nn.init.normal_(weight)
    return model


def near(a: list[list[float]], b: list[list[float]]) -> bool:
    flat = [(x, y) for row, other in zip(a, b, strict=True) for x, y in zip(row, other, strict=True)]
    return max(abs(x - y) for x, y in flat) < 1e-5


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("kind", ["outcome", "pairs"])
def test_transformers_reads_a_sequence_classifier_and_says_the_same(architecture, kind, policies, tmp_path):
    model = a_model(policies(architecture), kind, "sequence")
    said = model.outcome(PROMPTS, COMPLETIONS)
    folder = model.save(tmp_path / "rm")
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokens = torch.full((3, 8), plain.config.pad_token_id)
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS)):
        tokens[i, : len(prompt) + len(completion)] = torch.tensor(prompt + completion)
    with torch.no_grad():
        logits = plain(input_ids=tokens, attention_mask=(tokens != plain.config.pad_token_id).long()).logits[:, 0]
    expected = logits.sigmoid() if kind == "outcome" else logits
    assert said == pytest.approx(expected.tolist(), abs=1e-5)
    again = load_reward_model(folder)
    assert again.kind == kind
    assert again.steps(PROMPTS, COMPLETIONS, ENDS) == model.steps(PROMPTS, COMPLETIONS, ENDS)
    assert near(quick(again).steps(PROMPTS, COMPLETIONS, ENDS), model.steps(PROMPTS, COMPLETIONS, ENDS))
    assert why_not(again.module) == why_not(model.module)  # as fast as before it was saved


def test_transformers_reads_a_token_classifier_of_two_labels(policies, tmp_path):
    model = a_model(policies("qwen2"), "process", "tokens")
    said = model.steps(PROMPTS, COMPLETIONS, ENDS)
    plain = AutoModelForTokenClassification.from_pretrained(model.save(tmp_path / "prm")).eval()
    assert plain.config.num_labels == 2
    with torch.no_grad():
        right = plain(input_ids=torch.tensor([PROMPTS[1] + COMPLETIONS[1]])).logits.softmax(-1)[0, :, 1]
    # steps end after 2, 4 and 5 tokens of the completion: their last tokens are at 3 + 2 − 1, 3 + 4 − 1, 3 + 5 − 1
    assert said[1] == pytest.approx(right[[4, 6, 7]].tolist(), abs=1e-5)
    assert load_reward_model(tmp_path / "prm").steps(PROMPTS, COMPLETIONS, ENDS) == said


def test_a_causal_model_judges_by_the_logits_of_two_tokens(policies, tmp_path):
    model = a_model(policies("llama"), "process", "causal")
    said = model.steps(PROMPTS, COMPLETIONS, ENDS)
    plain = AutoModelForCausalLM.from_pretrained(model.save(tmp_path / "prm")).eval()
    good, bad = (model.tokenizer.convert_tokens_to_ids(word) for word in "+-")
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([PROMPTS[0] + COMPLETIONS[0]])).logits[0, :, [good, bad]]
    assert said[0] == pytest.approx(logits.softmax(-1)[[4, 6], 0].tolist(), abs=1e-5)
    assert load_reward_model(tmp_path / "prm").steps(PROMPTS, COMPLETIONS, ENDS) == said
    # somebody else's folder does not say which tokens these are
    (tmp_path / "prm" / "reward_model.json").unlink()
    assert load_reward_model(tmp_path / "prm", good="+", bad="-").steps(PROMPTS, COMPLETIONS, ENDS) == said
    with pytest.raises(ModelError, match="'good' is not a token"):
        load_reward_model(tmp_path / "prm", good="good")


def test_a_fresh_model_knows_nothing_and_shares_the_body(policies):
    base = load_causal(policies("llama"), dtype="float32", device="cpu")
    model = from_policy(base, Settings("outcome", "sequence"))
    assert model.outcome(PROMPTS, COMPLETIONS) == [0.5, 0.5, 0.5]
    assert model.module is base.module


def test_packed_rows_run_each_prompt_once_and_pad_nothing(policies):
    model = a_model(policies("llama"), "outcome", "sequence")
    fast, siblings = quick(model), [(10, 11, 2), (12, 13, 2), (14, 2), (15, 16, 17, 2)]
    fast.outcome(PROMPTS[:1], COMPLETIONS[:1])
    with listening() as heard, phase("judge"):
        found = fast.outcome([PROMPTS[0]] * 4, siblings)
    # 4 tokens of the prompt once, and 3 + 3 + 2 + 4 of the completions
    assert heard.read().tokens == {"judge": 16}
    assert found == pytest.approx(model.outcome([PROMPTS[0]] * 4, siblings), abs=1e-6)


def test_the_padding_token_never_ends_a_completion(policies, tmp_path):
    # A tokenizer that pads with its stop token: transformers would read the token before it.
    model = a_model(policies("llama"), "pairs", "sequence")
    model.tokenizer.pad_token = model.tokenizer.eos_token
    plain = AutoModelForSequenceClassification.from_pretrained(model.save(tmp_path / "rm")).eval()
    assert plain.config.pad_token_id == model.tokenizer.bos_token_id
    with torch.no_grad():
        logit = plain(input_ids=torch.tensor([PROMPTS[0] + COMPLETIONS[0]])).logits[0, 0]
    assert model.outcome(PROMPTS[:1], COMPLETIONS[:1]) == pytest.approx([logit.item()], abs=1e-5)


def test_somebody_elses_encoder_is_asked_as_two_texts(policies, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_labels=1
    )
    plain = BertForSequenceClassification(config).eval()
    folder = tmp_path / "bert"
    plain.save_pretrained(folder)
    source = PreTrainedTokenizerFast.from_pretrained(policies("llama"))
    source.chat_template = None
    source.save_pretrained(folder)
    model = load_reward_model(folder)
    assert (model.kind, model.own, model.head) == ("pairs", False, None)
    prompt, completion = model.encode([Message("user", "what is 2 + 2 ?")], "4")
    row = torch.tensor([prompt + completion])
    kinds = torch.tensor([[0] * len(prompt) + [1] * len(completion)])
    with torch.no_grad():
        expected = plain(input_ids=row, attention_mask=torch.ones_like(row), token_type_ids=kinds).logits
    # beside a longer row, which it is padded to
    assert model.outcome([prompt, prompt], [completion, completion * 3])[0] == pytest.approx(expected.item(), abs=1e-5)
    prefix = model.steps([prompt], [completion * 3], [[len(completion), 3 * len(completion)]])[0]
    assert prefix[0] == pytest.approx(expected.item(), abs=1e-5)
    assert quick(model) is model


def test_marks_stand_where_the_model_was_taught_to_look(policies):
    base = load_causal(policies("llama"), dtype="float32", device="cpu")
    tag, separator = base.chat.encode("#")[0], base.chat.encode(";")[0]
    eos = next(iter(base.chat.stop_ids))
    every = from_policy(base, Settings("process", "tokens", mark="#", every=True))
    assert every.marked((10, 11, 12, eos), (2, 4)) == ((10, 11, tag, 12, tag), [3, 5])
    closing = from_policy(base, Settings("process", "tokens", mark=";"))
    assert closing.marked((10, separator, 12, eos), (2, 4)) == ((10, separator, 12, separator), [2, 4])


def test_what_cannot_be_judged_is_refused(policies, tmp_path):
    model = a_model(policies("llama"), "outcome", "sequence")
    with pytest.raises(DataError, match="reads 128"):
        model.outcome([(1, 5)], [(10,) * 127])
    with pytest.raises(DataError, match="ends from 1"):
        model.steps([(1, 5)], [(10, 11)], [[3]])
    with pytest.raises(ConfigError, match="did you mean 'process'"):
        Settings("proces")
    with pytest.raises(ModelError, match="tokens classifier of the type 'gemma3_text'"):
        a_model(policies("gemma3_text"), "process", "tokens").save(tmp_path / "x")
    config = json.loads((policies("llama") / "config.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["LlamaForQuestionAnswering"]}))
    with pytest.raises(ModelError, match="LlamaForQuestionAnswering"):
        load_reward_model(other)
