"""How rollouts are judged: `answers` (verifier), `format`, `compose` (weighted, gate), `lift` (@reward), `latex`."""

from maieutic.rewards.answers import AnswerVerifier, canonical, equivalent, extract_flexible, extract_strict
from maieutic.rewards.compose import answer_reward, gate, judge_group, weighted
from maieutic.rewards.format import required, think_format
from maieutic.rewards.lift import FailureBudget, load_reward, reward

__all__ = [
    "AnswerVerifier",
    "FailureBudget",
    "answer_reward",
    "canonical",
    "equivalent",
    "extract_flexible",
    "extract_strict",
    "gate",
    "judge_group",
    "load_reward",
    "required",
    "reward",
    "think_format",
    "weighted",
]
