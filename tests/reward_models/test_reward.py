"""A reward model as a reward: of wholes and of steps, in its own tokens and in others', watched or counted."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from maieutic.config import StageConfig
from maieutic.errors import ConfigError, ModelError, RewardError, UnknownName
from maieutic.models.causal import load_causal
from maieutic.models.reward_model import RewardModel, Settings, from_policy
from maieutic.models.small import SmallModel, build_small, tiny_folder
from maieutic.reward_models.generative import GenerativeVerifier, verification_rows
from maieutic.reward_models.reward import ModelReward
from maieutic.rewards.compose import weighted
from maieutic.rewards.stepwise import FORMS
from maieutic.run.rewards import make_reward
from maieutic.sources import demonstration
from maieutic.tasks import arithmetic
from maieutic.tasks.judged import Judged
from maieutic.types import Finish, Message, Rollout, Score, Task

TASK = Task("t", (Message("user", "what is 2 + 2"),), answer="4")
TEXTS = ("2 + 2 = 4 ; # 4", "2 + 2 = 5 ; # 5", "# 9")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Path]:
    """Folders of reward models of three kinds on one tiny policy, their heads at random."""
    root = tmp_path_factory.mktemp("judges")
    folders = {"policy": tiny_folder("llama", root)}
    for kind, layout in (("outcome", "sequence"), ("process", "tokens"), ("pairs", "sequence")):
        model = judge(folders["policy"], kind, layout)
        folders[kind] = model.save(root / kind)
    return folders


def judge(policy: Path, kind: str, layout: str) -> RewardModel:
    base = load_causal(policy, dtype="float32", device="cpu")
    model = from_policy(base, Settings(kind, layout, delimiter=";"))
    torch.manual_seed(2)
    for weight in model.head.parameters():
        torch.nn.init.normal_(weight)
    return model


def rollouts(policy: Path, *texts: str) -> list[Rollout]:
    chat = load_causal(policy, dtype="float32", device="cpu").chat
    return [demonstration(TASK, text, chat) for text in texts]


def scores(reward, written) -> list[Score]:
    return asyncio.run(reward(TASK, written))


def test_one_score_of_the_whole(made):
    written = rollouts(made["policy"], *TEXTS)
    model = judge(made["policy"], "outcome", "sequence")
    starts = [rollout.prompt_length for rollout in written]
    expected = model.outcome(
        [r.tokens[:s] for r, s in zip(written, starts)], [r.tokens[s:] for r, s in zip(written, starts)]
    )
    found = scores(ModelReward(f"model:{made['outcome']}"), written)
    assert [score.reward for score in found] == pytest.approx(expected, abs=1e-6)
    assert len({score.reward for score in found}) == 3


def test_a_score_does_not_depend_on_what_is_judged_beside_it(made):
    reward = ModelReward(f"model:{made['outcome']}")
    written = rollouts(made["policy"], *TEXTS)
    together, alone = scores(reward, written)[0], scores(reward, written[:1])[0]
    assert together.reward == pytest.approx(alone.reward, abs=1e-6)


@pytest.mark.parametrize("form", ["potential", "mean", "sum"])
def test_rewards_of_steps_stand_at_the_ends_of_steps(made, form):
    written = rollouts(made["policy"], TEXTS[0])
    (whole,) = scores(ModelReward(f"model:{made['process']}"), written)
    (score,) = scores(ModelReward(f"model:{made['process']}", per_step=form), written)
    tokens, places = written[0].tokens, [at for at, _ in score.step_rewards]
    separator = load_causal(made["policy"], dtype="float32", device="cpu").chat.encode(";")[0]
    assert places == [tokens.index(separator), len(tokens) - 1]  # "2 + 2 = 4 ;" and "# 4 <eos>"
    model = judge(made["policy"], "process", "tokens")
    start = written[0].prompt_length
    (steps,) = model.steps([tokens[:start]], [tokens[start:]], [[at + 1 - start for at in places]])
    assert whole.reward == pytest.approx(min(steps), abs=1e-6)
    assert [value for _, value in score.step_rewards] == pytest.approx(FORMS[form](steps, False)[1], abs=1e-6)
    assert score.reward == 0.0
    assert score.parts["score"] == pytest.approx(min(steps), abs=1e-6)


def test_scores_of_pairs_are_centred_within_their_group(made):
    written = rollouts(made["policy"], *TEXTS)
    raw = [score.reward for score in scores(ModelReward(f"model:{made['pairs']}"), written)]
    centred = scores(ModelReward(f"model:{made['pairs']}", normalise="centre"), written)
    assert [score.reward for score in centred] == pytest.approx([value - sum(raw) / 3 for value in raw], abs=1e-6)
    assert [score.parts["score"] for score in centred] == pytest.approx(raw)


def test_what_cannot_be_judged_is_unscorable_and_leaves_the_others_alone(made):
    written = rollouts(made["policy"], *TEXTS[:2])
    failed = Rollout("t", (1, 5), (False, True), (0.0, 0.0), Finish.ERROR, note="timed out")
    (long,) = rollouts(made["policy"], "2 + " * 70)
    found = scores(ModelReward(f"model:{made['pairs']}", normalise="centre"), [*written, failed, long])
    assert found[0].reward == pytest.approx(-found[1].reward)
    assert [score.reward for score in found[2:]] == [None, None]
    assert "the reward model reads 128" in found[3].note


def test_another_vocabulary_is_read_as_text(made, tmp_path):
    other = build_small(tmp_path / "other", SmallModel(layers=1, width=16, heads=2, kv_heads=1, context=64),
                        vocabulary=["#", "4", "5", "9", "=", "2", "+", ";", "is", "what"])  # fmt: skip
    written, foreign = rollouts(made["policy"], *TEXTS), rollouts(other, *TEXTS)
    reward = ModelReward(f"model:{made['outcome']}")
    assert [score.reward for score in scores(reward, foreign)] == pytest.approx(
        [score.reward for score in scores(reward, written)], abs=1e-6
    )
    with pytest.raises(RewardError, match="Leave per_step out"):
        scores(ModelReward(f"model:{made['process']}", per_step="potential"), foreign)


def test_settings_that_mean_nothing_are_refused_at_once(made):
    with pytest.raises(UnknownName, match="prod"):
        ModelReward(f"model:{made['process']}", aggregate="produkt")
    with pytest.raises(ConfigError, match="one of the two"):
        ModelReward(f"model:{made['process']}", per_step="mean", normalise="centre")
    with pytest.raises(ModelError, match="no model folder"):
        ModelReward("model:./nowhere")


def test_a_config_names_reward_models_and_one_that_is_only_watched(made):
    train, held = f"model:{made['outcome']}", f"model:{made['pairs']}"
    stage = StageConfig(
        algorithm="grpo", steps=1, rewards={train: 1.0, held: 0.0}, reward_options={held: {"normalise": "centre"}}
    )
    reward = make_reward(stage, arithmetic(size=5))
    (one, two) = scores(reward, rollouts(made["policy"], *TEXTS[:2]))
    assert one.reward == one.parts[train]
    assert one.parts[held] == pytest.approx(-two.parts[held])
    with pytest.raises(ConfigError, match="did you mean 'aggregate'"):
        make_reward(stage.model_copy(update={"reward_options": {held: {"agregate": "min"}}}), arithmetic(size=5))


def test_what_a_watched_reward_cannot_score_is_rewarded_all_the_same():
    async def blind(_task, written):
        return [Score(None, note="too long") for _ in written]

    async def right(_task, written):
        return [Score(1.0) for _ in written]

    written = [Rollout("t", (1, 2), (False, True), (0.0, 0.0), Finish.STOP)]
    (score,) = scores(weighted({"a": right, "b": blind}, {"a": 1.0, "b": 0.0}), written)
    assert (score.reward, dict(score.parts)) == (1.0, {"a": 1.0})
    (score,) = scores(weighted({"a": right, "b": blind}, {"a": 1.0, "b": 0.1}), written)
    assert score.reward is None


class Words:
    """A scorer by hand: "yes" has log-prob −1, every other word −2."""

    def __init__(self, yes: int) -> None:
        self.yes, self.asked = yes, []

    def logprobs(self, batch):
        self.asked += batch.tokens.tolist()
        chosen = torch.where(batch.tokens == self.yes, -1.0, -2.0)
        return torch.where(batch.mask, chosen, 0.0)


def test_yes_is_weighed_against_no_and_critiques_are_averaged():
    from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat

    chat = ToyChat(["q", "a", "good", "bad", "ask", "Yes", "No"])
    yes = chat.encode("Yes")[0]
    scorer = Words(yes)
    sampler = ScriptedSampler(lambda _, sibling: (*chat.encode("good" if sibling else "bad"), STOP))
    how = {"question": "{question} {completion} ask", "critique": "{question} {completion}", "closing": "ask"}
    direct = GenerativeVerifier(sampler, scorer, chat, **how)
    # σ(−1 − (−2)) = σ(1)
    assert asyncio.run(direct.probability("q", "a")) == pytest.approx(0.7310586)
    scorer.asked.clear()
    critical = GenerativeVerifier(sampler, scorer, chat, critiques=2, **how)
    assert asyncio.run(critical.probability("q", "a")) == pytest.approx(0.7310586)
    read = [chat.decode(row) for row in scorer.asked]
    assert read == ["q a bad ask Yes", "q a bad ask No", "q a good ask Yes", "q a good ask No"]
    with pytest.raises(ConfigError, match="different tokens"):
        GenerativeVerifier(sampler, scorer, chat, yes="No")


def test_a_local_model_verifies_by_its_own_probabilities(made):
    from maieutic.backends.local import LocalBackend

    model = load_causal(made["policy"], dtype="float32", device="cpu")
    backend = LocalBackend()
    verifier = GenerativeVerifier(backend.sampler(model), backend.frozen(model), model.chat, yes="+", no="-",
                                  question="what is {question} # {completion} ?")  # fmt: skip
    said = asyncio.run(verifier.probability("2 + 2", "4"))
    prompt = model.chat.prompt([Message("user", "what is 2 + 2 # 4 ?")])
    with torch.no_grad():
        logits = model.module(torch.tensor([prompt])).logits[0, -1]
    good, bad = (model.chat.encode(word)[0] for word in "+-")
    assert said == pytest.approx(float(torch.sigmoid(logits[good] - logits[bad])), abs=1e-6)


def test_a_verifier_is_taught_with_solutions_beside_its_questions():
    prompt = (Message("user", "q"),)
    judged = [Judged(prompt, (f"right {i}",), 1.0) for i in range(4)]
    judged += [Judged(prompt, (f"wrong {i}",), 0.0) for i in range(4)] + [Judged(prompt, ("unknown",))]
    rows = verification_rows(judged, solutions=0.2, question="{question} | {completion} ?")
    assert len(rows) == 8 + 2  # 2 of 10 are solutions
    answers = {row["prompt"]: row["solution"] for row in rows}
    assert answers["q | right 1 ?"] == "Yes"
    assert answers["q | wrong 1 ?"] == "No"
    assert [row["solution"] for row in rows if row["prompt"] == "q"] != []
    assert rows == verification_rows(judged, solutions=0.2, question="{question} | {completion} ?")
