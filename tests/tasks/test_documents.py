"""Documents as tasks: what the model is asked, what stays for the quiz, and what cannot be used."""

from __future__ import annotations

import json

import pytest

from maieutic.errors import DataError
from maieutic.tasks import documents
from maieutic.tasks.documents import INSTRUCTION


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_becomes_a_question_and_keeps_its_text(tmp_path):
    path = written(
        tmp_path / "calls.jsonl", {"text": " We sold more. ", "id": "acme", "year": 2026}, {"text": "Fewer."}
    )
    first, second = documents(path)
    assert first.id == "calls/acme"
    assert [(m.role, m.content) for m in first.prompt] == [("user", f"{INSTRUCTION}\n\nWe sold more.")]
    assert first.meta == {"text": "We sold more.", "year": 2026}
    assert first.answer is None
    assert second.id == "calls/1"


def test_columns_instruction_system_and_length_are_ones_own(tmp_path):
    path = written(tmp_path / "a.jsonl", {"body": "abcdef", "text": "another column"})
    (task,) = documents(path, text="body", instruction="Sum up:", system="Be brief.", max_characters=4)
    assert [m.content for m in task.prompt] == ["Be brief.", "Sum up:\n\nabcd"]
    assert task.meta["text"] == "abcd"


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs maieutic[parquet]")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["one", "two"]}), tmp_path / "a.parquet")
    assert [task.meta["text"] for task in documents(tmp_path / "a.parquet")] == ["one", "two"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"texts": "x"}], "a.jsonl:1: no text in 'text'; expected a document. The row has 'texts'"),
        ([{"text": "x"}, {"text": "  "}], "a.jsonl:2: no text"),
        ([{"text": 3}], "no text"),
        ([{"text": "x", "id": 1}, {"text": "y", "id": 1}], "got the id 1 again"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_line(tmp_path, rows, said):
    with pytest.raises(DataError) as refused:
        documents(written(tmp_path / "a.jsonl", *rows))
    assert said in str(refused.value)
