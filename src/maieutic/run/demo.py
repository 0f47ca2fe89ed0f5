"""The demo's config: word problems, a demonstrator who misreads, and a reward that can be checked."""

from __future__ import annotations

from maieutic.config import Config, parse_config


def demo_config(seed: int = 0) -> Config:
    """Fine-tune a 0.4 M parameter model on an imperfect demonstrator's solutions, then GRPO on fresh problems.

    The demonstrator misreads three kinds of sentence with probability 0.7 and slips in 3 % of the steps. Imitation
    copies that; the reward, which only says whether the final answer is right, removes it.
    """
    imperfect = {"taskset": "arithmetic", "demonstrations": "imperfect", "seed": seed, "size": 60_000}
    return parse_config(
        {
            "name": "demo",
            "seed": seed,
            "model": {"small": {"layers": 2, "width": 128, "context": 128}},
            "tasks": {
                "demonstrations": {**imperfect, "split": "train", "limit": 36_000},
                "practice": {**imperfect, "split": "train", "start": 36_000},
                "test": {"taskset": "arithmetic", "split": "test", "seed": seed, "limit": 500},
            },
            "stages": [
                {
                    "name": "sft",
                    "algorithm": "sft",
                    "tasks": "demonstrations",
                    "epochs": 1,
                    "prompts": 32,
                    "checkpoint_every": 200,
                    "optimiser": {
                        "kind": "muon",
                        "learning_rate": 5e-3,
                        "muon_learning_rate": 0.02,
                        "schedule": "cosine",
                        "final_fraction": 0.05,
                    },
                },
                {
                    "name": "rl",
                    "algorithm": "grpo",
                    "tasks": "practice",
                    "steps": 80,
                    "prompts": 32,
                    "num_generations": 8,
                    "max_completion_length": 40,
                    "checkpoint_every": 20,
                    "optimiser": {"learning_rate": 5e-4, "warmup_steps": 5, "schedule": "linear"},
                },
            ],
            "evaluation": {"tasks": "test", "samples": 8, "max_completion_length": 40, "at_start": True},
        },
        "the demo's config",
    )
