"""Labels inserted while a real decoder writes: the same numbers as when all is read again, and texts without them."""

from __future__ import annotations

import asyncio

import pytest
import torch

from maieutic.algorithms import sft
from maieutic.backends.local import LocalBackend, Optimiser
from maieutic.calculator import Calculator
from maieutic.core.select import everything
from maieutic.environments.conditioned import (
    INFERENCE,
    Conditioned,
    as_trained,
    asked_with,
    interject_labels,
    read_inference,
    write_inference,
)
from maieutic.environments.inline import interjection
from maieutic.errors import ConfigError, ModelError
from maieutic.models.causal import load_causal
from maieutic.models.small import SmallModel, build_small
from maieutic.pack import pack
from maieutic.protocols import Sampling
from maieutic.rollout import Roller
from maieutic.sources import Recorded
from maieutic.steps import Labels
from maieutic.train import train
from maieutic.types import Finish, Message, Score, Task

LABELS = Labels(delimiter=" ;")
SUMS = [(a, b, a + b) for a in range(5) for b in range(5)]
TASKS = [
    Task(f"t{a}{b}", (Message("user", f"what {a} {b}"),), str(c), {"solution": f"{a} + {b} = {c} ; # {c}"})
    for a, b, c in SUMS
]
WORDS = [*"0123456789", "+", "=", ";", "#", "what"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model that has learned a little of how sums are written, so that it asks the calculator and ends steps."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    shape = SmallModel(layers=2, width=32, heads=4, kv_heads=2, context=128)
    build_small(folder, shape, vocabulary=WORDS, extra_words=["[GOOD]", "[BAD]"], seed=3)
    loaded = load_causal(folder, dtype="float32", device="cpu")
    policy = LocalBackend().policy(loaded, Optimiser(learning_rate=1e-2))
    for _ in train(Recorded(TASKS, policy.chat, batch=25), policy, sft(), steps=30):
        pass
    return loaded


def groups(policy, *, n=16, length=24):
    """Rollouts of three tasks, all sampled side by side, with a calculator."""

    async def judge(task, rollouts):
        return [Score(1.0, correct=True) for _ in rollouts]

    roller = Roller(policy.sampler, policy.chat, judge, length, temperature=1.5, tool=Calculator(), seed=5)

    async def together():
        return await asyncio.gather(*(roller.group(task, n, visit) for visit, task in enumerate(TASKS[:3])))

    return asyncio.run(together())


@pytest.fixture(scope="module")
def asked(model):
    policy = LocalBackend(max_rows=7).policy(model, Optimiser())
    conditioned = asked_with(policy, LABELS)
    return policy, conditioned, groups(conditioned)


def test_the_cache_and_the_whole_text_give_the_same_log_probs(asked):
    """T4.3: what the sampler recorded with its cache is what the learner finds in the labelled rollout as a whole."""
    policy, _, made = asked
    batch = pack(everything()(made))
    again = policy.learner.logprobs(batch)
    assert float(((again - batch.sampler_logprobs) * batch.mask).abs().max()) < 2e-5
    # and the labels matter: without them the same tokens are otherwise likely
    good = LABELS.bind(policy.chat).good[0]
    other = torch.where(batch.tokens == good, LABELS.bind(policy.chat).bad[0], batch.tokens)
    assert float((policy.learner.logprobs(batch.with_(tokens=other)) - again).abs().max()) > 1e-3


def test_a_label_stands_before_every_step_and_nowhere_else(asked):
    policy, _, made = asked
    labels = LABELS.bind(policy.chat)
    (good,) = labels.good
    steps = tools = 0
    for rollout in (r for group in made for r in group.rollouts):
        start = rollout.spans[0].stop
        places = labels.steps.of(rollout)
        inserted = [i for i in range(start, len(rollout.tokens)) if not rollout.mask[i]]
        assert [i for i in inserted if rollout.tokens[i] == good][: len(places)] == [first for first, _ in places]
        assert not any(rollout.logprobs[i] for i in inserted)
        steps += len(places) - 1
        tools += sum(rollout.tokens[i] != good for i in inserted)
    assert steps > 20
    assert tools > 10  # the calculator wrote too


def test_texts_have_no_labels(asked):
    policy, conditioned, made = asked
    rollouts = [r for group in made for r in group.rollouts]
    # those that the model chose itself, at this temperature, are left out like the inserted ones
    assert not any("[GOOD]" in rollout.text or "[BAD]" in rollout.text for rollout in rollouts)
    assert all("[GOOD]" in policy.chat.decode(rollout.tokens) for rollout in rollouts)
    assert any(";" in rollout.text for rollout in rollouts)
    assert rollouts[0].text == conditioned.chat.decode(rollouts[0].tokens[rollouts[0].spans[0].stop :])


def test_the_limit_counts_labels(asked):
    _, conditioned, made = asked
    lengths = [len(r.tokens) - r.spans[0].stop for group in made for r in group.rollouts]
    assert max(lengths) <= 24
    (short,) = asyncio.run(conditioned.sampler.sample((5, 6), Sampling(1), 1))
    assert (short.tokens, short.mask, short.finish) == (conditioned.sampler.label, (False,), Finish.LENGTH)


def test_the_same_key_gives_the_same_rollouts_whatever_shares_the_batch(model, asked):
    _, _, made = asked
    policy = asked_with(LocalBackend(max_rows=64).policy(model, Optimiser()), LABELS)
    again = groups(policy)
    assert [[r.tokens for r in group.rollouts] for group in again] == [[r.tokens for r in g.rollouts] for g in made]


def test_the_tool_is_asked_as_without_labels(model):
    """A tool sees the text without labels, and a label follows what it wrote where that ends a step."""
    seen = []

    class Closing:
        trigger = "="

        def __call__(self, text):
            seen.append(text)
            return "4 ;"

    chat = model.chat
    labels = LABELS.bind(chat)
    interject, ids = interjection(chat, Closing())  # through a chat that would show labels
    params = Sampling(9, interject=interject, interject_ids=ids)
    ask = interject_labels(labels, labels.good, params)
    first = (*labels.good, *chat.encode("2 + 2 ="))
    assert chat.decode(ask(first)) == "4 ; [GOOD]"
    assert seen == ["2 + 2 ="]
    assert ask((*first, *ask(first), *chat.encode(";"))) == ()  # nothing was said since the last step
    assert ask((*first, *ask(first), *chat.encode("3 ;"))) == labels.good
    assert ask(chat.encode("2 + 2")) == ()


def test_what_a_folder_says_of_how_its_model_is_asked(model, tmp_path):
    backend = LocalBackend()
    sampler = backend.sampler(model)
    assert read_inference(tmp_path) is None
    assert as_trained(sampler, model.chat, tmp_path) == (sampler, model.chat)
    assert as_trained(sampler, model.chat, "owner/name") == (sampler, model.chat)
    write_inference(LABELS, tmp_path)
    assert read_inference(tmp_path) == LABELS
    wrapped, chat = as_trained(sampler, model.chat, tmp_path)
    assert isinstance(wrapped, Conditioned)
    assert wrapped.chat is chat
    for broken in ("{", "{}", '{"labels": {"god": "x"}}', "[]"):
        (tmp_path / INFERENCE).write_text(broken)
        with pytest.raises(ModelError, match=r"inference.json cannot be read"):
            read_inference(tmp_path)


def test_only_a_label_can_be_forced(model):
    with pytest.raises(ConfigError, match=r"got force='\[BEST\]'; expected one of the labels"):
        Conditioned(LocalBackend().sampler(model), model.chat, LABELS, force="[BEST]")
