"""Conformance: does a trainer, ours or yours, compute the gradient that it claims to?

    from maieutic.conformance import Claims, examine

    report = examine(MyTrainer(), Claims(scale=1.0, kl="reverse", beta=0.05))
    print(report)                     # a line a check; `report.passed`, `report.failures`

A trainer is an object with `backward(model, rows, micro_batches)`; see `maieutic.conformance.subject`. The checks are
in `maieutic.conformance.checks`; what a trainer does not claim is left out. `of(algorithm)` is the trainer that a row
of our own table is.
"""

from maieutic.conformance.checks import CHECKS
from maieutic.conformance.examine import Report, examine
from maieutic.conformance.ours import of
from maieutic.conformance.rows import ragged, rows_of
from maieutic.conformance.subject import Claims, Differs, Rows, TableModel, Trainer, gradient_of

__all__ = [
    "CHECKS",
    "Claims",
    "Differs",
    "Report",
    "Rows",
    "TableModel",
    "Trainer",
    "examine",
    "gradient_of",
    "of",
    "ragged",
    "rows_of",
]
