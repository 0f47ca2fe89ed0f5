"""Environments as people write them for TRL's `environment_factory`."""


class CounterEnv:
    def __init__(self):
        self.counter = 0

    def reset(self, **kwargs) -> str | None:
        self.counter = 0
        self.target = int(kwargs["answer"])
        return f" The target is {self.target}."

    def increment(self, step: int) -> int:
        """
        Increment the internal counter.

        Args:
            step: Value to add to the counter.

        Returns:
            The updated counter value.
        """
        self.counter += step
        return self.counter

    def _hidden(self):
        raise AssertionError("private methods are no tools")

    def get_reward(self) -> float:
        return 1.0 if self.counter == self.target else -0.5


class Library:
    """Books; its rewards are elsewhere."""

    def reset(self, prompt, level=0):
        self.level = level
        self.asked = prompt[-1]["content"]

    async def lookup(self, title: str) -> dict:
        """Look a book up.

        Args:
            title: the book's title
        """
        if title != "Emma":
            raise KeyError(title)
        return {"author": "Austen", "level": self.level, "asked": self.asked}


def make_counter():
    return CounterEnv()
