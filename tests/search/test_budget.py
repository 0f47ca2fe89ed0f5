"""Budget forcing as a machine: exact texts, what is counted, and what is never done."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from search_letters import STOP, Continues, Letters

from maieutic.errors import ConfigError, ModelError
from maieutic.protocols import Completion, Sampling
from maieutic.search.budget import FORMS, Form, Wait, auto_budget
from maieutic.search.found import Found, Question
from maieutic.types import Finish

PROMPT = "Q:"


def thinker(natural: str = "abc</think>", answer: str = "7."):
    """Thinks `abc` and ends, as often as it is asked; answers where a delimiter stands."""

    def script(shown: str, _key: str) -> str:
        said = shown.removeprefix(PROMPT)
        return answer if "</think>" in said else natural

    return Continues(script)


def solve(sampler, budget: int, most: int = 400, **options) -> Found:
    """Forced, thinking within `thinking` tokens."""
    chat = Letters()
    search = Wait(sampler, chat, lambda text: text.rpartition(">")[2] or None, **{"form": "think", **options})
    sampling = Sampling(most, stop_ids=chat.stop_ids, key="k")
    return asyncio.run(search.solve(Question(chat.encode(PROMPT), sampling), budget))


@pytest.mark.parametrize(
    ("times", "natural", "thinking", "wanted"),
    [
        (0, "abc</think>", 60, "abc</think>7"),
        (1, "abc</think>", 60, "abcWaitabc</think>7"),
        (2, "abc</think>", 60, "abcWaitabcWaitabc</think>7"),
        # the model would go on for ever: cut after so many tokens, "Wait" and the ends that were taken away among them
        (0, "a" * 99, 5, "aaaaa\n</think>\nFinal Answer:7"),
        (1, "a" * 99, 5, "aaaaa\n</think>\nFinal Answer:7"),
        (2, "aaaa\n", 5, "aaaa\n</think>\nFinal Answer:7"),  # there is a newline already
        # 11 chosen of which 8 are taken away, "Wait" is 4, one more is chosen: 16
        (1, "abc</think>", 16, "abcWaita\n</think>\nFinal Answer:7"),
        # after 11 + 4 nothing would be left to choose: it ended, and nothing is inserted
        (1, "abc</think>", 15, "abc</think>7"),
        # the model ends its turn in the middle of a thought: as s1, that is ignored too
        (0, "abc.", 60, "abc</think>7"),
        (1, "abc.", 60, "abcWaitabc</think>7"),
    ],
)
def test_what_is_written(times, natural, thinking, wanted):
    sampler = thinker(natural)
    if natural == "aaaa\n":  # goes on, character by character
        sampler = Continues(lambda shown, _: "7." if "</think>" in shown else ("aaaa\n" + "b" * 9))
    found = solve(sampler, 200, times=times, thinking=thinking, answer_tokens=20)
    [best] = found.candidates
    assert best.text == wanted
    assert best.text.count("</think>") == 1
    assert found.log[0]["thinking"] <= thinking
    completion = best.completion
    assert completion.finish is Finish.STOP
    assert completion.tokens[-1] == STOP
    inserted = "".join(chr(t) for t, m in zip(completion.tokens, completion.mask) if not m)
    assert len(inserted) == found.cost.inserted
    assert inserted.count("Wait") == wanted.count("Wait")
    assert [p for p, m in zip(completion.logprobs, completion.mask) if not m] == [0.0] * len(inserted)


def test_an_end_that_the_model_chose_stays_its_own():
    found = solve(thinker(), 200, times=0)
    assert all(found.best.completion.mask)
    assert found.cost.inserted == 0
    assert solve(thinker("abc."), 200, times=0).cost.inserted == len("</think>")


def test_what_is_counted():
    found = solve(thinker(), 200, times=2, thinking=60)
    # thrice "abc</think>" chosen, then "7" and the stop token; the ends of the first two were thrown away
    assert found.cost.generated == 3 * 11 + 2
    assert found.cost.inserted == 2 * 4
    assert found.cost.calls == 4
    assert found.log == ({"ended": "stop", "ignored": 2, "thinking": 3 * 3 + 8 + 8, "budget": 60},)
    assert len(found.best.completion.tokens) == 27


def test_after_an_ignored_end_nothing_that_ends_comes_first():
    sampler = thinker("</think>")  # thinks nothing at all
    solve(sampler, 300, times=2)
    first, *others, answer = [params for _, params, _ in sampler.asked]
    assert not first.not_first
    assert not answer.not_first
    assert [params.not_first for params in others] == [frozenset({STOP})] * 2  # of a delimiter of 8 tokens none ends


def test_a_delimiter_that_is_one_token_stops_as_that_token():
    def script(shown: str, _key: str) -> str:
        return "3." if "#" in shown else ("4;#" if "W" in shown else "5;#")

    sampler = Continues(script)
    found = solve(sampler, 60, form="#", ignore="W", times=1)
    assert found.best.text == "5;W4;#3"
    assert sampler.asked[1][1].not_first == {STOP, ord("#")}
    assert sampler.asked[0][1].stop_ids == {STOP, ord("#")}
    assert sampler.asked[2][1].until is None
    assert sampler.asked[2][1].stop_ids == {STOP}


def test_tokens_that_only_could_have_ended_the_delimiter_end_nothing():
    whole = "a>b>c</think>"
    sampler = Continues(lambda shown, _: whole[len(shown) - len(PROMPT) :] or "7.")
    found = solve(sampler, 200, times=0)
    assert found.best.text == "a>b>c</think>7"
    assert all(found.best.completion.mask)
    assert [shown for shown, _, _ in sampler.asked] == ["Q:", "Q:" + whole]


def test_every_key_is_another_one():
    sampler = thinker()
    solve(sampler, 200, times=2)
    assert [params.key for _, params, _ in sampler.asked] == ["k", "k/1", "k/2", "k/3"]


@pytest.mark.parametrize("budget", [30, 31, 45, 64, 128])
@pytest.mark.parametrize("natural", ["abc</think>", "a" * 300, "abc.", "a>"])
def test_a_budget_is_kept(budget, natural):
    found = solve(thinker(natural, answer="7" * 300), budget, times=6, answer_tokens=4)
    assert found.cost.generated <= budget
    assert found.log[0]["thinking"] <= found.log[0]["budget"]
    short = solve(thinker(natural, answer="7" * 300), 10_000, most=budget, times=6, answer_tokens=4)
    assert len(short.best.completion.tokens) <= budget


def test_a_budget_without_room_for_a_thought_is_refused():
    with pytest.raises(ConfigError, match="expected at least one for thinking"):
        solve(thinker(), 25)


def test_ids_beyond_the_tokenizer_are_dropped():
    @dataclass
    class Padded(Continues):
        async def sample(self, prompt_tokens, params, n):
            assert max(prompt_tokens) < 1000
            made = await super().sample(prompt_tokens, params, n)
            return [Completion((4_000, *c.tokens), (True, *c.mask), (-1.0, *c.logprobs), c.finish) for c in made]

    class Sized(Letters):
        tokenizer = range(1000)  # whose length is what is asked for

    chat = Sized()
    search = Wait(Padded(thinker().script), chat, lambda text: text, form="think", times=1)
    question = Question(chat.encode(PROMPT), Sampling(300, stop_ids=chat.stop_ids))
    found = asyncio.run(search.solve(question, 200))
    assert found.best.text == "abcWaitabc</think>7"
    assert max(found.best.completion.tokens) < 1000
    assert found.cost.generated == 2 * 12 + 3  # chosen they were


def test_a_tool_sees_the_whole_completion():
    seen = []

    def tool(tokens):
        seen.append(Letters().decode(tokens))
        return Letters().encode("!")

    def script(shown: str, _key: str) -> str:
        return "7." if "#" in shown else "1=#"

    chat, sampler = Letters(), Continues(script)
    search = Wait(sampler, chat, lambda text: text, form="#", ignore="W", times=1)
    sampling = Sampling(90, stop_ids=chat.stop_ids, interject=tool, interject_ids=frozenset({ord("=")}))
    found = asyncio.run(search.solve(Question(chat.encode(PROMPT), sampling), 80))
    assert found.best.text == "1=!W1=!#7"
    assert seen == ["1=", "1=!W1="]
    assert found.cost.inserted == 1  # the tool's are not the search's


def test_strings_that_the_model_cannot_write_are_refused():
    from maieutic.backends.toy_sums import ToyChat

    chat = ToyChat(("<stop>", "#", "1", ";"))
    assert Wait(Continues(lambda *_: "."), chat, str, ignore="", form="#").form == "#"
    with pytest.raises(ModelError, match=r"'Wait' is not in this model's vocabulary.*extra_words"):
        Wait(Continues(lambda *_: "."), chat, str, form="#")
    with pytest.raises(ModelError, match="</think>"):
        Wait(Continues(lambda *_: "."), chat, str, ignore="", form="think")


def test_forms_and_the_automatic_budget():
    # max_tokens − longest prompt − delimiters − 100 for the answer
    assert auto_budget(4096, 300, 8) == 4096 - 300 - 8 - 100
    assert FORMS["s1"] == Form("<|im_start|>", "<|im_start|>answer", "\n<|im_start|>answer\nFinal Answer:")
    # 200 tokens: 24 delimiters at most, 100 for the answer
    assert solve(thinker(), 200).log[0]["budget"] == 200 - len("\n</think>\nFinal Answer:") - 100
