"""Pairs: which rollouts of a group are set against each other.

Completions are tokens after the prompt (7, 7); 0 is the stop token. Texts are left empty where tokens say it all.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maieutic.core.pairs import MODES, PAIRINGS, best_vs_worst, common_prefix, given_pairs, pairs, sides
from maieutic.errors import DataError
from maieutic.pack import pack
from maieutic.types import CHOSEN, REJECTED, Finish, Group, Rollout, Score, Task

PROMPT = (7, 7)


def rollout(body, sibling=0, logprob=-1.0, text=""):
    zeros = (0.0,) * len(PROMPT)
    mask = (False,) * len(PROMPT) + (True,) * len(body)
    return Rollout(
        "t", PROMPT + tuple(body), mask, zeros + (logprob,) * len(body), Finish.STOP, text=text, sibling=sibling
    )


def group(*rows, id=0, task="t"):
    """A group of (body, correct, answer) rows with reward 1 for what is correct."""
    rollouts = tuple(rollout(body, i) for i, (body, *_) in enumerate(rows))
    scores = tuple(Score(float(bool(right)), correct=right, answer=read) for _, right, read in rows)
    return Group(Task(task, ()), rollouts, scores, id=id)


def graded(*rewards, id=0):
    """A group of different completions whose reward says nothing of what is correct."""
    rollouts = tuple(rollout((i + 1, 0), i) for i in range(len(rewards)))
    return Group(Task("t", ()), rollouts, tuple(Score(r) for r in rewards), id=id)


def formed(part, *groups):
    """(group, chosen sibling, rejected sibling) of every pair, in order; and that the rows are tied as they should."""
    rows = part(groups)
    found = []
    for at in range(0, len(rows), 2):
        better, worse = rows[at : at + 2]
        assert (better.role, worse.role) == (CHOSEN, REJECTED)
        assert better.unit == worse.unit == at // 2
        assert better.group == worse.group
        found.append((better.group, better.rollout.sibling, worse.rollout.sibling))
    return found


#: Three correct (0, 3, 4) and five wrong ones, all different; lengths 2 2 3 5 2 4 6 3; 7 begins as 3 does.
EIGHT = group(
    ((1, 0), True, "4"),
    ((2, 0), False, "5"),
    ((3, 3, 0), False, "6"),
    ((4, 5, 6, 6, 0), True, "4"),
    ((5, 0), True, "4"),
    ((6, 6, 6, 0), False, "5"),
    ((8, 8, 8, 8, 8, 0), False, "9"),
    ((4, 5, 0), False, "2"),
)
RIGHT, WRONG = {0, 3, 4}, {1, 2, 5, 6, 7}


@pytest.mark.parametrize(("mode", "count"), [("one", 1), ("disjoint", 3), ("all", 15)])
def test_the_modes_give_one_three_and_fifteen_pairs(mode, count):
    """T6.1: n = 8, c = 3, w = 5: one pair, min(3, 5) = 3, 3 · 5 = 15."""
    found = formed(pairs(mode), EIGHT)
    assert len(found) == len(set(found)) == count
    assert all(better in RIGHT and worse in WRONG for _, better, worse in found)


@pytest.mark.parametrize("mode", ["all", "disjoint"])
def test_a_cap_limits_the_pairs_of_a_group_and_not_of_a_step(mode):
    assert len(formed(pairs(mode, cap=2), EIGHT)) == 2
    assert len(formed(pairs(mode, cap=100), EIGHT)) == len(formed(pairs(mode), EIGHT))
    other = Group(EIGHT.task, EIGHT.rollouts, EIGHT.scores, id=1)
    assert len(formed(pairs(mode, cap=2), EIGHT, other)) == 4


def test_in_disjoint_pairs_no_completion_occurs_twice():
    found = formed(pairs("disjoint"), EIGHT)
    assert len({better for _, better, _ in found}) == len({worse for _, _, worse in found}) == 3


@pytest.mark.parametrize("mode", MODES)
def test_no_pair_crosses_prompts(mode):
    only_right = group(((1, 0), True, "4"), ((2, 0), True, "4"), id=1)
    only_wrong = group(((1, 0), False, "5"), ((2, 0), False, "6"), id=2)
    single = group(((1, 0), True, "4"), id=3)
    assert formed(pairs(mode), only_right, only_wrong, single) == []
    mixed = formed(pairs(mode), only_right, EIGHT, only_wrong, single)
    assert mixed
    assert {number for number, _, _ in mixed} == {0}


@pytest.mark.parametrize("mode", MODES)
def test_completions_that_say_the_same_count_once_and_never_oppose_each_other(mode):
    # two distinct correct ones, one wrong one three times, and what a lenient judge called right is wrong elsewhere
    rows = [((1, 0), True, "4"), ((1, 0), True, "4"), ((2, 0), True, "4"), *[((3, 0), False, "5")] * 3]
    confused = group(*rows, ((1, 0), False, "4"))
    found = formed(pairs(mode), confused)
    assert {worse for _, _, worse in found} == {3}
    assert {better for _, better, _ in found} <= {0, 2}
    assert len(found) == {"all": 2}.get(mode, 1)
    assert formed(pairs(mode), group(((1, 0), True, "4"), ((1, 0), False, "5"))) == []


def test_text_that_differs_in_spaces_only_is_the_same():
    rollouts = tuple(rollout((i + 1, 0), i, text=text) for i, text in enumerate(["a  b", "a b ", "c", "a b"]))
    scores = (Score(1.0, correct=True), Score(1.0, correct=True), Score(0.0, correct=False), Score(0.0, correct=False))
    assert formed(pairs("all"), Group(Task("t", ()), rollouts, scores)) == [(0, 0, 2)]


def test_hard_takes_the_wrong_answer_that_most_agree_on():
    # "5" has three votes, the right "4" two, "6" one: of the wrong ones only siblings 2, 3 and 4 say it
    votes = group(
        ((1, 0), True, "4"), ((2, 0), True, "4"), ((3, 0), False, "5"), ((4, 0), False, "5"), ((5, 0), False, "5"),
        ((6, 0), False, "6"),
    )  # fmt: skip
    rollouts = tuple(rollout(r.tokens[2:], i, lp) for i, (r, lp) in enumerate(zip(votes.rollouts, LIKELY, strict=True)))
    ((_, better, worse),) = formed(pairs("hard"), Group(votes.task, rollouts, votes.scores))
    assert better in (0, 1)
    assert worse == 3  # the likeliest of the three; 5, likelier still, gives another answer


LIKELY = (-1.0, -1.0, -0.9, -0.5, -0.7, -0.1)


def test_votes_of_duplicates_count():
    twice = group(((1, 0), True, "4"), ((2, 0), False, "6"), ((3, 0), False, "5"), ((3, 0), False, "5"))
    assert [worse for _, _, worse in formed(pairs("hard"), twice)] == [2]


@pytest.mark.parametrize("answers", [("4", "4", "4", "5", "6"), (None,) * 5], ids=["right plurality", "nobody read"])
def test_without_a_wrong_plurality_hard_takes_the_likeliest_wrong_one(answers):
    rollouts = tuple(rollout((i + 1,) * n + (0,), i, lp) for i, (n, lp) in enumerate(SHAPES))
    scores = tuple(Score(float(i < 3), correct=i < 3, answer=answer) for i, answer in enumerate(answers))
    ((_, _, worse),) = formed(pairs("hard"), Group(Task("t", ()), rollouts, scores))
    assert worse == 4  # 2 · −0.9 = −1.8 against 4 · −0.5 = −2: likelihood is a sum


#: Tokens before the stop token and the log-prob of each token.
SHAPES = [(1, -0.1), (1, -0.1), (1, -0.1), (3, -0.5), (1, -0.9)]


def test_length_matched_differs_least():
    # correct lengths 2 (0), 5 (3), 2 (4); wrong 2 (1), 3 (2), 4 (5), 6 (6), 3 (7): 0 and 1 differ by nothing
    assert formed(pairs("length_matched"), EIGHT) == [(0, 0, 1)]


def test_shared_prefix_is_the_longest_common_beginning():
    # 3 is 4 5 6 6 0 and 7 is 4 5 0: two tokens; no other two begin alike
    assert formed(pairs("shared_prefix"), EIGHT) == [(0, 3, 7)]
    assert common_prefix((4, 5, 6), (4, 5, 0)) == 2
    assert common_prefix((4, 5), (4, 5, 0)) == 2
    assert common_prefix((), (1,)) == 0


def test_after_prefix_learns_from_what_differs_only():
    better, worse = pairs("shared_prefix", after_prefix=True)([EIGHT])
    # prompt 7 7, shared 4 5
    assert better.rollout.tokens == (7, 7, 4, 5, 6, 6, 0)
    assert better.rollout.mask == (False, False, False, False, True, True, True)
    assert better.rollout.logprobs == (0.0, 0.0, 0.0, 0.0, -1.0, -1.0, -1.0)
    assert worse.rollout.mask == (False, False, False, False, True)
    plain, _ = pairs("shared_prefix")([EIGHT])
    assert plain.rollout.mask == (False, False, True, True, True, True, True)


def test_a_side_that_is_only_the_beginning_of_the_other_has_nothing_left_to_learn():
    cut = group(((4, 5), False, "5"), ((4, 5, 0), True, "4"))
    assert formed(pairs("shared_prefix"), cut) == [(0, 1, 0)]
    assert formed(pairs("shared_prefix", after_prefix=True), cut) == []


def malformed(id):
    """One correct rollout and one in which no answer was found."""
    return group(((1, 0), True, "4"), ((2, 0), False, None), id=id)


def parsed(id):
    """One correct rollout, one with a wrong answer and two without any."""
    return group(((1, 0), True, "4"), ((2, 0), False, None), ((3, 0), False, "5"), ((4, 0), False, None), id=id)


def test_a_wrong_answer_that_was_parsed_comes_before_one_that_was_not():
    assert formed(pairs("all"), parsed(0)) == [(0, 0, 2)]
    assert [len(side) for side in sides(parsed(0))] == [1, 1, 2]


def test_malformed_rollouts_are_a_share_of_the_pairs_at_most():
    # 8 parsed pairs let 8 · 0.2 / 0.8 = 2 malformed ones in: 2 of 10
    groups = [parsed(i) for i in range(8)] + [malformed(i) for i in range(8, 16)]
    found = formed(pairs(), *groups)
    assert len(found) == 10
    assert sum(number >= 8 for number, _, _ in found) == 2
    # 3 parsed ones let 0.75 in, that is none; and without any parsed pair there is no share to be had
    assert len(formed(pairs(), *groups[5:])) == 3
    assert formed(pairs(), *groups[8:]) == []


@pytest.mark.parametrize(("share", "count"), [(0.0, 8), (0.5, 16), (1.0, 16)])
def test_the_share_of_malformed_rollouts_is_a_choice(share, count):
    groups = [parsed(i) for i in range(8)] + [malformed(i) for i in range(8, 16)]
    assert len(formed(pairs(max_malformed=share), *groups)) == count


def test_where_no_answer_is_ever_read_nothing_is_malformed():
    # a reward that says what is correct and not which answer it read: a function of the user's
    silent = group(((1, 0), True, None), ((2, 0), False, None))
    assert formed(pairs(max_malformed=0.0), silent) == [(0, 0, 1)]


def test_graded_rewards_set_the_best_against_the_worst():
    found = formed(pairs("all"), graded(0.5, 1.0, 0.0, 1.0, 0.0))
    assert set(found) == {(0, 1, 2), (0, 1, 4), (0, 3, 2), (0, 3, 4)}
    assert formed(pairs("all"), graded(0.5, 0.5)) == []


def test_best_and_worst_go_by_reward_whatever_is_correct():
    rollouts = tuple(rollout((i + 1, 0), i) for i in range(3))
    scores = (Score(0.4, correct=True), Score(0.9, correct=True), Score(0.1, correct=True))
    praised = Group(Task("t", ()), rollouts, scores)
    assert formed(pairs(), praised) == []
    assert formed(best_vs_worst(), praised) == [(0, 1, 2)]
    assert formed(best_vs_worst(), graded(0.5, 0.5)) == []
    assert formed(best_vs_worst(), graded(0.5)) == []


@pytest.mark.parametrize("part", [pairs("all"), best_vs_worst()], ids=str)
def test_what_has_no_reward_or_chose_nothing_is_in_no_pair(part):
    silent = Rollout("t", PROMPT, (False, False), (0.0, 0.0), Finish.ERROR, sibling=2)
    rollouts = (rollout((1, 0), 0), rollout((2, 0), 1), silent, rollout((3, 0), 3))
    scores = (
        Score(1.0, correct=True),
        Score(None, correct=False),
        Score(0.0, correct=False),
        Score(0.5, correct=False),
    )
    assert formed(part, Group(Task("t", ()), rollouts, scores)) == [(0, 0, 3)]


def test_given_pairs_are_as_given():
    shown = graded(1.0, 0.0, id=4)
    assert formed(given_pairs(), shown) == [(4, 0, 1)]
    assert formed(given_pairs(), graded(0.0, 1.0)) == [(0, 1, 0)]
    assert formed(given_pairs(), graded(1.0, None)) == []
    with pytest.raises(DataError, match="got 1 recorded completions; expected a chosen and a rejected one"):
        given_pairs()([graded(1.0)])


def test_given_pairs_that_say_the_same_teach_nothing():
    same = Group(Task("t", ()), (rollout((1, 0)), rollout((1, 0), 1)), (Score(1.0), Score(0.0)))
    assert formed(given_pairs(), same) == []


def test_what_is_random_is_a_function_of_seed_and_group():
    numbered = [Group(EIGHT.task, EIGHT.rollouts, EIGHT.scores, id=i) for i in range(20)]
    first = formed(pairs("one"), *numbered)
    assert formed(pairs("one"), *numbered) == first
    assert formed(pairs("one"), *reversed(numbered)) == first[::-1]  # and not of the groups beside it
    assert formed(pairs("one", seed=1), *numbered) != first
    assert {better for _, better, _ in first} == RIGHT
    assert {worse for _, _, worse in first} == WRONG


def test_a_completion_in_several_pairs_becomes_several_rows():
    examples = pairs("all")([EIGHT])
    assert len(examples) == 30
    batch = pack(examples)
    assert batch.pairs.tolist() == [[2 * i, 2 * i + 1] for i in range(15)]


@pytest.mark.parametrize("name", PAIRINGS)
def test_every_pairing_by_name_compares_two(name):
    made = PAIRINGS[name]()
    assert made.siblings == 2
    assert made.shown is (made.label == "given_pairs()")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "best"}, "got mode 'best'; expected one of one, disjoint, all, hard, length_matched, shared_prefix"),
        ({"cap": 0}, "got cap=0; expected at least 1"),
        ({"max_malformed": 1.5}, "got max_malformed=1.5; expected a share between 0 and 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        pairs(**options)


BODY = st.tuples(st.integers(1, 3), st.integers(1, 3))
ROWS = st.lists(st.tuples(BODY, st.sampled_from([True, False, None]), st.sampled_from(["4", "5", None])), max_size=7)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=4), st.sampled_from(sorted(MODES)), st.integers(0, 3))
def test_whatever_the_groups_pairs_are_pairs(groups, mode, seed):
    """Different completions of one group, correct against wrong, once each; `pack` ties them."""
    made = [group(*rows, id=i) for i, rows in enumerate(groups)]
    examples = pairs(mode, seed=seed, max_malformed=1.0)(made)
    found = formed(pairs(mode, seed=seed, max_malformed=1.0), *made)
    assert len(set(found)) == len(found)
    for number, better, worse in found:
        right, wrong = made[number].rollouts[better], made[number].rollouts[worse]
        assert right.tokens != wrong.tokens
        assert made[number].scores[better].reward >= made[number].scores[worse].reward
    if examples:
        assert len(pack(examples).pairs) == len(found)
