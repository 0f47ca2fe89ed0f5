"""`maieutic sandbox check`."""

from __future__ import annotations

from maieutic.sandbox.check import ATTEMPTS


def test_check_says_what_confines_programs_and_that_it_holds(command):
    said = command("sandbox", "check", "--json", "-")
    assert said.json["layers"]["seccomp"]["in_force"] is True
    assert said.json["tried"] == dict.fromkeys(ATTEMPTS, True)


def test_its_help_has_an_example(command):
    assert "maieutic sandbox check --json -" in command("sandbox", "check", "--help").out
    assert "check" in command("sandbox", "--help").out
