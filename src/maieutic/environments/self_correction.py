"""Two attempts at a task: answer, be told that there may be a mistake, answer again.

    task ─► attempt 1 ─► "There may be a mistake …" ─► attempt 2        reward  r₂ + α (r₂ − r₁)

Learning to correct oneself (SCoRe, arXiv 2409.12917). The instruction is the same whether the first attempt was right
or wrong, and says nothing of it. With α > 0 putting right is worth more than being right twice, and spoiling costs more
than being wrong twice; with α = 0 the best policy under the reward may answer the same twice. Reward is paid for the
episode, so both turns are credited with it. The two stages of SCoRe are two stages of a config:

    [tasks.correct]                                    [[stages]]                [[stages]]
    taskset = "arithmetic"                             name = "apart"            name = "together"
    environment = "self_correction"                    algorithm = "grpo"        algorithm = "grpo"
    environment_options = { alpha = 0.0 }              tasks = "correct"         tasks = "corrected"

the first with `options = { beta_first_turn = 0.1 }`, which keeps its first turn near the model that it began with
(`core.turns`), the second on tasks with `alpha = 1.0`.

It differs from the paper: there the bonus is added to the second turn's reward alone, and both stages have a KL in both
turns (`beta`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from maieutic.errors import ConfigError
from maieutic.protocols import Reply, Verifier
from maieutic.types import Message, Score, Task, Verdict

AGAIN = "There may be a mistake in this solution. If there is one, put it right. Write the whole solution again."


@dataclass(frozen=True)
class SelfCorrection:
    """The two turns. `verifier` is the taskset's; `alpha` weighs the bonus; `instruction` is said between the turns.

    A model that is built from scratch reads only words that it knows: give it an instruction of its own vocabulary.
    """

    verifier: Verifier
    alpha: float = 1.0
    instruction: str = AGAIN
    max_turn_length: int | None = None
    name: str = field(default="self_correction", init=False)
    max_turns: int = field(default=2, init=False)
    scores: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < float("inf") or not self.instruction.strip():
            raise ConfigError(
                f"self_correction: got alpha={self.alpha}, instruction={self.instruction!r}; expected alpha of 0 or "
                "more, and words to say"
            )

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The words that it says."""
        return tuple(dict.fromkeys(self.instruction.split()))

    async def start(self, task: Task, seed: str) -> TwoAttempts:  # noqa: ARG002 - there is no chance in it
        """An episode; there is nothing random about it."""
        return TwoAttempts(self, task)


class TwoAttempts:
    """One episode; see `maieutic.protocols.Episode`."""

    def __init__(self, rules: SelfCorrection, task: Task) -> None:
        self.rules, self.task, self.opening = rules, task, task.prompt
        self.verdicts: list[Verdict] = []

    async def step(self, message: Message) -> Reply:
        """The first attempt is answered with the instruction, whatever it is worth; the second one ends it."""
        self.verdicts.append(self.rules.verifier(self.task, message.content))
        if len(self.verdicts) < 2:
            return Reply((Message("user", self.rules.instruction),))
        return Reply(done=True)

    async def score(self) -> Score:
        """r₂ + α (r₂ − r₁). An attempt that was cut, or for which no room was left, is worth 0."""
        worth = [float(verdict.correct) for verdict in self.verdicts] + [0.0, 0.0]
        first, second = worth[:2]
        parts = {
            "first": first,
            "second": second,
            "mended": float(second > first),
            "broken": float(second < first),
        }
        note = "" if len(self.verdicts) == 2 else "no second attempt was finished"
        last = self.verdicts[1].answer if len(self.verdicts) == 2 else None
        reward = second + self.rules.alpha * (second - first)
        return Score(reward, correct=bool(second), parts=parts, answer=last, note=note)

    async def close(self) -> None:
        """It holds nothing."""
