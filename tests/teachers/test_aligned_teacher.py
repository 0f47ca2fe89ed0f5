"""Teachers of other tokens: how they read a row, what a span is worth, and what students of other tokens learn."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from maieutic.backends.local import LocalBackend
from maieutic.config import parse_config
from maieutic.core.distillation import reverse_kl_advantage
from maieutic.errors import ConfigError, DataError
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.run.build import make_stage_algorithm
from maieutic.run.runner import resume_or_begin
from maieutic.run.store import Store
from maieutic.teachers import AlignedTeacher
from maieutic.types import Batch, Message

STOP = 0


class Pieces:
    """A chat whose tokens are the given pieces, the longest first; token 0 ends a turn, token 1 begins a prompt."""

    stop_ids = frozenset({STOP})

    def __init__(self, *pieces: str) -> None:
        self.pieces = ["", "", *pieces]

    def encode(self, text: str) -> tuple[int, ...]:
        found = []
        while text:
            piece = max((each for each in self.pieces if each and text.startswith(each)), key=len)
            found.append(self.pieces.index(piece))
            text = text[len(piece) :]
        return tuple(found)

    def decode(self, tokens) -> str:
        return "".join(self.pieces[token] for token in tokens)

    def prompt(self, messages) -> tuple[int, ...]:
        return (1, *self.encode("".join(message.content for message in messages)))

    def completion(self, text: str) -> tuple[int, ...]:
        return (*self.encode(text), STOP)

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        return frozenset(i for i, piece in enumerate(self.pieces) if piece.endswith(trigger))


class Says:
    """A scorer that says −.1 of a row's first chosen token, −.2 of the second, …"""

    def __init__(self) -> None:
        self.asked: list[Batch] = []

    def logprobs(self, batch: Batch) -> torch.Tensor:
        self.asked.append(batch)
        return -0.1 * batch.mask.cumsum(1) * batch.mask


OURS, THEIRS = Pieces("1", "2", "+", "=", "12"), Pieces("1", "2", "1+", "=", "+2", "+")


def batch_of(*rows: tuple[str, tuple[int, ...]], logprob: float = -0.5) -> Batch:
    """Rows of a prompt's text and tokens that the student chose."""
    all_ = [(OURS.prompt([Message("user", prompt)]), chosen) for prompt, chosen in rows]
    width = max(len(prompt) + len(chosen) for prompt, chosen in all_)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (prompt, chosen) in enumerate(all_):
        tokens[i, : len(prompt) + len(chosen)] = torch.tensor([*prompt, *chosen])
        mask[i, len(prompt) : len(prompt) + len(chosen)] = True
    zeros, numbers = torch.zeros(tokens.shape), torch.arange(len(rows))
    return Batch(
        tokens=tokens, mask=mask, lengths=torch.tensor([len(p) + len(c) for p, c in all_]),
        sampler_logprobs=logprob * mask, rewards=zeros[:, 0], token_rewards=zeros,
        terminated=torch.ones(len(rows), dtype=torch.bool), groups=numbers, units=numbers,
    )  # fmt: skip


def test_a_row_by_hand():
    """The student writes 12 + 2 = and stops, as "12" "+" "2" "=" <stop>; the teacher has "1" "2" "+2" "=" <stop>.

    Ends 2 3 4 5 against 1 2 4 5: spans "12", "+2", "=", and the stops. The teacher says −.1 −.2 −.3 −.4 −.5.
    """
    batch = batch_of(("1+", (6, 4, 3, 5, STOP)))
    scorer = Says()
    teacher = AlignedTeacher(scorer, THEIRS, OURS)
    found = teacher.logprobs(batch)[0]
    assert scorer.asked[0].tokens[0].tolist() == [1, 4, 2, 3, 6, 5, STOP]  # its prompt is "1+" in one token
    assert scorer.asked[0].mask[0].tolist() == [False] * 2 + [True] * 5
    assert teacher.spans(batch)[0].tolist() == [0, 0, 0, 1, 2, 2, 3, 4]
    # "12" −.1 − .2; "+2": the student's −.5 twice, and half of −.3 + 1 each; the others are tokens of both
    assert found.tolist() == pytest.approx([0, 0, 0, -0.3, -0.15, -0.15, -0.4, -0.5])
    assert len(scorer.asked) == 1
    assert float(found.sum()) == pytest.approx(-1.5)


def test_the_sum_over_a_row_is_the_teachers():
    rows = [("1", (2, 3, 4, 6, STOP)), ("2+", (6, 6, 3, 3)), ("", (2, 4, 2, 4, 3, STOP)), ("1", (STOP,))]
    batch = batch_of(*rows)
    batch = replace(batch, sampler_logprobs=-torch.rand(batch.tokens.shape))
    scorer = Says()
    found = AlignedTeacher(scorer, THEIRS, OURS).logprobs(batch)
    theirs = Says().logprobs(scorer.asked[0]).sum(1)
    torch.testing.assert_close(found.sum(1), theirs)
    assert not found[~batch.mask].any()


def test_what_was_inserted_is_read_and_not_judged():
    batch = batch_of(("1", (2, 3, 5, 6, STOP)))
    mask = batch.mask.clone()
    mask[0, 4] = False  # the "=" came from a tool
    scorer = Says()
    teacher = AlignedTeacher(scorer, THEIRS, OURS)
    found = teacher.logprobs(replace(batch, mask=mask))
    assert scorer.asked[0].tokens[0].tolist() == [1, 2, 2, 3, 5, 2, 3, STOP]
    assert scorer.asked[0].mask[0].tolist() == [False, False, True, True, False, True, True, True]
    assert found[0].tolist() == pytest.approx([0, 0, -0.1, -0.2, 0, -0.7, -0.5])


def test_a_teacher_of_the_same_tokens_says_the_same_number_for_number(models):
    ours, theirs = models(0), models(1)
    prompt = ours.chat.prompt([Message("user", "what is 3 + 4 ?")])
    tokens = torch.tensor([[*prompt, *ours.chat.completion("3 + 4 = 7 . # 7")]])
    mask = torch.arange(tokens.shape[1])[None] >= len(prompt)
    batch = batch_like(tokens, mask)
    plain = LocalBackend().teacher(theirs, ours).logprobs(batch)
    aligned = AlignedTeacher(LocalBackend().frozen(theirs), theirs.chat, ours.chat)
    reading = aligned.read(tokens[0].tolist(), mask[0].tolist())
    assert reading.tokens == tuple(tokens[0].tolist())
    assert torch.equal(aligned.logprobs(batch), plain)
    assert aligned.spans(batch)[0, len(prompt) :].tolist() == list(range(1, 10))
    old = torch.where(mask, -1.0, 0.0)
    give = reverse_kl_advantage()
    with_spans = give(batch.with_(old_logprobs=old, teacher_logprobs=plain, teacher_spans=aligned.spans(batch)))
    without = give(batch.with_(old_logprobs=old, teacher_logprobs=plain))
    assert torch.equal(with_spans.advantages, without.advantages)


def batch_like(tokens: torch.Tensor, mask: torch.Tensor) -> Batch:
    zeros, numbers = torch.zeros(tokens.shape), torch.arange(len(tokens))
    return Batch(
        tokens=tokens, mask=mask, lengths=torch.full((len(tokens),), tokens.shape[1]), sampler_logprobs=zeros,
        rewards=zeros[:, 0], token_rewards=zeros, terminated=torch.ones(len(tokens), dtype=torch.bool),
        groups=numbers, units=numbers,
    )  # fmt: skip


def test_the_advantage_of_a_span_is_that_of_each_of_its_tokens():
    """Spans (.1 + .3) and (−.2); c = 2: −.8 for both tokens of the first, .4 for the second; γ = ½ counts spans."""
    tokens = torch.zeros(1, 4, dtype=torch.long)
    mask = torch.tensor([[False, True, True, True]])
    columns = {
        "old_logprobs": torch.tensor([[0.0, -1.0, -2.0, -0.5]]),
        "teacher_logprobs": torch.tensor([[0.0, -1.1, -2.3, -0.3]]),
        "teacher_spans": torch.tensor([[0, 1, 1, 2]]),
    }
    batch = batch_like(tokens, mask).with_(**columns)
    assert reverse_kl_advantage(2.0)(batch).advantages[0].tolist() == pytest.approx([0, -0.8, -0.8, 0.4])
    assert reverse_kl_advantage(2.0, 0.5)(batch).advantages[0].tolist() == pytest.approx([0, -0.6, -0.6, 0.4])
    assert reverse_kl_advantage(2.0, 1.0)(batch).advantages[0].tolist() == pytest.approx([0, -0.4, -0.4, 0.4])


def test_in_expectation_it_is_the_gradient_of_the_kl_between_texts():
    """The student writes two letters, a token each; the teacher has a token for each of the four words. Over all four,
    E[Σₜ Aₜ ∇log qₜ] = −∇KL(q ‖ p), which tokens paid one by one do not give."""
    torch.manual_seed(0)
    first, second = torch.randn(2, requires_grad=True), torch.randn(2, 2, requires_grad=True)
    p = torch.randn(4).log_softmax(0)
    words = list(itertools.product(range(2), range(2)))
    logs = torch.stack([torch.stack([first.log_softmax(0)[a], second.log_softmax(1)[a, b]]) for a, b in words])
    q = logs.sum(1).exp()
    expected = torch.autograd.grad((q * (logs.sum(1) - p)).sum(), (first, second), retain_graph=True)

    tokens, mask = torch.zeros(4, 3, dtype=torch.long), torch.tensor([[False, True, True]] * 4)
    old = torch.nn.functional.pad(logs.detach(), (1, 0))
    spread = torch.nn.functional.pad(logs.detach() + (p - logs.detach().sum(1))[:, None] / 2, (1, 0))
    batch = batch_like(tokens, mask).with_(old_logprobs=old, teacher_logprobs=spread)
    spans = torch.tensor([[0, 1, 1]] * 4)
    gradients = []
    for given in (batch.with_(teacher_spans=spans), batch):
        advantages = reverse_kl_advantage()(given).advantages[:, 1:]
        surrogate = (q.detach()[:, None] * advantages * logs).sum()
        gradients.append(torch.autograd.grad(surrogate, (first, second), retain_graph=True))
    for got, plain, wanted in zip(*gradients, expected, strict=True):
        torch.testing.assert_close(got, -wanted)
        assert not torch.allclose(plain, -wanted, atol=1e-3)


def test_what_cannot_be_read():
    batch = batch_of(("1", (6, STOP)))
    with pytest.raises(DataError, match="it has 4 positions"):
        AlignedTeacher(Says(), THEIRS, OURS, limit=4).logprobs(batch)
    with pytest.raises(ConfigError, match="on_policy_distillation"):
        AlignedTeacher(Says(), THEIRS, OURS).top(batch)


def config(algorithm: str, **teacher):
    stage = {
        "algorithm": algorithm, "steps": 2, "prompts": 4, "num_generations": 2, "max_completion_length": 12,
        "teacher": teacher or {"path": "teacher", "align": True}, "optimiser": {"learning_rate": 1e-3},
    }  # fmt: skip
    shape = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "context": 96}
    return {
        "name": "student", "threads": 1, "model": {"small": shape},
        "tasks": {"train": {"taskset": "arithmetic", "difficulty": 1, "size": 24}}, "stages": [stage],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "teacher", "said"),
    [
        ("gkd", {"path": "a"}, "compares candidates"),
        ("on_policy_distillation", {"path": "a", "top_k": 4}, "no candidates among"),
        ("on_policy_distillation", {"path": "a", "too_long": "cut"}, "no token of theirs at which to cut"),
        ("on_policy_distillation", {"url": "http://x", "model": "m"}, "does nothing for a teacher"),
    ],
)
def test_configs_that_cannot_be(algorithm, teacher, said):
    with pytest.raises(ConfigError, match=said):
        make_stage_algorithm(parse_config(config(algorithm, **teacher, align=True)).stages[0])


def test_one_of_several_cannot_be_aligned():
    with pytest.raises(ConfigError, match="for one that is alone"):
        parse_config(config("on_policy_distillation", mixture=[{"path": "a", "align": True}, {"path": "b"}]))


def test_a_student_learns_from_a_teacher_of_other_tokens(tmp_path):
    """The teacher has pieces of words, the student whole ones; the run is the same twice."""
    corpus = ["Ann has 3 apples and buys 4 . How many ? 3 + 4 = 7 ; # 7"] * 8
    folder = build_small(
        tmp_path / "teacher", SmallModel("llama", layers=1, width=16, heads=2, kv_heads=2, context=400), corpus,
        tokenizer="bpe", vocabulary_size=300, seed=1,
    )  # fmt: skip
    assert "bpe" in str(load_causal(folder).tokenizer.backend_tokenizer.model).lower()
    made = parse_config(config("on_policy_distillation", path=str(folder), align=True))
    found = [resume_or_begin(made, tmp_path / name, resume=False) for name in ("one", "two")]
    weights = [load_causal(each["model"]).module.state_dict() for each in found]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name])
    with Store.open_reader(tmp_path / "one" / "run.db") as store:
        apart = [value for _, value in store.metrics(None, "distil/kl")]
    assert len(apart) == 2
    assert min(apart) > 0
