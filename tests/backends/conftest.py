from collections.abc import Callable
from pathlib import Path

import pytest

from maieutic.models.causal import CausalModel, load_causal
from maieutic.models.lora import LoRA
from maieutic.models.small import tiny_folder


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny random model (32 tokens, width 32, 2 layers), made once a session."""
    root = tmp_path_factory.mktemp("tiny")
    made: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in made:
            made[architecture] = tiny_folder(architecture, root)
        return made[architecture]

    return folder


@pytest.fixture
def tiny(tiny_folders: Callable[[str], Path]) -> Callable[..., CausalModel]:
    """`tiny("llama")` loads a fresh copy of a tiny model; `dtype` and `lora` as in `load_causal`."""

    def load(architecture: str = "llama", dtype: str = "float32", lora: LoRA | None = None) -> CausalModel:
        return load_causal(tiny_folders(architecture), dtype=dtype, lora=lora, device="cpu")

    return load
