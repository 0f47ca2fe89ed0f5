"""Fixtures that more than one part of the suite needs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
# processes of pytest-xdist are told that they have 80 columns; commands under test write as into a file
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real data sets (gsm8k/, svamp/, arc_agi/), which are not part of the repository."""
    folder = Path(os.environ.get("MAIEUTIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets at {folder}; set MAIEUTIC_DATA to a folder with gsm8k/ and svamp/ to run this test")
    return folder
