"""maieutic teaches language models to reason with reinforcement learning.

    from maieutic import LocalBackend, Optimiser, Roller, Sampled, answer_reward, arithmetic, grpo, load_causal
    from maieutic.train import train

Names are loaded when they are first used, so `import maieutic` itself is light. Functions that bear the name of their
module (`train`, `pack`, `evaluate`) are imported from it.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

#: Public name → the module that defines it.
_HOME = {
    **dict.fromkeys(("Batch", "Example", "Finish", "Group", "Message", "Outputs", "Rollout", "Score", "Step", "Task",
                     "Verdict"), "types"),
    **dict.fromkeys(("MaieuticError",), "errors"),
    **dict.fromkeys(("Completion", "Policy", "Sampling"), "protocols"),
    **dict.fromkeys(("Algorithm", "Credit", "Loss", "Select", "Update", "Weigh", "needs"), "core.parts"),
    **dict.fromkeys(("ALGORITHMS", "cispo", "dapo", "distil", "dpo", "dr_grpo", "expert_iteration", "gdpo",
                     "gkd", "grpo", "gspo", "gspo_token", "ipo", "lite_ppo", "make_algorithm",
                     "on_policy_distillation", "orpo", "ppo", "rcrl", "reinforce", "reinforce_plus_plus",
                     "reinforce_plus_plus_baseline", "rejection_sampling", "rest_em", "rloo", "rpo", "sapo",
                     "sft", "simpo", "star", "trpo"), "algorithms"),
    **dict.fromkeys(("Curriculum",), "curriculum"),
    **dict.fromkeys(("Mixed", "Recorded", "RecordedPairs", "Sampled"), "sources"),
    **dict.fromkeys(("Rationalised",), "rationalise"),
    **dict.fromkeys(("Roller",), "rollout"),
    **dict.fromkeys(("Conditioned",), "environments.conditioned"),
    **dict.fromkeys(("Labels",), "steps"),
    **dict.fromkeys(("MonteCarlo", "PrefixScores", "StepRewards"), "step_rewards"),
    **dict.fromkeys(("Evaluation", "difference", "evaluate_sync"), "evaluate"),
    **dict.fromkeys(("arithmetic", "file", "gsm8k", "hub", "make_taskset", "mawps_asdiv", "mixture", "shuffled",
                     "svamp", "take"), "tasks"),
    **dict.fromkeys(("AnswerVerifier",), "rewards.answers"),
    **dict.fromkeys(("answer_reward", "gate", "weighted"), "rewards.compose"),
    **dict.fromkeys(("reward",), "rewards.lift"),
    **dict.fromkeys(("think_format",), "rewards.format"),
    **dict.fromkeys(("missing_eos", "repetition", "soft_overlong", "too_long"), "rewards.shaping"),
    **dict.fromkeys(("corrected", "filtered", "masked", "off_policy_sequence_mask", "truncated"), "core.corrections"),
    **dict.fromkeys(("load_causal", "save_causal"), "models.causal"),
    **dict.fromkeys(("LoRA",), "models.lora"),
    **dict.fromkeys(("SmallModel", "build_small"), "models.small"),
    **dict.fromkeys(("LocalBackend", "Optimiser", "SeparateCritic", "ValueHead"), "backends.local"),
    **dict.fromkeys(("Config", "read_config"), "config"),
}  # fmt: skip

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'maieutic' has no attribute {name!r}")
    return getattr(importlib.import_module(f"maieutic.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
