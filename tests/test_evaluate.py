"""Evaluation with a scripted sampler: the table, its metrics, paired comparisons, and what reaches the sampler."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest

from maieutic.core.intervals import Interval, mcnemar, wilson
from maieutic.environments.inline import interjection
from maieutic.errors import ConfigError, DataError, ModelError, UnknownName
from maieutic.evaluate import Evaluation, Problem, Sample, difference, evaluate, evaluate_sync
from maieutic.protocols import Completion, Sampling, Tool
from maieutic.types import Finish, Message, Task, Verdict

STOP = 0


@dataclass
class Letters:
    """A chat format in which every character is a token; token 0 ends a turn."""

    stop_ids: frozenset[int] = frozenset({STOP})

    def prompt(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return self.encode("".join(message.content for message in messages))

    def completion(self, text: str) -> tuple[int, ...]:
        return (*self.encode(text), STOP)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(map(ord, text))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(token) for token in tokens if token != STOP)

    def tokens_ending(self, trigger: str) -> frozenset[int]:
        return frozenset({ord(trigger[-1])})


@dataclass
class Scripted:
    """Says, for each question, its lines in turn: the first when greedy. A line without a full stop was cut."""

    lines: Mapping[str, Sequence[str]]
    asked: list[tuple[str, Sampling, int]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0

    async def sample(self, prompt_tokens: Sequence[int], params: Sampling, n: int) -> list[Completion]:
        question = Letters().decode(prompt_tokens)
        self.asked.append((question, params, n))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        return [self.say(line, params) for line in self.lines[question][:n]]

    def say(self, line: str, params: Sampling) -> Completion:
        tokens: list[int] = []
        chosen: list[bool] = []
        for token in map(ord, line.rstrip(".")):
            tokens.append(token)
            chosen.append(True)
            if params.interject and token in params.interject_ids:
                added = params.interject(tokens)
                tokens.extend(added)
                chosen.extend([False] * len(added))
        finish = Finish.STOP if line.endswith(".") else Finish.LENGTH
        if finish is Finish.STOP:
            tokens.append(STOP)
            chosen.append(True)
        if line == "!":
            finish = Finish.ERROR
        # half a nat a token that was chosen, nothing for what the tool wrote
        return Completion(tuple(tokens), tuple(chosen), tuple(-0.5 * c for c in chosen), finish)


class Calculator:
    trigger = "="

    def __call__(self, text: str) -> str | None:
        left, plus, right = text.removesuffix("=").rpartition("+")
        return str(int(left) + int(right)) if plus else None


@dataclass
class Sums:
    """`2+3` → 5. The verifier reads the digits after the last `=`; a text that ends otherwise has no answer."""

    tasks: Sequence[Task]
    tool: Tool | None = None
    name: str = "sums"

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def verifier(self, task: Task, text: str) -> Verdict:
        answer = text.rpartition("=")[2]
        return Verdict(answer == task.answer, answer if answer.isdigit() else None)


def sums(*questions: tuple[str, str], tool: Tool | None = None) -> Sums:
    return Sums([Task(f"t/{q}", (Message("user", q),), a) for q, a in questions], tool)


def sample(answer: str | None, gold: str = "1", finish: Finish = Finish.STOP, tokens: int = 4) -> Sample:
    return Sample(f"={answer}", answer, answer == gold, finish, tokens)


def problem(task_id: str, answers: str, greedy: str | None = None) -> Problem:
    """`"1123-"`: five samples, the last without an answer; 1 is right."""
    samples = tuple(sample(None if answer == "-" else answer) for answer in answers)
    return Problem(task_id, sample(greedy) if greedy else None, samples)


def table(*rows: tuple[str, str | None], name: str = "run", prefix: str = "t") -> Evaluation:
    return Evaluation(name, tuple(problem(f"{prefix}{i}", answers, greedy) for i, (answers, greedy) in enumerate(rows)))


def test_the_table_is_what_was_said() -> None:
    sampler = Scripted({"2+3": ["=5.", "=6.", "=5", "oh."], "1+1": ["=3.", "=2.", "!", "=2."]})
    seen: list[tuple[int, int]] = []
    got = evaluate_sync(
        sampler,
        Letters(),
        sums(("2+3", "5"), ("1+1", "2")),
        samples=4,
        max_tokens=9,
        seed=7,
        on_progress=lambda *p: seen.append(p),
    )
    first, second = got.problems
    assert first.task_id == "t/2+3"
    # `=5.` is two characters and the stop token; `=5` was cut by the limit and is right all the same.
    assert first.samples == (
        Sample("=5", "5", True, Finish.STOP, 3, -0.5),
        Sample("=6", "6", False, Finish.STOP, 3, -0.5),
        Sample("=5", "5", True, Finish.LENGTH, 2, -0.5),
        Sample("oh", None, False, Finish.STOP, 3, -0.5),
    )
    assert first.greedy == first.samples[0]
    assert second.samples[2] == Sample("!", None, False, Finish.ERROR, 1)
    assert [p.correct for p in got.problems] == [2, 2]
    assert seen == [(1, 2), (2, 2)]
    assert got.name == "sums"
    assert got.settings["seed"] == 7
    # Shares over the samples: 1 of 8 cut, 2 of 8 without an answer, 1 of 8 failed; (3+3+2+3 + 3+3+1+3)/8 = 21/8 tokens.
    metrics = got.metrics()
    shares = {name: metrics[name].value for name in ("truncated", "unparsed", "errors", "length")}
    assert shares == {"truncated": 1 / 8, "unparsed": 2 / 8, "errors": 1 / 8, "length": 21 / 8}


def test_evaluation_inside_a_running_loop() -> None:
    # as a cell of a notebook is: an event loop is running in the thread that asks
    async def cell() -> Evaluation:
        sampler = Scripted({"2+3": ["=5.", "=6."]})
        return evaluate_sync(sampler, Letters(), sums(("2+3", "5")), samples=2, max_tokens=9)

    assert asyncio.run(cell()).problems[0].correct == 1


def test_what_reaches_the_sampler() -> None:
    sampler = Scripted({"2+3": ["=5."] * 3})
    evaluate_sync(sampler, Letters(), sums(("2+3", "5")), samples=3, temperature=0.7, max_tokens=9, seed=7)
    sure, drawn = sampler.asked
    assert (sure[1].temperature, sure[2]) == (0.0, 1)
    assert (drawn[1].temperature, drawn[2]) == (0.7, 3)
    assert drawn[1].key == "7/eval/t/2+3"
    assert drawn[1].stop_ids == {STOP}
    assert drawn[1].max_tokens == 9
    assert drawn[1].interject is None


def test_the_tasksets_tool_writes_and_its_tokens_are_not_the_models() -> None:
    sampler = Scripted({"2+3": ["2+3=."]})
    got = evaluate_sync(sampler, Letters(), sums(("2+3", "5"), tool=Calculator()), samples=0, max_tokens=9)
    # The model chose `2 + 3 =` and the stop token; the tool wrote 5.
    assert got.problems[0].greedy == Sample("2+3=5", "5", True, Finish.STOP, 5, -0.5)
    assert list(got.metrics()) == ["greedy", "truncated", "unparsed", "errors", "length"]


def test_a_tool_is_asked_only_after_its_trigger() -> None:
    @dataclass
    class Double:
        trigger: str = "<<="

        def __call__(self, text: str) -> str | None:
            return "!" if len(text) < 6 else None

    chat = Letters()
    interject, ids = interjection(chat, Double())
    assert interject is not None
    assert ids == {ord("=")}
    assert [chat.decode(interject(chat.encode(text))) for text in ("a<<=", "a=", "<<", "aaaa<<=")] == ["!", "", "", ""]
    assert interjection(chat, None) == (None, frozenset())
    with pytest.raises(ConfigError, match="empty trigger"):
        interjection(chat, Double(trigger=""))

    class Mute(Letters):
        def tokens_ending(self, trigger: str) -> frozenset[int]:
            return frozenset()

    with pytest.raises(ModelError, match="would never be asked"):
        interjection(Mute(), Double())


def test_concurrency_is_used_and_bounded() -> None:
    questions = [f"{i}+1" for i in range(20)]
    for concurrency in (1, 6):
        sampler = Scripted({q: ["=0."] for q in questions})
        taskset = sums(*((q, "0") for q in questions))
        got = evaluate_sync(sampler, Letters(), taskset, samples=1, max_tokens=9, concurrency=concurrency, limit=15)
        assert sampler.most_running == 2 * concurrency  # the greedy call and the sampled one
        assert [p.task_id for p in got.problems] == [f"t/{q}" for q in questions[:15]]


def test_a_failing_sampler_stops_the_evaluation() -> None:
    questions = [f"{i}+1" for i in range(20)]
    sampler = Scripted({q: ["=0."] for q in questions[:3]})  # the fourth question has no script: KeyError

    async def attempt() -> set[asyncio.Task[object]]:
        with pytest.raises(KeyError):
            await evaluate(
                sampler, Letters(), sums(*((q, "0") for q in questions)), samples=1, max_tokens=9, concurrency=2
            )
        return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]

    left = asyncio.run(attempt())
    assert not left  # nothing goes on behind the error
    assert len(sampler.asked) < 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0, "greedy": False}, "at least one of the two"),
        ({"samples": 2, "temperature": 0.0}, "all the same"),
        ({"limit": 0}, "limit=0"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_settings_that_ask_for_nothing(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate_sync(Scripted({}), Letters(), sums(("2+3", "5")), **{"max_tokens": 9, **settings})


def test_a_sampler_that_returns_too_few() -> None:
    with pytest.raises(ModelError, match="got 1 completions from the sampler, expected 4"):
        evaluate_sync(Scripted({"2+3": ["=5."]}), Letters(), sums(("2+3", "5")), samples=4, max_tokens=9)


def test_metrics_by_hand() -> None:
    # 1 is right.  pass@1: 4/8, 3/8, 0 -> .291667.   pass@8: 1, 1, 0.   strict@8 (5 of 8): 0, 0, 0.
    # vote@8: four 1 against three 2: right.  Three 1, three 2, two nulls: a tie, 1/2.  Nulls and one 2: wrong.
    got = table(("11112223", "1"), ("111222--", "2"), ("2-------", "1"))
    metrics = got.metrics(k=8)
    names = ["greedy", "pass@1", "pass@8", "vote@8", "strict@8", "truncated", "unparsed", "errors", "length"]
    assert list(metrics) == names
    values = [metrics[name].value for name in names]
    assert values == pytest.approx([2 / 3, 7 / 24, 2 / 3, 0.5, 0.0, 0.0, 9 / 24, 0.0, 4.0])
    assert metrics["greedy"] == wilson(2, 3)
    assert got.values("vote_optimistic@8").tolist() == [1, 1, 0]
    assert got.values("vote_pessimistic@8").tolist() == [1, 0, 0]
    assert got.values("vote@8").tolist() == [1, 0.5, 0]
    # Two nulls are fewer than three 2: counting them changes nothing here; it does where they are four.
    assert got.values("vote_null_wrong@8").tolist() == [1, 0.5, 0]
    assert table(("111-----", None)).values("vote@8").tolist() == [1]
    assert table(("111-----", None)).values("vote_null_wrong@8").tolist() == [0]
    assert got.histogram() == [1, 0, 0, 1, 1, 0, 0, 0, 0]


def test_metrics_for_several_k_and_for_none() -> None:
    got = table(("1122", None), ("1222", None))
    assert list(got.metrics([2, 4]))[:7] == ["pass@1", "pass@2", "pass@4", "vote@2", "vote@4", "strict@2", "strict@4"]
    assert list(got.metrics()) == list(got.metrics(4))
    assert list(replace(got, ks=(2,)).metrics()) == list(got.metrics(2))
    # k = 2 of 1122: no 1 in one pair of six.  Of 1222: no 1 in three pairs of six.
    assert got.values("pass@2").tolist() == pytest.approx([5 / 6, 1 / 2])


def test_one_sample_a_problem_has_wilsons_interval() -> None:
    got = table(*[("1", None)] * 30, *[("2", None)] * 70).metrics()
    assert got["pass@1"] == wilson(30, 100)
    # The tokens are all 4, whatever the resample.
    assert got["length"] == Interval(4.0, 4.0, 4.0)


def test_nothing_solved_is_not_certainty() -> None:
    got = table(*[("22", None)] * 100).metrics(k=2)["pass@2"]
    assert (got.value, got.low) == (0, 0)
    assert got.high == pytest.approx(wilson(0, 100).high)


def test_unknown_metrics_and_missing_samples() -> None:
    got = table(("1122", None))
    with pytest.raises(UnknownName, match="did you mean 'greedy'"):
        got.values("greed")
    with pytest.raises(UnknownName, match="unknown metric 'maj@4'"):
        got.values("maj@4")
    with pytest.raises(UnknownName):
        got.values("pass@all")
    with pytest.raises(ConfigError, match="samples=8 or more"):
        got.values("pass@8")
    with pytest.raises(ConfigError, match="greedy=True"):
        got.values("greedy")


def test_json_round_trip() -> None:
    cut = Sample("½ → ?", None, False, Finish.LENGTH, 9)
    got = Evaluation("after", (Problem("a", None, (cut, sample("1"))), problem("b", "12", "1")), (1, 2), {"seed": 3})
    back = Evaluation.from_json(got.to_json())
    assert back == got
    assert back.problems[0].samples[0].finish is Finish.LENGTH
    assert back.metrics() == got.metrics()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"problems": [{"task_id": "a"}]}', '{"problems": 3}'])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="no evaluation"):
        Evaluation.from_json(text)


def test_tables_that_cannot_be_compared_problem_by_problem() -> None:
    with pytest.raises(DataError, match="no problems"):
        Evaluation("x", ())
    with pytest.raises(DataError, match="'a' more than once"):
        Evaluation("x", (problem("a", "1"), problem("a", "2")))
    with pytest.raises(DataError, match="no sample of 'a'"):
        Evaluation("x", (Problem("a"),))


def test_difference_of_greedy_answers_is_mcnemars() -> None:
    # 15 gained, 5 lost, 80 unchanged: +10 points, p = .04139.
    old = table(*[("1", "2")] * 15, *[("1", "1")] * 85, name="old")
    new = table(*[("1", "1")] * 15, *[("1", "2")] * 5, *[("1", "1")] * 80, name="new")
    got = difference(new, old, "greedy")
    assert got.value == pytest.approx(0.10)
    assert got.p_value == pytest.approx(mcnemar(15, 5)) == pytest.approx(0.04139, abs=5e-6)
    assert got.n == 100
    assert got.verdict == "better"
    assert difference(old, new, "greedy").verdict == "worse"


def test_difference_pairs_by_task_whatever_the_order() -> None:
    old = table(("1222", None), ("1122", None), ("2222", None), name="old")
    new = table(("1122", None), ("1112", None), ("1222", None), name="new")
    shuffled = Evaluation("new", new.problems[::-1])
    got = difference(new, old)
    assert difference(shuffled, old) == got
    # Every problem gained one of four; three equal signs are p = 2/2^3.
    assert (got.value, got.p_value) == (0.25, 0.25)
    assert got.verdict == "not separable at n = 3; about 6 problems would be needed"
    assert difference(new, old, "pass", k=4) == difference(new, old, "pass@4")


def test_difference_of_shares_and_lengths_has_its_own_words() -> None:
    def long(tokens: int, finish: Finish) -> Evaluation:
        one = sample("1", finish=finish, tokens=tokens)
        return Evaluation("x", tuple(Problem(f"t{i}", None, (replace(one, tokens=tokens + i % 3),)) for i in range(40)))

    short, cut = long(10, Finish.STOP), long(30, Finish.LENGTH)
    assert difference(cut, short, "length").verdict == "longer"
    assert difference(short, cut, "length").verdict == "shorter"
    assert difference(cut, short, "truncated").verdict == "worse"
    assert difference(short, cut, "truncated").verdict == "better"


def test_different_problems_are_refused() -> None:
    old, new = table(("1", None), ("1", None), name="old"), table(("1", None), name="new")
    with pytest.raises(DataError, match=r"got 1 and 2 problems, 0 only in 'new' and 1 only in 'old' \(such as 't1'\)"):
        difference(new, old)


def test_pass_bounds_vote_bounds_strict_for_every_problem() -> None:
    answers = [f"{a}{b}{c}{d}{e}" for a in "12" for b in "12-" for c in "123" for d in "1-" for e in "12"]
    got = table(*((row, None) for row in answers))
    for k in (1, 3, 5):
        passed, vote, strict = (got.values(f"{name}@{k}") for name in ("pass", "vote", "strict"))
        assert (strict <= vote + 1e-12).all()
        assert (vote <= passed + 1e-12).all()
        assert (vote > strict).any() or k == 1
