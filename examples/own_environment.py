"""A game of one's own: a class whose objects are games.

    maieutic train examples/own_environment.toml

What `step` returns is what the model is told before its next turn; a Reply with `done=True` ends the game. A parameter
`task` of the class is the task of the game, and `score` says how it went: True is a reward of 1, and right.
"""

from maieutic.protocols import Reply


class Guess:
    """Guess the task's answer, a number from 1 to 8, by being told higher or lower."""

    max_turns = 4
    max_turn_length = 4  # tokens
    vocabulary = ("higher", "lower", "pardon", *"12345678")  # read by the tokenizer of a model from scratch

    def __init__(self, task):
        self.secret, self.guess = int(task.answer), 0

    def step(self, message):
        """The model's turn, and what it is told of it."""
        self.guess = int(message.content) if message.content.isdecimal() else 0
        if self.guess == self.secret:
            return Reply(done=True)
        return "pardon" if not self.guess else "higher" if self.guess < self.secret else "lower"

    def score(self):
        """How it went."""
        return self.guess == self.secret
