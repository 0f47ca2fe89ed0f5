"""Vote and best of n: who wins, by hand; the budget is never exceeded; a search is a sampler."""

import asyncio
from dataclasses import replace

import pytest
import search_tree as tree

from maieutic.backends.toy import STOP, ScriptedSampler, ToyChat, ToySums, toy_policy
from maieutic.core.estimators import pass_at_k
from maieutic.core.selection import best_of_value, plurality
from maieutic.errors import ConfigError, RewardError, UnknownName
from maieutic.evaluate import evaluate_sync
from maieutic.protocols import Sampling
from maieutic.search import Question, Searched, make_search, options, requires
from maieutic.search.judges import texts
from maieutic.search.spending import Ask, Purse

CHAT = ToyChat(["A", "B", "?", "."])
#: T2.10 of the selection rules: answers A A A B B with scores .2 .3 .1 .9 .4; the length tells the samples apart.
ANSWERS, SCORES = ("A", "A", "A", "B", "B"), (0.2, 0.3, 0.1, 0.9, 0.4)


def read(text: str) -> str | None:
    return next((word for word in text.split() if word in "AB"), None)


def script(prompt, sibling):
    return (CHAT.ids[ANSWERS[sibling % 5]], *[CHAT.ids["."]] * (sibling % 5), STOP)


def score(prompt, rows):
    return [SCORES[len(row) - 2] for row in rows]


def ask(key: str = "k", max_tokens: int = 8, **options) -> Question:
    return Question((1, 2), Sampling(max_tokens, 0.7, frozenset({STOP}), key, **options))


def solve(name: str, budget: int = 1000, *, sampler=None, question=None, **given):
    search = make_search(name, sampler or ScriptedSampler(script), CHAT, read, **given)
    return asyncio.run(search.solve(question or ask(), budget))


def test_the_three_rules_on_one_set_of_samples():
    assert solve("vote", samples=5).answer == "A"
    weighted = solve("weighted_vote", samples=5, score=score)
    assert weighted.answer == "B"  # .9 + .4 against .2 + .3 + .1
    assert weighted.chosen == 3  # the heaviest of those that say B
    best = solve("best_of_n", samples=5, score=score)
    assert (best.answer, best.chosen, best.best.score) == ("B", 3, 0.9)
    # 2 + 3 + 4 + 5 + 6 tokens were chosen, and the prompt of 2 was read once, in one call
    assert (best.cost.generated, best.cost.prefilled, best.cost.calls, best.cost.judged) == (20, 2, 1, 5)
    assert solve("vote", samples=5).cost.judged == 0


def drawn(name: str, key: str, values=None, **given):
    """What a search of twelve samples, or as many as are given, finds of the tree of three letters."""
    judge = {} if values is None else dict.fromkeys(requires(name), lambda prompt, rows: [values(row) for row in rows])
    given |= {"delimiter": ";"} if "delimiter" in options(name) else {"samples": 12}
    search = make_search(name, tree.policy(), tree.CHAT, tree.read, **judge, **given)
    return asyncio.run(search.solve(tree.question(key), 10_000))


COMMON = "a ; a ; b ;"  # .6 · .6 · .3 = .108 a sample
KEYS = [f"{i}" for i in range(40)]


def test_a_perfect_score_makes_best_of_n_pass_at_n_and_a_constant_one_pass_at_1():
    samples = {key: [each.answer == COMMON for each in drawn("vote", key).candidates] for key in KEYS}
    pass_at = {k: sum(float(pass_at_k(12, sum(right), k)) for right in samples.values()) / 40 for k in (1, 12)}

    def accuracy(values) -> float:
        return sum(drawn("best_of_n", key, values).answer == COMMON for key in KEYS) / 40

    perfect = accuracy(lambda row: float(tree.CHAT.decode(row) == COMMON))
    assert perfect == pass_at[12] > 0.6
    # of equals the earliest wins, so what is counted is the first sample of each; its chance is pass@1's
    assert accuracy(lambda row: 0.3) == sum(right[0] for right in samples.values()) / 40
    expected = [best_of_value([0.3] * 12, right) for right in samples.values()]
    assert sum(expected) / 40 == pytest.approx(pass_at[1])
    assert abs(accuracy(lambda row: 0.3) - 0.108) < 3 * (0.108 * 0.892 / 40) ** 0.5  # three standard errors


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("weighted_vote", {}),
        ("particles", {"particles": 12, "uneven": 1.0}),
        ("beam", {"beams": 12, "children": 1, "apart": True, "vote": True}),
    ],
)
def test_a_constant_score_makes_a_weighted_vote_the_plurality(name: str, given):
    for key in KEYS[:12]:
        found = drawn(name, key, lambda row: 0.3, **given)
        assert len(found.candidates) == 12
        assert found.answer == plurality([each.answer for each in found.candidates])
        if name == "weighted_vote":
            assert found.answer == drawn("vote", key).answer


def test_no_answer_never_wins_unless_none_has_one():
    def silent(prompt, sibling):
        return (CHAT.ids["?"] if sibling % 5 != 2 else CHAT.ids["B"], STOP)

    assert solve("vote", samples=5, sampler=ScriptedSampler(silent)).answer == "B"
    assert (
        solve("best_of_n", samples=5, sampler=ScriptedSampler(silent), score=lambda p, rows: [1, 1, 0, 1, 1]).chosen
        == 2
    )
    none = solve("vote", samples=2, sampler=ScriptedSampler(silent))
    assert (none.answer, none.chosen) == (None, 0)


def test_a_vote_at_temperature_0_is_the_greedy_sample():
    question = replace(ask(), sampling=replace(ask().sampling, temperature=0.0))
    policy = toy_policy(CHAT, 8)
    assert solve("vote", sampler=policy.sampler, question=question).candidates == tuple(
        replace(each, score=1.0) for each in solve("greedy", sampler=policy.sampler).candidates
    )


@pytest.mark.parametrize("budget", [1, 2, 5, 7, 8, 9, 23, 64])
def test_a_purse_spends_what_it_has_and_no_more(budget: int):
    policy = toy_policy(CHAT, 8)
    purse = Purse(policy.sampler, budget)
    asks = [
        Ask((1, 2), Sampling(8, 1.0, frozenset({STOP}), "a"), 3),
        Ask((1, 2, 3), Sampling(5, 1.0, frozenset(), "b"), 4),
    ]
    made = asyncio.run(purse.sample(asks))
    chosen = sum(sum(each.mask) for some in made for each in some)
    assert chosen == purse.cost.generated <= budget
    whole = asyncio.run(Purse(policy.sampler, 1000).sample(asks))
    if purse.rest:  # it stopped because nothing more was asked for
        assert [len(some) for some in made] == [3, 4] == [len(some) for some in whole]
    first = made[0][0].tokens
    assert whole[0][0].tokens[: len(first)] == first  # a smaller budget cuts, and changes nothing before the cut


def test_samples_that_began_later_are_other_samples():
    sampler = toy_policy(CHAT, 8).sampler
    [made] = asyncio.run(Purse(sampler, 40).sample([Ask((1, 2), Sampling(8, 1.0, frozenset(), "a"), 5)]))
    [cut] = asyncio.run(Purse(sampler, 20).sample([Ask((1, 2), Sampling(8, 1.0, frozenset(), "a"), 5)]))
    assert [len(each.tokens) for each in cut] == [8, 8, 4]
    assert [each.tokens for each in cut[:2]] == [each.tokens for each in made[:2]]
    assert cut[2].tokens != cut[0].tokens[:4]
    assert len({each.tokens for each in made}) == 5


def test_a_search_is_a_sampler():
    tasks = ToySums()
    chat = ToyChat(tasks.vocabulary)

    def right(prompt, sibling):
        total = str(int(chat.words[prompt[0]]) + int(chat.words[prompt[2]]))
        return chat.completion(total if sibling % 3 else "0")

    sampler = ScriptedSampler(right)
    seen = []
    vote = Searched(
        make_search("vote", sampler, chat, lambda text: text or None, samples=5), 50, lambda *a: seen.append(a)
    )
    judged = evaluate_sync(vote, chat, tasks, max_tokens=4, samples=2, greedy=False)
    assert judged.values("pass@1").mean() == 1.0
    assert len(seen) == len({key for key, _ in seen}) == 16 * 2
    assert all(found.cost.generated <= 50 for _, found in seen)


def test_what_cannot_be():
    assert requires("best_of_n") == {"score"}
    assert requires("vote") == frozenset()
    assert set(options("vote")) == {"samples", "temperature"}
    with pytest.raises(ConfigError, match="no score"):
        solve("best_of_n")
    with pytest.raises(UnknownName, match="did you mean 'samples'"):
        solve("vote", sample=3)
    with pytest.raises(UnknownName, match="did you mean 'vote'"):
        solve("votes")
    with pytest.raises(ConfigError, match="at least 1"):
        solve("vote", budget=0)
    with pytest.raises(RewardError, match="NaN"):
        solve("best_of_n", samples=2, score=texts(CHAT, lambda text: float("nan")))
