"""What every benchmark understands: how it is listed, and the options that all of them have."""

from __future__ import annotations

import importlib
import json

import pytest

from benchmarks.__main__ import benchmarks
from benchmarks.__main__ import main as listed
from benchmarks._results import folder_of, made_once, percent, points, study_parser, write_json
from benchmarks._synergy_parts import QUICK, Scale


@pytest.mark.parametrize("name", benchmarks())
def test_every_benchmark_says_that_it_can_be_quick_and_write_json(name, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"benchmarks.{name}").main(["--help"])
    assert end.value.code == 0
    said = capsys.readouterr().out
    for option in ("--quick", "--json"):
        assert f"\n  {option}" in said, f"{name} has no {option}"


def test_every_benchmark_is_listed_with_what_it_measures(capsys):
    assert listed([]) == 0
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()[2:]}
    assert lines == benchmarks()
    assert all(lines.values())


def test_a_misspelt_benchmark_is_an_error_with_the_nearest_name(capsys):
    assert listed(["wordel"]) == 2
    assert "did you mean 'wordle'?" in capsys.readouterr().err


def test_what_is_no_number_is_null_in_json(tmp_path):
    file = tmp_path / "new" / "found.json"
    write_json(file, {1: [float("nan"), 0.5, (float("inf"), None)]})
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == {"1": [None, 0.5, [None, None]]}


def test_intervals_are_said_in_points_and_per_cent():
    assert points({"value": 0.125, "low": -0.05, "high": 0.3}) == "+12.5 (-5.0 to +30.0)"
    assert points({"value": 0.125, "low": None, "high": None}, scale=1, digits=2) == "+0.12"
    assert percent({"value": 0.41, "low": 0.382, "high": 0.438}) == "41.0 (38.2–43.8)"


def test_a_folder_takes_a_study_of_one_size_only(tmp_path, capsys):
    given = study_parser(None, "synergy", "less").parse_args(["--quick", "--runs", str(tmp_path / "study")])
    assert folder_of(given, "synergy", QUICK) == folder_of(given, "synergy", QUICK) == tmp_path / "study"
    assert folder_of(given, "synergy", Scale()) is None
    assert "holds a study of other sizes" in capsys.readouterr().err


def test_a_part_is_made_once_and_what_was_left_half_made_is_made_anew(tmp_path):
    made = []

    def make(folder):
        made.append(folder.exists())
        folder.mkdir()

    (tmp_path / ".tmp-start").mkdir()
    (tmp_path / "start").mkdir()  # without its note: a rename that was not noted
    seconds = made_once(tmp_path, "start", make)
    assert made_once(tmp_path, "start", make) == seconds >= 0
    assert made == [False]
