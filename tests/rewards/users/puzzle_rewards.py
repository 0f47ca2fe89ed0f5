"""A scorer in the shape of reasoning-gym's data sets, without the library."""


class Puzzle:
    def score_answer(self, answer, entry):
        if answer == entry["answer"]:
            return 1.0
        return 0.1 if answer and entry["metadata"].get("level") == 2 else 0.0


puzzle = Puzzle()
by_method = puzzle.score_answer


def case_insensitive(answer, entry):
    return float(answer.lower() == entry["answer"].lower())
