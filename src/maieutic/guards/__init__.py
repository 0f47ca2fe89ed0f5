"""Guards: who looks on while a policy trains, and says when it learns to please the reward instead.

    Step ─ measures ─► {"guards/truth": 0.31, "guards/paid": 0.62, …} ─ Guards.add ─► [Alarm, …]

`measures` turns what a step has anyway (groups and metrics) into a few numbers; `rules` is the table of guards, each a
pure function of the numbers so far with a threshold, a message and a remedy; `watch` asks them all after each step.
All of their state is those numbers, so a run that stored them sees the same alarms again, also with other thresholds.
"""

from maieutic.guards.measures import Truth, held_out_truth, measures
from maieutic.guards.rules import GUARDS, Guard
from maieutic.guards.trend import Finding, History
from maieutic.guards.watch import ACTIONS, Alarm, Guards, Rule, chosen_rules, showing

__all__ = [
    "ACTIONS",
    "GUARDS",
    "Alarm",
    "Finding",
    "Guard",
    "Guards",
    "History",
    "Rule",
    "Truth",
    "chosen_rules",
    "held_out_truth",
    "measures",
    "showing",
]
