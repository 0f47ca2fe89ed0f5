"""`maieutic reward train` on the command line."""

import json

import pytest

from maieutic.models.reward_model import load_reward_model


@pytest.fixture
def rows(tmp_path):
    made = [
        {"prompt": f"Ann has {n} books", "completion": f"# {n + wrong}", "label": not wrong}
        for n in range(2, 12)
        for wrong in (0, 1)
    ]
    path = tmp_path / "judged.jsonl"
    path.write_text("\n".join(map(json.dumps, made)))
    return path


def test_a_model_is_trained_from_a_run_and_a_file(command, trained, rows, tmp_path):
    out = tmp_path / "orm"
    said = command(
        "reward", "train", "--data", rows, "--model", trained, "--out", out, "--set", "holdout=0.3",
        "--set", "prompts=2", "--json", "-",
    )  # fmt: skip
    assert said.code == 0
    assert said.json["kind"] == "outcome"
    assert 0 <= said.json["held_out"]["auc"] <= 1
    assert "train outcome model" in said.err
    assert load_reward_model(out).kind == "outcome"
    # it is done, and says the same again
    again = command("reward", "train", "--out", out, "--resume", "--json", "-", "-q")
    assert again.json == said.json
    # the run's own rollouts are judged too
    other = command("reward", "train", "--data", trained, "--data", rows, "--model", trained, "--out", tmp_path / "b",
                    "--set", "holdout=0", "-q")  # fmt: skip
    assert other.code == 0
    assert "28 judged completions" in other.out


def test_what_is_wrong_is_said(command, trained, rows, tmp_path):
    out = tmp_path / "x"
    assert "got no --out" in command("reward", "train", "--data", rows, "--model", trained).err
    missing = command("reward", "train", "--data", rows, "--out", out)
    assert (missing.code, "got no --model" in missing.err) == (2, True)
    unknown = command("reward", "train", "--data", rows, "--model", trained, "--out", out, "--set", "epoch=1")
    assert "did you mean 'epochs'" in unknown.err
    kind = command("reward", "train", "--data", rows, "--model", trained, "--out", out, "--kind", "process")
    assert (kind.code, "nothing of kind 'process'" in kind.err) == (3, True)
    idle = command("reward", "train", "--data", rows, "--model", trained, "--out", out, "--set", "centre=0.1")
    assert "centre, which does nothing for kind = 'outcome'" in idle.err
    assert not out.exists(), "what was refused leaves nothing behind"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    full = command("reward", "train", "--data", rows, "--model", trained, "--out", tmp_path / "full")
    assert (full.code, "choose another --out" in full.err) == (7, True)
