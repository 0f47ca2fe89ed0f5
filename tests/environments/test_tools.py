"""Tools: calls are read from any text, failures are answers, and what tools wrote is not learned from."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maieutic.backends.scripted import ScriptedTexts
from maieutic.environments.python_tool import python_tool
from maieutic.environments.search_tool import Corpus, Passage, read_corpus, search_tool
from maieutic.environments.tool_calls import read_calls
from maieutic.environments.tool_functions import Answer, ToolFailed, tool_function
from maieutic.environments.tool_use import ToolUse, described
from maieutic.environments.toolbox import calculator, named_tool, named_tools
from maieutic.errors import ConfigError, DataError, UnknownName
from maieutic.play import Player
from maieutic.rewards.answers import AnswerVerifier
from maieutic.rewards.compose import answer_reward
from maieutic.types import Finish, Message, Task

TASK = Task("t", (Message("user", "How much is 17 % of 2,340?"),), "397.8")


def call(name: str, **arguments: object) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


CALCULATED = call("calculator", expression="0.17 * 2340")


def play(environment: ToolUse, *turns: str, siblings: int = 1, most: int = 2000, task: Task = TASK):
    """Episodes in which the model says these turns, whatever it is answered."""

    def script(text: str, _sibling: int) -> str:
        said = [turn for turn in turns if turn in text]
        return turns[min(len(said), len(turns) - 1)]

    chat = ScriptedTexts(script)
    player = Player(chat, chat, answer_reward(AnswerVerifier()), environment, max_completion_length=most)
    return asyncio.run(player.group(task, siblings, 0)), chat


def answered(environment: ToolUse, turn: str) -> list[str]:
    """What a turn is answered in a fresh episode."""

    async def step() -> list[str]:
        episode = await environment.start(TASK, "0")
        return [message.content for message in (await episode.step(Message("assistant", turn))).messages]

    return asyncio.run(step())


# ---- an episode ----------------------------------------------------------------------------------------------------


def test_a_call_its_result_and_an_answer():
    group, chat = play(ToolUse([tool_function(calculator)]), CALCULATED, "#### 397.8")
    (rollout,), (score,) = group.rollouts, group.scores
    assert rollout.finish is Finish.ENVIRONMENT
    assert [(span.role, span.text) for span in rollout.spans[1:]] == [
        ("assistant", CALCULATED),
        ("environment", "397.8"),
        ("assistant", "#### 397.8"),
    ]
    for span in rollout.spans:
        assert set(rollout.mask[span.start : span.stop]) == {span.role == "assistant"}
    assert (score.reward, score.correct) == (1.0, True)
    assert (score.parts["tool_calls"], score.parts["failed_tool_calls"]) == (1.0, 0.0)
    assert "calculator(expression: string)" in chat.asked[0][0]


def test_rewards_see_the_last_turn_only():
    """A tool that prints an answer has not answered: neither 397.8 after #### in its reply, nor in an earlier turn."""

    def oracle(question: str) -> str:
        """Say the answer."""
        return "#### 397.8"

    group, _ = play(ToolUse([tool_function(oracle)]), call("oracle", question="?"), "I do not know")
    assert group.rollouts[0].text == "I do not know"
    assert group.scores[0].reward == 0.0


def test_an_episode_ends_after_the_last_turn_although_it_calls():
    group, chat = play(ToolUse([tool_function(calculator)], max_turns=2), CALCULATED, CALCULATED + " ")
    assert len(chat.asked) == 2
    assert group.rollouts[0].finish is Finish.ENVIRONMENT
    assert group.scores[0].parts["tool_calls"] == 2.0


def test_the_same_episode_again_is_the_same():
    """What a resumed run plays again must come out equal, whatever the tools do with chance."""
    code = "```python\nimport random\nprint(random.random(), {'b', 'a'}, len(str(id)))\n```"
    groups = [play(ToolUse([python_tool()]), code, "#### 1", siblings=2)[0] for _ in range(2)]
    assert groups[0] == groups[1]
    assert groups[0].rollouts[0].spans[2].text.startswith("0.8444218515250481")  # random.seed(0)


# ---- reading calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [("f", {"x": 1})]),
        ('<tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call>', [("f", {"x": 1})]),
        ('<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [("f", {"x": 1})]),
        ('<tool_call>{"function": {"name": "f", "arguments": {}}}</tool_call>', [("f", {})]),
        ('<tool_call>{"name": "f"}</tool_call> and <tool_call>{"name": "g"}</tool_call>', [("f", {}), ("g", {})]),
        ('so <tool_call>{"name": "f"}', [("f", {})]),  # the stop token came where the closing tag should
        ("let me see\n```f\n3 * 4\n```\n", [("f", "3 * 4")]),
        ('```f\n{"x": 1}\n```', [("f", {"x": 1})]),
        ('```tool_call\n{"name": "f", "arguments": {"x": 1}}\n```', [("f", {"x": 1})]),
        ("```haskell\nmain\n```", []),
        ("```f\nnever closed", []),
        ('{"name": "f", "arguments": {"x": 1}}', [("f", {"x": 1})]),
        ('{"name": "Ann", "age": 3}', []),
        ('<think><tool_call>{"name": "f"}</tool_call></think> 7', []),
        ("#### 7", []),
        ("", []),
    ],
)
def test_calls_are_read(text, expected):
    calls = read_calls(text, {"f", "g"})
    assert [(each.name, each.arguments) for each in calls] == expected
    assert not any(each.problem for each in calls)


@pytest.mark.parametrize(
    "inside", ["", "f(3)", "[1]", '{"name": 3}', '{"name": "f"', "[" * 100_000, '{"a": 1' + "0" * 5000]
)
def test_what_is_no_call_is_told_so(inside):
    (each,) = read_calls(f"<tool_call>{inside}</tool_call>", {"f"})
    assert 'expected {"name": "…", "arguments": {…}}' in each.problem


def test_fences_can_be_left_alone():
    assert read_calls("```f\n1\n```", {"f"}, fenced=False) == []


@given(st.text(alphabet='<>/tool_cal{}"name:f,\n`[]1\\ ', max_size=200))
def test_any_text_is_read(text):
    calls = read_calls(text, {"f"})
    assert len(calls) <= text.count("<tool_call>") + text.count("```") + 1
    assert all((call.name, call.arguments) == ("", None) for call in calls if call.problem)


@pytest.mark.parametrize("piece", ["<tool_call>", "```f\n", "{", "</tool_call>", "<think>"])
def test_reading_takes_time_in_proportion(piece):
    """Of a text 16 times as long, far less than 16 times 16 as much."""

    def seconds(count: int) -> float:
        begun = time.process_time()
        read_calls(piece * count, {"f"})
        return time.process_time() - begun

    few = min(seconds(2_000) for _ in range(3))
    assert min(seconds(32_000) for _ in range(2)) < 100 * few + 0.05


# ---- what can go wrong with a call ---------------------------------------------------------------------------------


def weather(city: str, days: int = 1, unit: Literal["C", "F"] = "C") -> dict[str, object]:
    """Weather of a place.

    Args:
        city: its name,
            in English
        days (int): how many
    Returns:
        what it will be
    """
    if city == "Atlantis":
        raise LookupError("no such city")
    if city == "Limbo":
        raise SystemExit(3)
    if city == "Babel":
        raise ToolFailed("ask in English")
    return {"city": city, "days": days, "unit": unit}


@dataclasses.dataclass
class Point:
    x: float
    y: float


def length(points: list[Point]) -> float:
    """Length of a way."""
    return sum(((a.x - b.x) ** 2 + (a.y - b.y) ** 2) ** 0.5 for a, b in itertools.pairwise(points))


async def slow(seconds: float) -> str:
    """Wait."""
    if seconds < 0:
        raise SystemExit(4)
    await asyncio.sleep(seconds)
    return "woke"


def stuck(x: int = 0) -> str:
    """Wait, and let nobody know."""
    time.sleep(20)
    return str(x)


def test_a_schema_is_derived_from_the_signature():
    assert tool_function(weather).schema == {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a place.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "its name, in English"},
                    "days": {"type": "integer", "description": "how many"},
                    "unit": {"enum": ["C", "F"], "type": "string"},
                },
                "required": ["city"],
            },
        },
    }
    assert "weather(city: string, days: integer (optional), unit: 'C' or 'F' (optional))" in described(
        [tool_function(weather).schema]
    )


TOOLS = ToolUse([tool_function(weather), tool_function(slow, seconds=0.05), tool_function(stuck, seconds=0.05)])


@pytest.mark.parametrize(
    ("turn", "told", "failed"),
    [
        (call("weather", city="Rome", days="2"), '{"city": "Rome", "days": 2, "unit": "C"}', 0),
        (call("weather", city=7), '{"city": "7", "days": 1, "unit": "C"}', 0),
        ("```weather\nRome\n```", '{"city": "Rome", "days": 1, "unit": "C"}', 0),
        (call("slow", seconds=0), "woke", 0),
        (call("wether", city="Rome"), "there is no tool 'wether'; the tools are weather, slow, stuck", 1),
        (call("weather"), "weather needs city; it takes city, days, unit", 1),
        (call("weather", city="Rome", hour=3), "weather has no argument hour; it takes city, days, unit", 1),
        (call("weather", city="Rome", days="two"), "argument days of weather: Input should be a valid integer", 1),
        (call("weather", city="Rome", unit="K"), "argument unit of weather: Input should be 'C' or 'F'", 1),
        (call("weather", city="Atlantis"), "error: LookupError: no such city", 1),
        (call("weather", city="Limbo"), "error: SystemExit: 3", 1),
        (call("weather", city="Babel"), "error: ask in English", 1),
        (call("slow", seconds=-1), "error: SystemExit: 4", 1),
        (call("slow", seconds=20), "error: slow took longer than 0.05 s", 1),
        (call("stuck"), "error: stuck took longer than 0.05 s", 1),
        ('<tool_call>{"name": "weather", "arguments": [1]}</tool_call>', "must be a JSON object", 1),
        ('<tool_call>{"name": "weather', "the call is not JSON", 1),
    ],
)
def test_failures_are_answers(turn, told, failed):
    group, _ = play(TOOLS, turn, "#### 397.8")
    (rollout,), (score,) = group.rollouts, group.scores
    assert told in rollout.spans[2].text
    assert score.parts["failed_tool_calls"] == failed
    assert rollout.finish is Finish.ENVIRONMENT
    assert score.correct


def test_a_tool_that_always_hangs_is_not_called_for_ever():
    tool = tool_function(stuck, seconds=0.001)

    async def often() -> list[Answer]:
        return [await tool({}) for _ in range(20)]

    answers = asyncio.run(often())
    assert [answer.failed for answer in answers] == [True] * 20
    assert "took longer" in answers[0].text
    assert "stuck is busy: 16 earlier calls" in answers[-1].text


def test_several_calls_are_answered_in_order_up_to_a_limit():
    environment = ToolUse([tool_function(calculator)], max_calls=2, reply_characters=3)
    turn = "".join(call("calculator", expression=f"{n}+1") for n in (1, 2, 3, 4))
    assert answered(environment, turn)[:2] == ["2", "3"]
    assert answered(environment, turn)[2].startswith("err\n… (")
    group, _ = play(environment, turn, "#### 397.8")
    assert group.scores[0].parts == {"tool_calls": 4.0, "failed_tool_calls": 2.0, "answer": 1.0}


def test_half_a_character_does_not_reach_the_tokenizer():
    def cut() -> str:
        """Cut."""
        return "a\ud83d"

    assert answered(ToolUse([tool_function(cut)]), call("cut")) == ["a?"]


def test_tools_that_cannot_be_told_of_are_refused():
    def bare(x):
        return x

    def many(*values: int):
        """Sum."""

    def socket(x: Path, y: asyncio.AbstractEventLoop):
        """Open."""

    def local(x: Hidden):  # noqa: F821
        """Look."""

    with pytest.raises(ConfigError, match="'bare': got no docstring"):
        tool_function(bare)
    with pytest.raises(ConfigError, match=r"'values' \(variadic positional\); expected parameters that"):
        tool_function(many)
    with pytest.raises(ConfigError, match=r"parameter 'y' of type .*which no JSON can be read as"):
        tool_function(socket)
    with pytest.raises(ConfigError, match=r"its type hints cannot be read .*'Hidden' is not defined"):
        tool_function(local)
    with pytest.raises(ConfigError, match="got no tool"):
        ToolUse([])
    with pytest.raises(ConfigError, match="two tools named weather"):
        ToolUse([tool_function(weather), tool_function(weather)])
    with pytest.raises(ConfigError, match="max_calls = 0"):
        ToolUse([tool_function(weather)], max_calls=0)


def test_arguments_may_be_of_ones_own_types():
    assert answered(ToolUse([tool_function(length)]), call("length", points=[{"x": 0, "y": 0}, {"x": 3, "y": 4}])) == [
        "5.0"
    ]


# ---- the built-in tools --------------------------------------------------------------------------------------------


def test_the_calculator():
    tool = ToolUse(named_tools(["calculator"]))
    asked = {"3 × 4 =": "12", "1,000 / 8": "125", "(2 − 5) ÷ 2": "-1.5"}
    assert [answered(tool, f"```calculator\n{text}\n```") for text in asked] == [[value] for value in asked.values()]
    for text in ("1/0", "2**9", "__import__('os')", "", "9" * 100):
        assert answered(tool, call("calculator", expression=text))[0].startswith("error: no expression")


def test_python_in_the_sandbox_keeps_its_names_and_stays_inside():
    tool = ToolUse([python_tool(seconds=0.5)], max_turns=12)

    async def ask(*cells: str) -> list[str]:
        episode = await tool.start(TASK, "0")
        return [(await episode.step(Message("assistant", call("python", code=c)))).messages[0].content for c in cells]

    told = asyncio.run(
        ask(
            "x = 20\nprint('hi')\nx + 1",
            "def f(n):\n    return n * x",
            "f(3)",
            "1 / 0",
            "open('/etc/passwd').read()",
            "import socket; socket.socket()",
            "while True: pass",
            "'x' * (1 << 40)",
            "print('.' * 100_000)",
            "import os; os._exit(0)",
            "raise SystemExit('bye')",
            "x",
        )
    )
    assert told[:3] == ["hi\n21", "(no output)", "60"]
    assert told[3].endswith("ZeroDivisionError: division by zero")
    assert told[4].endswith("No such file or directory: '/etc/passwd'")
    assert "PermissionError" in told[5]
    assert told[6] == "error: the program was ended: it took more than 0.5 s of processor time"
    assert told[7].endswith("MemoryError")
    assert len(told[8]) < 4100
    assert told[9] == "error: the program was ended: it ended with exit code 0"
    assert told[10].endswith("SystemExit: bye")
    assert told[11] == "20"  # what did not end the program is still there
    assert asyncio.run(ask("x"))[0].endswith("NameError: name 'x' is not defined")  # another episode


def test_bm25_by_hand():
    """Three passages of 3, 2 and 4 words with their sources, mean 3; "cat" is in two, "sat" in one.

    idf(cat) = ln(1 + 1.5 / 2.5) = 0.4700, idf(sat) = ln(1 + 2.5 / 1.5) = 0.9808. The first: |p| = 3, so the damping is
    1.5 and each word that is there once counts 2.5 / 2.5 = 1: 0.4700 + 0.9808. The third has "cat" twice in 4 words:
    damping 1.5 (0.25 + 0.75 · 4/3) = 1.875, 0.4700 · 2 · 2.5 / 3.875 = 0.6065.
    """
    corpus = Corpus([Passage("a", "cat sat"), Passage("b", "dog"), Passage("c", "cat cat ran")])
    assert [each.source for each in corpus.search("The cat SAT")] == ["a", "c"]
    assert [each.source for each in corpus.search("cat")] == ["c", "a"]
    assert corpus.search("bird") == []
    assert corpus.search("cat", count=1) == [Passage("c", "cat cat ran")]
    same = Corpus([Passage(name, "cat") for name in "xyz"])
    assert [each.source for each in same.search("cat", 2)] == ["x", "y"]


def test_a_folder_is_searched(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "alps.md").write_text("# Alps\n\nThe Matterhorn is 4478 m high.\n\n" + "rock " * 400)
    (tmp_path / "rivers.txt").write_text("The Rhine is 1230 km long.")
    (tmp_path / "rows.jsonl").write_text(
        '{"title": "Rome", "text": "Rome has seven hills."}\n\n{"text": "An apple."}\n'
    )
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    corpus = read_corpus(tmp_path)
    assert max(len(each.text.split()) for each in corpus.passages) == 150
    assert corpus.search("matterhorn height")[0].text.startswith("# Alps The Matterhorn is 4478 m high.")
    tool = ToolUse([search_tool(tmp_path, count=1)])
    assert answered(tool, call("search", query="seven hills")) == ["[Rome] Rome has seven hills."]
    assert answered(tool, "```search\napple\n```") == ["[rows.jsonl:3] An apple."]
    assert answered(tool, call("search", query="quark")) == ["nothing found"]


def test_folders_that_cannot_be_searched(tmp_path):
    with pytest.raises(DataError, match="expected a folder"):
        named_tool(f"search:{tmp_path / 'none'}")
    with pytest.raises(DataError, match="has no text"):
        named_tool(f"search:{tmp_path}")
    (tmp_path / "a.jsonl").write_text('{"body": "x"}')
    with pytest.raises(DataError, match=r"a.jsonl:1: got a row without a text"):
        named_tool(f"search:{tmp_path}")
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(DataError, match=r"a.jsonl:1: not JSON"):
        named_tool(f"search:{tmp_path}")
    (tmp_path / "a.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        named_tool(f"search:{tmp_path}")


def test_tools_by_name(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text('def double(x: int) -> int:\n    """Twice."""\n    return 2 * x\n\nthing = 3\n')
    assert answered(ToolUse(named_tools([f"{mine}:double"])), call("double", x=4)) == ["8"]
    with pytest.raises(UnknownName, match="did you mean 'calculator'"):
        named_tool("calculater")
    with pytest.raises(ConfigError, match="got int; expected a function"):
        named_tool(f"{mine}:thing")
