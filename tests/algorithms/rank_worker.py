"""One of two processes that share every row's optimiser batch; started by test_ranks.py.

    python rank_worker.py RANK WORLD FOLDER

Each takes the units of its rank, sums its gradient, and all add them up. Rank 0 writes, for each row of the table, how
far the sum is from the gradient of the whole batch: FOLDER/distances.json.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from maieutic.models.causal import load_causal
from maieutic.models.small import tiny_folder


def load_invariance():
    """The module that has every row's options, batch and gradient."""
    spec = importlib.util.spec_from_file_location("invariance", Path(__file__).with_name("test_invariance.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(rank, world, folder):
    """Compare, row by row."""
    torch.set_num_threads(1)
    rows = load_invariance()
    # before they meet: among several ranks, transformers lets only the first one save a model
    model = load_causal(tiny_folder("llama", folder / f"rank-{rank}"), dtype="float64", device="cpu")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    distances = {}
    for case in rows.CASES:
        name, options = case.values
        algorithm, learner = rows.made(model, name, options)
        batch = rows.finished(algorithm, rows.packed(algorithm, learner, later=True))
        units = torch.unique(batch.units)
        mine = torch.isin(batch.units, units[rank::world]).nonzero().flatten()
        total, _ = rows.gradient(algorithm, learner, batch.rows(mine))
        dist.all_reduce(total)
        if rank == 0:
            whole, _ = rows.gradient(algorithm, learner, batch)
            distances[case.id] = {
                "length": float(whole.norm()),
                "share": len(mine) / batch.size,
                "distance": float((total - whole).norm() / whole.norm()),
            }
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        (folder / "distances.json").write_text(json.dumps(distances))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
