"""`maieutic reward …`: what is done with rewards beside training with them. Each command has a file of its own.

Nothing heavy is imported here: help and completion come at once.
"""

from __future__ import annotations

from collections.abc import Callable

from maieutic.cli.groups import group
from maieutic.cli.reward_audit import audit_reward
from maieutic.cli.reward_label import label_steps
from maieutic.cli.reward_train import train_reward
from maieutic.cli.reward_try import try_reward

#: Command → what it does, in the order in which `maieutic reward --help` lists them.
COMMANDS: dict[str, Callable[..., None]] = {
    "try": try_reward,
    "label": label_steps,
    "train": train_reward,
    "audit": audit_reward,
}

#: Command → what stands at the end of its help.
EXAMPLES: dict[str, list[str]] = {
    "try": [
        "maieutic reward try rewards.py:short arithmetic",
        "maieutic reward try rewards.py:short questions.jsonl --completion 'The answer is 4.'",
        "maieutic reward try answer arithmetic --model runs/my --samples 4 --json -",
    ],
    "label": [
        "maieutic reward label runs/my arithmetic --limit 500 --delimiter ' ;' --out steps.jsonl",
        "maieutic reward label models/sft gsm8k --search halving --hard --out steps.jsonl --resume",
    ],
    "train": [
        "maieutic reward train --data runs/my --kind outcome --model runs/my --out models/orm",
        "maieutic reward train --data steps.jsonl --kind process --model models/sft --out models/prm",
        "maieutic reward train --data pairs.jsonl --kind pairs --model models/sft --out models/rm --set centre=0.01",
    ],
    "audit": [
        "maieutic reward audit models/prm --data held-out.jsonl --html prm.html",
        "maieutic reward audit strict latex --run runs/my --export to-label.jsonl --size 200",
        "maieutic reward audit strict latex --labels labelled.jsonl",
    ],
}

reward = group(
    "reward",
    "Try rewards before a run trusts them; label steps; train and audit reward models.",
    COMMANDS,
    EXAMPLES,
)
