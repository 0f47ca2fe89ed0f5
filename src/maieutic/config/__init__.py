"""The config of a run: strict, typed, written in TOML.

    [model]                                   one of: path = "folder or Hub id"; small = { layers = 2, width = 128 }
    [tasks.NAME]                              taskset = "arithmetic", and that taskset's options
    [[stages]]                                algorithm = "grpo", tasks = "NAME", steps, prompts, num_generations, …
    [evaluation]                              tasks = "NAME", samples, limit
    [guards]                                  NAME = "pause", or a table: { action, threshold, window }

Stages run one after the other, each from the model of the one before. An unknown key is an error with a suggestion,
a wrong combination is refused with the remedy, and nothing that a user wrote is ever changed.
"""

from maieutic.config.guards import GuardConfig
from maieutic.config.reading import parse_config, parse_table, read_config, read_tables, write_toml
from maieutic.config.tables import (
    START,
    BudgetConfig,
    Config,
    CriticConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    OptimiserConfig,
    ReferenceConfig,
    SmallConfig,
    StageConfig,
    Strict,
    TasksConfig,
    ValidationConfig,
)
from maieutic.config.teachers import TeacherConfig

__all__ = [
    "START",
    "BudgetConfig",
    "Config",
    "CriticConfig",
    "EvaluationConfig",
    "GuardConfig",
    "LoraConfig",
    "ModelConfig",
    "OptimiserConfig",
    "ReferenceConfig",
    "SmallConfig",
    "StageConfig",
    "Strict",
    "TasksConfig",
    "TeacherConfig",
    "ValidationConfig",
    "parse_config",
    "parse_table",
    "read_config",
    "read_tables",
    "write_toml",
]
