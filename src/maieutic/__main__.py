"""`python -m maieutic` is `maieutic`."""

from __future__ import annotations

import sys

from maieutic.cli import main

if __name__ == "__main__":
    sys.exit(main())
