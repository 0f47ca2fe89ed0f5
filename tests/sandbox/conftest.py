"""A sandbox for the tests of this folder."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from maieutic.sandbox import Sandbox

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def sandbox():
    """One for a whole file: it is as good as new after every program."""
    made = Sandbox()
    yield made
    made.close()
