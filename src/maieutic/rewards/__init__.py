"""How rollouts are judged: `answers` (verifier), `format`, `compose` (weighted, gate), `shaping` (penalties), `lift`
(@reward), `latex`."""

from maieutic.rewards.answers import AnswerVerifier, canonical, equivalent, extract_flexible, extract_strict
from maieutic.rewards.compose import answer_reward, gate, judge_group, weighted
from maieutic.rewards.format import required, think_format
from maieutic.rewards.lift import FailureBudget, load_reward, reward
from maieutic.rewards.shaping import missing_eos, repetition, soft_overlong, too_long

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
    "missing_eos",
    "repetition",
    "required",
    "reward",
    "soft_overlong",
    "think_format",
    "too_long",
    "weighted",
]
