"""Running the checks over a trainer, and saying what was found."""

from __future__ import annotations

from dataclasses import dataclass

from maieutic.conformance.checks import CHECKS
from maieutic.conformance.subject import Claims, Differs, Trainer
from maieutic.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Report:
    """What was found: check → "" where the trainer passed, else what is wrong."""

    found: dict[str, str]

    @property
    def failures(self) -> dict[str, str]:
        """The checks that failed, with what they say."""
        return {name: said for name, said in self.found.items() if said}

    @property
    def passed(self) -> bool:
        """Whether none failed."""
        return not self.failures

    def __str__(self) -> str:
        width = max(map(len, self.found))
        return "\n".join(f"{name:<{width}}  {said or 'passed'}" for name, said in self.found.items())


def examine(trainer: Trainer, claims: Claims = Claims()) -> Report:  # noqa: B008 - frozen
    """Run every check that a trainer's claims call for. What a trainer itself raises passes through."""
    if claims.rewards not in CHECKS:
        raise UnknownName("kind of rewards", claims.rewards, CHECKS)
    found: dict[str, str] = {}
    for name, check in CHECKS[claims.rewards].items():
        try:
            check(trainer, claims)
            found[name] = ""
        except Differs as wrong:
            found[name] = str(wrong)
    return Report(found)
