"""`maieutic reward label` and `maieutic reward audit` on the command line."""

import json

import pytest

from maieutic.tasks.judged import read_judged


@pytest.fixture
def rows(tmp_path):
    """Ten questions with a right and a wrong answer each, in steps."""
    made = [
        {"prompt": f"Ann has {n} books", "steps": [f"{n} + 0 = {n + wrong} ;", f" # {n + wrong}"],
         "labels": [1 - wrong, 1 - wrong], "label": 1 - wrong}
        for n in range(2, 12)
        for wrong in (0, 1)
    ]  # fmt: skip
    path = tmp_path / "judged.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))
    return path


@pytest.mark.parametrize("kind", ["outcome", "process"])
def test_a_reward_model_is_audited_with_a_page(command, trained, rows, tmp_path, kind):
    out, page = tmp_path / "model", tmp_path / "page.html"
    learned = command("reward", "train", "--data", rows, "--model", trained, "--out", out, "--kind", kind, "--epochs",
                      "0.1", "--set", 'delimiter=" ;"', "-q")  # fmt: skip
    assert learned.code == 0, learned.err
    said = command("reward", "audit", out, "--data", rows, "--html", page, "--json", "-")
    assert said.code == 0, said.err
    count = {"outcome": 20, "process": 40}[kind]
    assert said.json["measures"]["count"] == count
    assert sum(each["count"] for each in said.json["calibration"]) == count
    assert sum(each["count"] * each["seen"]["value"] for each in said.json["calibration"]) == pytest.approx(count / 2)
    assert ("first_error/f1" in said.json["measures"]) is (kind == "process")
    text = page.read_text()
    assert text.count("<circle") == len(said.json["calibration"])
    assert "script" not in text


CHECKER = """
def last_word(completions, answer, **_):
    return [float(c.split()[-1:] == [a]) for c, a in zip(completions, answer)]
"""


def test_two_checkers_and_a_sample_labelled_by_hand(command, tmp_path):
    """`strict` wants a marker, the other the last word. By hand: 6 right, 4 wrong; of the wrong ones the last word
    accepts 1 of 4, of the right ones strict refuses 2 of 6."""
    (tmp_path / "mine.py").write_text(CHECKER)
    written = [
        *[("#### 7", True)] * 4, ("it is 7", True), ("so 7", True),
        ("#### 8", False), ("eight", False), ("", False), ("not 7", False),
    ]  # fmt: skip
    rows = [
        {"prompt": f"question {i}", "answer": "7", "completion": text, "label": label}
        for i, (text, label) in enumerate(written)
    ]
    file, sample = tmp_path / "labelled.jsonl", tmp_path / "sample.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    names = ("strict", f"{tmp_path}/mine.py:last_word")
    said = command("reward", "audit", *names, "--file", file, "--labels", file, "--export", sample, "--size", "5",
                   "--json", "-")  # fmt: skip
    assert said.code == 0, said.err
    assert said.json["counts"] == {"right/right": 4, "wrong/right": 3, "wrong/wrong": 3}
    assert said.json["agree"]["value"] == pytest.approx(0.7)
    assert [each["completion"] for each in said.json["disagreements"]] == ["it is 7", "so 7", "not 7"]
    strict, last = (said.json["rates"][name] for name in names)
    assert (strict["false_positive"]["value"], strict["false_negative"]["value"]) == (0, pytest.approx(2 / 6))
    assert (last["false_positive"]["value"], last["false_negative"]["value"]) == (0.25, 0)
    # Wilson's interval of 1 of 4
    assert last["false_positive"]["low"] == pytest.approx(0.0456, abs=1e-4)
    assert last["false_positive"]["high"] == pytest.approx(0.6994, abs=1e-4)
    assert len(said.json["mistakes"]) == 3
    assert "3 disagreements" in said.err
    exported = [json.loads(line) for line in sample.read_text().splitlines()]
    assert len(exported) == 5
    assert all(row["label"] is None for row in exported)
    # what is exported is what --labels reads, once somebody has looked
    nobody = command("reward", "audit", "strict", "--labels", sample)
    assert "none of its 5 rows has a label" in nobody.err
    sample.write_text("\n".join(json.dumps({**row, "label": row["completion"].endswith("7")}) for row in exported))
    looked = command("reward", "audit", "strict", "--labels", sample, "--json", "-")
    assert (looked.code, looked.json["labelled"]) == (0, 5)


def test_verifiers_on_a_run(command, trained):
    said = command("reward", "audit", "answer", "flexible", "--run", trained, "--task", "arithmetic", "--json", "-")
    assert said.code == 0, said.err
    assert sum(said.json["counts"].values()) > 0


def test_what_cannot_be_audited_is_said(command, rows, trained):
    assert "nothing to audit on" in command("reward", "audit", "strict").err
    assert "expected one or two" in command("reward", "audit", "a", "b", "c", "--file", rows).err
    assert "a taskset's own" in command("reward", "audit", "answer", "--run", trained).err
    assert "without --task" in command("reward", "audit", "strict", "--model", trained).err
    assert "'strict' twice" in command("reward", "audit", "strict", "strict", "--run", trained).err


def test_steps_are_labelled(command, trained, tmp_path):
    out = tmp_path / "steps.jsonl"
    given = ("reward", "label", trained, "arithmetic", "--out", out, "--limit", "3", "--samples", "2",
             "--continuations", "2", "--delimiter", " ;", "--max-completion-length", "24")  # fmt: skip
    said = command(*given, "--json", "-")
    assert said.code == 0, said.err
    judged = read_judged(out, "steps")
    assert said.json["solutions"] == len(judged)
    assert said.json["cost"]["solution_tokens"] > 0
    before = out.read_bytes()
    assert "there already" in command(*given).err
    again = command(*given, "--resume", "--json", "-")
    assert again.json == said.json
    assert out.read_bytes() == before
    assert "begun with" in command(*given, "--resume", "--seed", "1").err
    assert "got no --out" in command("reward", "label", trained, "arithmetic").err
