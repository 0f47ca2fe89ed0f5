"""What is made of the scores of steps before a policy learns from them: the same scores, spent in six ways.

    form        reward of step k               added to the outcome      a policy can earn by
    --------------------------------------------------------------------------------------------------------
    sum         p_k                            –                         adding steps: each is one more p
    mean        p_k / K                        –                         adding steps that are better than the mean
    potential   Φ(s_k) − Φ(s_{k−1})            –                         nothing but the outcome: the sum is constant
    min         –                              min_k p_k                 making the worst step better
    last        –                              p_K                       what the last step's score is earned by
    prod        –                              Π_k p_k                   leaving steps out: none raises it

p_k is the score of step k (a process reward model's probability, an estimate of the value there), 1 … K. Which of them
is safe is a property of the form and not of the model: a perfect process reward model with "sum" still pays for length
(`python -m benchmarks step_supervision --only c`).

Potential-based shaping (Ng, Harada & Russell, 1999) with Φ(s_k) = p_k at the end of step k, Φ of the prompt `start`,
and Φ = 0 where the rollout ends: at every token the rewards that are still to come change by −Φ of where it stands, a
baseline. So the optimal policy and the expected gradient stay what they are with the outcome alone, at γ = 1; what is
gained is that `gae` with λ < 1 hears of a step at once. Whatever p_K is, it is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from maieutic.errors import ConfigError, UnknownName
from maieutic.protocols import Reward
from maieutic.rewards.aggregate import AGGREGATES, Aggregate
from maieutic.rewards.compose import judge_group
from maieutic.types import Finish, Rollout, Score, Task

#: (scores p₁ … p_K, K ≥ 1, and whether the length limit cut) → (what the outcome gets, the rewards of the K steps or
#: none).
Form = Callable[[Sequence[float], bool], tuple[float, Sequence[float]]]


def potential(start: float = 0.0, bootstrap: bool = False) -> Form:
    """Φ(s_k) − Φ(s_{k−1}), with Φ 0 at the end. `start` is Φ of the prompt: it moves all rewards of a task alike.

    `bootstrap`: where the credit goes on with a critic's value of what the length limit cut (`gae`), nothing has ended
    there, and the last state keeps its potential.
    """
    if not math.isfinite(start):
        raise ConfigError(f"potential: got start={start}; expected a finite number")

    def differences(scores: Sequence[float], cut: bool) -> tuple[float, Sequence[float]]:
        last = scores[-1] if cut and bootstrap else 0.0
        after = [*scores[:-1], last]
        return 0.0, [new - old for new, old in zip(after, [start, *after])]

    return differences


def _whole(how: Aggregate) -> Form:
    return lambda scores, _: (float(how(scores)), ())


#: Forms by name.
FORMS: Mapping[str, Form] = {
    "sum": lambda scores, _: (0.0, scores),
    "mean": lambda scores, _: (0.0, [score / len(scores) for score in scores]),
    "potential": potential(),
    **{name: _whole(AGGREGATES[name]) for name in ("min", "last", "prod")},
}


class Stepwise:
    """`judge` with its step rewards taken for scores of steps, and spent in a form: a name in `FORMS`, or a `Form`.

        reward = outcome · judge's + coef · what the form adds        step rewards = coef · the form's

    The part "steps" is what they come to, for the log. A rollout of which no step was scored is unscorable where the
    outcome would need one, and else left as it is. Raises UnknownName, and ConfigError for weights that are not finite.

    `gives_steps`: whether the rewards stay at their steps, so that the credit must be one that spends them.
    """

    def __init__(self, judge: Reward, form: str | Form = "potential", coef: float = 1.0, outcome: float = 1.0) -> None:
        if isinstance(form, str) and form not in FORMS:
            raise UnknownName("form of step rewards", form, FORMS)
        if not (math.isfinite(coef) and math.isfinite(outcome)):
            raise ConfigError(f"Stepwise: got coef={coef}, outcome={outcome}; expected finite numbers")
        self.judge, self.coef, self.outcome = judge, coef, outcome
        self.form = FORMS[form] if isinstance(form, str) else form
        self.gives_steps = bool(self.form([0.5], False)[1])

    async def __call__(self, task: Task, rollouts: Sequence[Rollout]) -> list[Score]:
        """The scores `[G]`."""
        scores = await judge_group(self.judge, task, rollouts)
        return [self._spent(score, rollout.finish is Finish.LENGTH) for score, rollout in zip(scores, rollouts)]

    def _spent(self, score: Score, cut: bool) -> Score:
        if score.reward is None:
            return score
        if not score.step_rewards:
            if self.gives_steps:
                return replace(score, reward=self.outcome * score.reward)
            return replace(score, reward=None, note="; ".join(filter(None, (score.note, "no step was scored"))))
        ordered = sorted(score.step_rewards)
        added, steps = self.form([value for _, value in ordered], cut)
        return replace(
            score,
            reward=self.outcome * score.reward + self.coef * added,
            step_rewards=tuple((at, self.coef * value) for (at, _), value in zip(ordered, steps)),
            parts={**score.parts, "steps": self.coef * (added + sum(steps))},
        )
