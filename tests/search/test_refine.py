"""Refinement: the conversation exactly, what stops it, and what it does in the long run to a model that is a coin."""

from __future__ import annotations

import asyncio
import random

import pytest
from search_letters import Continues, Letters

from maieutic.core.transitions import chain, rounds
from maieutic.errors import ConfigError, ModelError, PromptTooLong
from maieutic.protocols import Sampling
from maieutic.search.found import Found, Question
from maieutic.search.judges import texts
from maieutic.search.refine import Refine, RefineOracle, RefineVerified, oracle
from maieutic.types import Message, Task, Verdict

CHAT = Letters()
SAID = {"check": "?", "revise": "!", "again": "~"}


def turns(*lines: str):
    """A model whose turns are these, in order."""

    def script(shown: str, _key: str) -> str:
        return lines[shown.count("[")]

    return Continues(script)


def solve(search, budget: int = 500, most: int = 60, key: str = "k", prompt: str = "Q:") -> Found:
    question = Question(CHAT.encode(prompt), Sampling(most, stop_ids=CHAT.stop_ids, key=key))
    return asyncio.run(search.solve(question, budget))


def read(text: str) -> str | None:
    return text[-1] if text else None


def test_the_conversation():
    sampler = turns("draft3.", "step 1 is wrong.", "better4.", "No issue.")
    found = solve(Refine(sampler, CHAT, read, **SAID))
    assert [each.text for each in found.candidates] == ["draft3", "better4"]
    assert found.answer == "4"
    assert [shown for shown, _, _ in sampler.asked] == [
        "Q:",
        "Q:draft3[?]",
        "Q:draft3[?]step 1 is wrong[!]",
        "Q:draft3[?]step 1 is wrong[!]better4[?]",
    ]
    assert [row.get("ended") for row in found.log] == [None, "no issue"]
    assert found.log[0]["feedback"] == "step 1 is wrong"
    assert found.cost.inserted == 9
    assert found.cost.generated == 7 + 16 + 8 + 9
    assert all(found.best.completion.mask)  # an answer to the prompt, not the conversation


def test_without_feedback():
    sampler = turns("a1.", "b2.", "c3.")
    found = solve(Refine(sampler, CHAT, read, rounds=2, **{**SAID, "check": ""}))
    assert sampler.asked[-1][0] == "Q:a1[~]b2[~]"
    assert [each.answer for each in found.candidates] == ["1", "2", "3"]
    assert found.log[-1]["ended"] == "rounds"
    assert len({params.key for _, params, _ in sampler.asked}) == 3


def test_a_judge_stops_it():
    lines = ("a1.", "b2.", "c3.", "d4.")
    search = RefineVerified(turns(*lines), CHAT, read, score=texts(CHAT, lambda text: float(text == "c3")), **SAID)
    found = solve(RefineVerified(turns(*lines), CHAT, read, score=search.score, again="~"))
    assert found.answer == "3"
    assert found.cost.judged == 3
    assert found.log[-1]["ended"] == "accepted"
    never = solve(RefineVerified(turns(*lines), CHAT, read, score=texts(CHAT, lambda _: 0.4), again="~"))
    assert never.answer == "4"


def test_the_oracle_knows_its_tasks_only():
    task = Task("t", (Message("user", "Q:"),), "2")

    def verifier(task: Task, text: str) -> Verdict:
        return Verdict(text[-1] == task.answer)

    truth = oracle(CHAT, [task], verifier)
    found = solve(RefineOracle(turns("a1.", "b2.", "c3."), CHAT, read, truth=truth, again="~"))
    assert found.answer == "2"
    assert found.cost.judged == 0
    with pytest.raises(ConfigError, match="none of its tasks"):
        solve(RefineOracle(turns("a1."), CHAT, read, truth=truth), prompt="other")


def test_what_the_budget_cuts_is_no_attempt():
    found = solve(Refine(turns("aaaa1.", "bbbbbb2."), CHAT, read, **{**SAID, "check": ""}), budget=9)
    assert [each.answer for each in found.candidates] == ["1"]
    assert found.cost.generated == 9
    assert found.log[-1] == {"round": 1, "ended": "budget"}
    first = solve(Refine(turns("aaaa1."), CHAT, read, **SAID), budget=3)  # the first one is all there is
    assert first.best.text == "aaa"
    exact = solve(Refine(turns("aaaa1.", "b."), CHAT, read, **SAID), budget=6)
    assert exact.log[-1]["ended"] == "budget"


def test_a_turn_that_its_limit_cut_is_ended_before_the_next():
    sampler = turns("aaaaaaaa", "b2.")
    found = solve(Refine(sampler, CHAT, read, rounds=1, **{**SAID, "check": ""}), most=4)
    assert found.answer == "2"
    assert found.cost.inserted == 4  # the end of the turn, and [~]


def test_where_the_context_ends_the_refinement_ends():
    class Short(Continues):
        async def sample(self, prompt_tokens, params, n):
            if len(prompt_tokens) > 5:
                raise PromptTooLong("too long")
            return await super().sample(prompt_tokens, params, n)

    found = solve(Refine(Short(lambda *_: "a1."), CHAT, read, **{**SAID, "check": ""}))
    assert found.answer == "1"
    with pytest.raises(PromptTooLong):
        solve(Refine(Short(lambda *_: "a1."), CHAT, read), prompt="much too long")


def test_a_model_that_is_a_coin_follows_the_markov_chain():
    """P(wrong → right) = .3, P(right → wrong) = .1: the accuracy goes from .5 towards .3 / .4 = .75."""
    mend, breaks, problems, most = 0.3, 0.1, 1000, 4

    def script(shown: str, key: str) -> str:
        draw = random.Random(f"{key}/{shown}").random()
        if "~" not in shown:
            return "r." if draw < 0.5 else "w."
        was = shown.rpartition("[")[0][-1]
        return ("w." if draw < breaks else "r.") if was == "r" else ("r." if draw < mend else "w.")

    search = Refine(Continues(script), CHAT, read, rounds=most, check="", again="~")

    async def all_of_them():
        asks = [Question(CHAT.encode("Q:"), Sampling(9, stop_ids=CHAT.stop_ids, key=str(i))) for i in range(problems)]
        return [await search.solve(ask, 99) for ask in asks]

    right = [[each.answer == "r" for each in found.candidates] for found in asyncio.run(all_of_them())]
    by_round = list(zip(*right, strict=True))
    tables = rounds(by_round)
    for t, expected in enumerate(chain(0.5, mend, breaks, most)):
        assert sum(by_round[t]) / problems == pytest.approx(expected, abs=4 * 0.5 / problems**0.5)
    for table in tables:
        assert table.mending.low < mend < table.mending.high or abs(table.mending.value - mend) < 0.06
        assert abs(table.breaking.value - breaks) < 0.06
    assert tables[0].difference.value > tables[-1].difference.value  # it levels off


def test_a_chat_without_turns_and_no_rounds_are_refused():
    class Single:
        stop_ids = frozenset({0})

    with pytest.raises(ModelError, match="continuation"):
        Refine(turns("a."), Single(), read)
    with pytest.raises(ConfigError, match="rounds=0"):
        Refine(turns("a."), CHAT, read, rounds=0)
