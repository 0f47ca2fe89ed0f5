"""Searches of many problems: what is stored, where it goes on, and the summary by hand."""

from __future__ import annotations

import json

import pytest
from search_letters import Continues, Letters

from maieutic.core.intervals import mcnemar
from maieutic.errors import ConfigError, DataError, PromptTooLong
from maieutic.protocols import Tool
from maieutic.run.runner import Interrupted
from maieutic.run.search_judges import with_judges
from maieutic.run.searching import Asking, Method, groups, search_all, write_data
from maieutic.search.found import Cost
from maieutic.search.results import Solved, Tried, sequential, summarise
from maieutic.tasks.taskset import Tasks
from maieutic.tasks.verify import number_after_marker
from maieutic.types import Finish, Message, Task

VOTE, WAIT = Method("vote", {"samples": 2}, "vote"), Method("wait", {"form": "#", "ignore": "W"}, "wait")


def tasks(n: int = 5, tool: Tool | None = None) -> Tasks:
    made = [Task(f"t/{i}", (Message("user", f"{i}:"),), str(i)) for i in range(n)]
    return Tasks("t", made, number_after_marker, tool)


def says(shown: str, key: str) -> str:
    """Right for even numbers at once, for odd ones only after some doubt."""
    number = shown[0]
    if shown.endswith("#"):
        return f"{number if 'W' in shown or int(number) % 2 == 0 else 9}."
    return f"x;#{number if int(number) % 2 == 0 else 9}."


def asking(sampler=None, n: int = 5, **options) -> Asking:
    return Asking(tasks(n), sampler or Continues(says), Letters(), 30, **options)


def tried(correct: bool, text: str = "", finish: Finish = Finish.STOP) -> Tried:
    return Tried(text or str(correct), str(correct), correct, None, finish, (1, 2), "11")


def row(number: int, *correct: bool, chosen: int = 0, generated: int = 10, log=()) -> Solved:
    return Solved(f"t/{number}", chosen, tuple(map(tried, correct)), Cost(generated=generated, calls=2), log)


def test_all_methods_at_all_budgets():
    arms = search_all(asking(), [VOTE, WAIT], [20, 30])
    assert list(arms) == [("vote", 20), ("wait", 20), ("vote", 30), ("wait", 30)]
    assert [[r.correct for r in rows] for rows in arms.values()] == [
        [True, False, True, False, True], [True] * 5, [True, False, True, False, True], [True] * 5,
    ]  # fmt: skip
    found = summarise(arms)
    assert [each.accuracy.value for each in found] == [0.6, 1.0, 0.6, 1.0]
    # of five problems two are gained and none is lost
    assert found[1].against.value == pytest.approx(0.4)
    assert found[1].against.p_value == mcnemar(2, 0)
    assert found[0].against is None
    assert found[1].control == 1.0
    assert all(0 < r.cost.generated <= budget for (_, budget), rows in arms.items() for r in rows)


def test_the_summary_by_hand():
    vote = [row(0, True), row(1, False), row(2, False), row(3, True)]
    other = [row(i, False, True, chosen=1, generated=20 * i) for i in range(4)]
    first, second = summarise({("vote", 64): vote, ("other", 64): other})
    assert first.accuracy.value == 0.5
    assert second.cost == {"generated": 30.0, "inserted": 0, "prefilled": 0, "reused": 0, "calls": 2.0, "judged": 0}
    assert second.against.value == 0.5
    with pytest.raises(DataError, match="no problems"):
        summarise({("vote", 1): []})


def test_scaling_over_budgets():
    arms = {
        ("a", 10): [row(0, True, generated=10), row(1, False, generated=10)],
        ("a", 40): [row(0, True, generated=30), row(1, True, generated=50)],
        ("b", 10): [row(0, True)],
    }
    # from (10, .5) to (40, 1): .5 / 30
    assert sequential(summarise(arms)) == {"a": {"scaling": pytest.approx(0.5 / 30), "performance": 1.0}}


def test_rounds_and_those_that_ended_early():
    log = ({"round": 0},)
    rows = [row(0, False, True, log=log), row(1, True, log=log), row(2, True, False, True, log=log)]
    first, second = summarise({("refine", 9): rows})[0].transitions
    assert (first.kept, first.broken, first.mended, first.missed) == (1, 1, 1, 0)
    assert (second.kept, second.broken, second.mended, second.missed) == (2, 0, 1, 0)


def test_rows_survive_their_file():
    log = ({"round": 0, "feedback": "a\u2028b"},)
    one = Solved("t/0", 0, (Tried("a\u2028b", None, False, 0.5, Finish.LENGTH, (1, 2), "10"),), Cost(3), log, "why")
    assert Solved.from_row(json.loads(json.dumps(one.to_row()))) == one


def test_stopped_and_gone_on(tmp_path):
    sampler = Continues(says)
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    with pytest.raises(Interrupted, match="stopped after 3 of 5 problems of vote at 20 tokens; go on with the same"):
        search_all(asking(sampler), [VOTE], [20], tmp_path, {"seed": 0}, stop=stop)
    before = len(sampler.asked)
    place = tmp_path / "found" / "vote@20.jsonl"
    whole = place.read_bytes()
    assert whole.count(b"\n") == 3
    place.write_bytes(whole[:-9])  # killed while the third was written
    seen = []
    arms = search_all(asking(sampler), [VOTE], [20], tmp_path, {"seed": 0}, watch=lambda *told: seen.append(told))
    assert {shown for shown, _, _ in sampler.asked[before:]} == {"2:", "3:", "4:"}  # one of them a second time
    before = len(sampler.asked)
    assert seen[0] == ("vote", 20, 2, 5)
    assert seen[-1] == ("vote", 20, 5, 5)
    assert arms == search_all(asking(), [VOTE], [20])
    assert arms == search_all(asking(sampler), [VOTE], [20], tmp_path, {"seed": 0})
    assert len(sampler.asked) == before
    with pytest.raises(ConfigError, match="begun with"):
        search_all(asking(), [VOTE], [20], tmp_path, {"seed": 1})
    with pytest.raises(Interrupted, match="nothing is kept without --out"):
        search_all(asking(), [VOTE], [20], stop=lambda: True)


def test_a_prompt_that_does_not_fit_is_one_problem_wrong():
    class Short(Continues):
        async def sample(self, prompt_tokens, params, n):
            if Letters().decode(prompt_tokens).startswith("2"):
                raise PromptTooLong("too long")
            return await super().sample(prompt_tokens, params, n)

    arms = search_all(asking(Short(says)), [VOTE], [20])
    [summary] = summarise(arms)
    assert summary.errors == 1
    assert summary.accuracy.value == 2 / 5
    assert arms["vote", 20][2].error == "too long"
    assert len(groups(asking(), arms["vote", 20])) == 4


def test_groups_and_files_of_what_was_found(tmp_path):
    both = Method("refine_oracle", {"rounds": 1, "again": "W"}, "refine_oracle")
    ask = asking(Continues(lambda shown, key: says(shown, key) if "[" not in shown else f"y;#{shown[0]}."))
    [method] = with_judges([both], ask, [], "cpu")
    rows = search_all(ask, [method], [60])["refine_oracle", 60]
    assert [len(r.tried) for r in rows] == [1, 2, 1, 2, 1]
    made = groups(ask, rows)
    assert [g.id for g in made] == [0, 1, 2, 3, 4]
    assert [g.rollouts[0].text for g in made] == ["x;#0", "y;#1", "x;#2", "y;#3", "x;#4"]
    assert [len(g.rollouts) for g in made] == [1, 2, 1, 2, 1]
    assert write_data(tmp_path, ask, rows, "#", "W") == {"demonstrations": 5, "pairs": 2, "steps": 0, "waits": 2}
    first = json.loads((tmp_path / "waits.jsonl").read_text().splitlines()[0])
    assert first["prompt"][-1] == {"role": "assistant", "content": "x;"}
    assert first["solution"] == "Wy;#1"


def test_who_judges():
    with pytest.raises(ConfigError, match="best_of_n chooses by score: got no reward model for it"):
        with_judges([Method("best_of_n", {}, "best_of_n")], asking(), [], "cpu")
    given = Method("best_of_n", {"score": lambda _p, rows: [len(r) for r in rows]}, "b")
    assert with_judges([given], asking(), [], "cpu") == [given]
