"""A1, A2: two processes that share an optimiser batch only add: the sum of their gradients is the gradient."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maieutic.algorithms import ALGORITHMS

WORKER = Path(__file__).with_name("rank_worker.py")
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def distances(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, str(rank), "2", folder], env=environment, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return json.loads((folder / "distances.json").read_text())


def test_two_gloo_ranks_add_up_to_the_whole_gradient(distances):
    for case, found in distances.items():
        assert found["length"] > 1e-6, case
        assert 0.2 < found["share"] < 0.8, case  # rank 0 really had only a part
        assert found["distance"] < TOLERANCE, case


def test_every_row_was_shared(distances):
    assert {case.partition("-")[0] for case in distances} == set(ALGORITHMS)
