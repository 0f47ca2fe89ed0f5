"""Games that were left: what the turns are worth that they lack.

Where turns are paid, a game is worth the sum over its turns, and an episode that stops has no more of them. Who loses
by each further turn, or earns less by it than the siblings do, would then do well to leave: to write on and on until
the length limit cuts the turn, which ends the episode. So a turn that was cut counts as an invalid one, and so does
each turn that there was still to be:

    forfeit of a turn   min(0, the least that any turn of the group was paid)

which is never more than playing on as badly as anybody did. A game that ended by its own rules lacks nothing, be it
won early or lost: nothing was left of it. Where an invalid turn ends it, the environment says so (`Reply.lacking`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from maieutic.environments.episodes import Played


def forfeited(played: Sequence[Played]) -> list[Played]:
    """The episodes of a group, each with the forfeits of the turns that it lacks; as they are where no turn was paid.

    >>> [each.forfeits for each in forfeited([paid_1_and_minus_2, cut_with_three_turns_to_come])]
    [(), (-2.0, -2.0, -2.0)]
    """
    paid = [reward for each in played for _, reward in each.turn_rewards]
    if not paid:
        return list(played)
    worst = min(0.0, *paid)
    return [replace(each, forfeits=(worst,) * each.lacking) for each in played]
