"""A run, told: what was trained, how far it came, what was measured, and what the model wrote.

    run folder ─► read_run ─► RunView ─┬─► terminal     curves and tables as text
                                       ├─► data         all of it as JSON
                                       └─► html         one file that needs nothing else

Everything here only reads the run, also while it is being written, and needs no torch.
"""

from maieutic.report.html import write_report
from maieutic.report.reading import RunView, read_run

__all__ = ["RunView", "read_run", "write_report"]
