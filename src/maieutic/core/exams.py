"""Learning by Teaching: choosing an answer by how well students do that were shown how it was found.

A teacher writes several pairs (rationale, answer) for one problem; each pair is shown to students as a solved example,
and its score is how many exam answers they then get right (M1 of arXiv 2406.14629). Students are black boxes: nothing
here needs a log-prob.

    max    the answer of the pair with the highest score
    sum    the answer whose pairs have the highest sum of scores: a vote weighted by scores
    avg    the answer whose pairs have the highest mean score
    maj    the answer that most pairs have: the plain vote, which asks no student

Ties go to the answer that more pairs have, then to the one that was written first. Letters: `N` pairs of a problem.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

#: (scores of the pairs that have an answer) → what the answer is chosen by.
RULES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "max": max,
    "sum": sum,
    "avg": lambda scores: sum(scores) / len(scores),
    "maj": len,
}


def select_answer(
    answers: Sequence[Hashable | None], scores: Sequence[float], rule: Callable[[Sequence[float]], float]
) -> Hashable | None:
    """The answer that `rule`, one of `RULES`, chooses among the answers `[N]` with exam scores `[N]`.

    An answer of None (nobody could read one) is never chosen; None where all are. Raises ValueError for lists of
    different lengths.
    """
    by_answer: dict[Hashable, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            by_answer.setdefault(answer, []).append(score)
    if not by_answer:
        return None
    # the first of equals: dictionaries keep the order in which answers were met
    return max(by_answer, key=lambda answer: (rule(by_answer[answer]), len(by_answer[answer])))


def preferred(scores: Sequence[float], margin: float = 1.0, most: int | None = 1) -> list[tuple[int, int]]:
    """Pairs (chosen, rejected) of candidates `[N]` whose scores are at least `margin` apart, the widest first (M2).

    `most` bounds them (None: all). Of equally wide ones the first come first. Raises ValueError for a margin that is
    not positive: equal candidates prefer nothing.
    """
    if not margin > 0:
        raise ValueError(f"got margin={margin}; expected more than 0, since equal scores say nothing")
    wide = [(high - low, i, j) for i, high in enumerate(scores) for j, low in enumerate(scores) if high - low >= margin]
    ordered = sorted(wide, key=lambda each: (-each[0], each[1], each[2]))
    return [(i, j) for _, i, j in ordered[:most]]
