"""Tasks from files: what is read, and every complaint with its place and remedy."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from maieutic.errors import ConfigError, DataError
from maieutic.rewards.answers import AnswerVerifier
from maieutic.tasks import file, hub, make_taskset
from maieutic.tasks.files import tasks_from_rows
from maieutic.types import Message

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_json_lines(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    path = lines(
        tmp_path / "sums.jsonl",
        {"prompt": "1 + 1?", "answer": "2", "level": 3},
        {"prompt": chat, "answer": 4, "id": "four"},
        {"prompt": "1 / 4?", "answer": 0.25, "solution": "1 / 4 = 0.25 ; # 0.25"},
    )
    tasks = make_taskset("file", path=path)
    first, second, third = (tasks[i] for i in range(3))
    assert (first.id, first.answer, first.meta) == ("sums/0", "2", {"level": 3})
    assert second.id == "sums/four"
    assert second.prompt == (Message("system", "Be brief."), Message("user", "2 + 2?"))
    assert (second.answer, third.answer) == ("4", "0.25")
    assert third.meta["solution"] == "1 / 4 = 0.25 ; # 0.25"
    assert tasks.verifier(third, third.meta["solution"]).correct
    assert not tasks.verifier(third, "# 0.26").correct


def test_answers_that_are_words(tmp_path: Path) -> None:
    tasks = file(lines(tmp_path / "a.jsonl", {"prompt": "Capital of France?", "answer": "Paris"}))
    assert tasks.verifier(tasks[0], "It is # paris").correct
    assert not tasks.verifier(tasks[0], "# Paris or Lyon").correct
    assert not tasks.verifier(tasks[0], "Paris").correct
    assert not tasks.verifier(tasks[0], "# Lyon # Paris").correct
    assert not tasks.verifier(tasks[0], "#").correct


@pytest.mark.parametrize(
    ("row", "answer", "solution"),
    [
        ({"prompt": "q", "answer": "1", "ground_truth": "2", "solution": "3"}, "1", "3"),
        ({"prompt": "q", "ground_truth": "2", "solution": "3"}, "2", "3"),
        ({"prompt": "q", "solution": "3"}, "3", None),
        ({"prompt": "q", "completion": "because"}, None, "because"),
        ({"prompt": "q", "completion": [{"role": "assistant", "content": "so"}]}, None, "so"),
        ({"prompt": "q", "reward_model": {"ground_truth": "7"}, "data_source": "x"}, "7", None),
        ({"question": "q", "answer": 5}, "5", None),
    ],
)
def test_precedence_of_columns(row: dict, answer: str | None, solution: str | None) -> None:
    (task,) = tasks_from_rows([("here", row)], "t")
    assert (task.answer, task.meta.get("solution")) == (answer, solution)


def test_named_columns_and_gold_after() -> None:
    row = {"task": {"text": "q"}, "gold": "2 + 2 = 4\n#### 1,004", "prompt": "unused"}
    (task,) = tasks_from_rows([("here", row)], "t", {"prompt": "task.text", "answer": "gold"}, "####", "Be brief.")
    assert [m.content for m in task.prompt] == ["Be brief.", "q"]
    assert task.answer == "1004"
    assert task.meta["solution"] == "2 + 2 = 4\n#### 1,004"
    with pytest.raises(ConfigError, match="did you mean 'prompt'"):
        tasks_from_rows([("here", row)], "t", {"promt": "task"})


@pytest.mark.parametrize(
    ("written", "gold"), [("1,004", "1004"), ("Paris, France", "Paris, France"), ("(1, 2)", "(1, 2)")]
)
def test_only_a_number_loses_its_commas(written: str, gold: str) -> None:
    (task,) = tasks_from_rows([("here", {"question": "q", "answer": f"so\n#### {written}"})], "t", None, "####")
    assert task.answer == gold
    assert AnswerVerifier()(task, f"The answer is {written}.").correct


@pytest.mark.parametrize("column", ["prompt", "answer", "solution"])
def test_half_a_character_is_refused_where_it_stands(tmp_path: Path, column: str) -> None:
    row = {"prompt": "q", "answer": "2", "solution": "s", column: "cut \ud83d"}
    with pytest.raises(DataError, match=r"halves\.jsonl:2: got half of a character at the end of 'cut .ud83d'"):
        file(lines(tmp_path / "halves.jsonl", {"prompt": "q", "answer": "1"}, row))


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "sums.csv"
    path.write_text('prompt,answer,id\n"1, and 1?",2,a\n"two\nlines?",4,b\n', encoding="utf-8-sig")
    tasks = file(path)
    assert [(t.id, t.prompt[0].content, t.answer) for t in tasks] == [
        ("sums/a", "1, and 1?", "2"),
        ("sums/b", "two\nlines?", "4"),
    ]


def test_json_list(tmp_path: Path) -> None:
    path = tmp_path / "sums.json"
    path.write_text('[{"prompt": "1 + 1?", "answer": 2}]')
    assert file(path, name="mine")[0].id == "mine/0"


@needs_pyarrow
def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": [{"role": "user", "content": "1 + 1?"}], "reward_model": {"ground_truth": "2"}}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    (task,) = file(tmp_path / "t.parquet")
    assert (task.prompt, task.answer) == ((Message("user", "1 + 1?"),), "2")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"bad\.parquet: not a Parquet file"):
        file(tmp_path / "bad.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "a.jsonl is empty"),
        ("a.jsonl", b"\n\n", "a.jsonl: got no rows"),
        ("a.jsonl", b'{"prompt": "q", "answer": "1"}\n{"prompt": "q",\n', "a.jsonl:2: not JSON at column"),
        ("a.jsonl", b"[1]\n", "a.jsonl:1: got list; expected an object"),
        ("a.jsonl", b'{"answer": "1"}\n', "a.jsonl:1: no prompt; expected text or messages in 'prompt' or 'question'"),
        ("a.jsonl", b'{"prompt": "", "answer": "1"}\n', "a.jsonl:1: no prompt"),
        ("a.jsonl", b'{"prompt": "q", "gold": "1"}\n', "The row has 'prompt', 'gold'; columns="),
        (
            "a.jsonl",
            b'{"prompt": "q", "gold": "1"}\n',
            "a.jsonl:1: no answer; expected one in 'answer' or 'ground_truth'",
        ),
        ("a.jsonl", b'{"prompt": 3, "answer": "1"}\n', "a.jsonl:1: got a prompt of type int"),
        ("a.jsonl", b'{"prompt": [{"role": "user"}], "answer": "1"}\n', "got the message {'role': 'user'}"),
        ("a.jsonl", b'{"prompt": ["q"], "answer": "1"}\n', "got the message 'q'"),
        ("a.jsonl", b'{"prompt": "q", "answer": [1]}\n', "got an answer of type list ([1])"),
        ("a.jsonl", b'{"prompt": "q", "answer": NaN}\n', "got an answer of type float (nan)"),
        (
            "a.jsonl",
            b'{"prompt": "q", "answer": 1, "id": 7}\n\n{"prompt": "r", "answer": 1, "id": 7}\n',
            "a.jsonl:3: got the id '7' again, which {folder}/a.jsonl:1 has",
        ),
        (
            "a.jsonl",
            b'{"prompt": "q", "answer": 1}\n{"prompt": "caf\xe9"}\n',
            "a.jsonl:2: got byte 0xe9, which is not UTF-8",
        ),
        ("a.json", b'{"prompt": "q"}', "a.json: got dict; expected a list"),
        ("a.json", b'[\n{"prompt": "q"},\n]', "a.json:3: not JSON at column"),
        ("a.csv", b"prompt,answer\nq\n", "a.csv:2: the row has not 2 fields"),
        ("a.csv", b"prompt,answer\nq,1,2\n", "a.csv:2: the row has not 2 fields"),
        ("a.csv", b'prompt,answer\n"q,1\n', "not CSV"),
        ("a.csv", b"prompt,answer\n", "a.csv: got no rows"),
        ("a.txt", b"q\n", "expected one of .jsonl, .json, .csv, .parquet"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        DataError, match=re.escape(message.format(folder=tmp_path) if "{folder}" in message else message)
    ):
        file(tmp_path / name)


def test_missing_paths_name_the_nearest(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", {"prompt": "q", "answer": 1})
    with pytest.raises(DataError, match=r"no file .*trian\.jsonl; did you mean .*train\.jsonl\?"):
        file(tmp_path / "trian.jsonl")
    with pytest.raises(DataError, match="has a similar name"):
        file(tmp_path / "no" / "such" / "folder.csv")
    with pytest.raises(DataError, match=r"is a folder; expected a file; it has train\.jsonl"):
        file(tmp_path)


def test_unicode_line_separators_inside_text_do_not_break_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a\u2028b", "answer": 1}\r\n', encoding="utf-8")
    assert file(path)[0].prompt[0].content == "a\u2028b"
    (tmp_path / "a.csv").write_text("prompt,answer\na\u2028b,1\n", encoding="utf-8")
    assert file(tmp_path / "a.csv")[0].prompt[0].content == "a\u2028b"


def test_the_hub_names_the_extra_that_is_missing() -> None:
    # in a process of its own, in which the import of the package fails as where it is not installed
    program = "import sys; sys.modules['datasets'] = None\nfrom maieutic.tasks import hub\nhub('openai/gsm8k')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "DataError" in done.stderr
    assert "pip install 'maieutic[hub]'" in done.stderr


def test_a_local_folder_through_datasets(tmp_path: Path) -> None:
    lines(tmp_path / "train.jsonl", {"question": "q", "answer": "so\n#### 3"})
    (task,) = hub(str(tmp_path), gold_after="####")
    assert (task.answer, task.meta["solution"]) == ("3", "so\n#### 3")
    with pytest.raises(DataError, match="split 'nosuch'"):
        hub(str(tmp_path), split="nosuch")
