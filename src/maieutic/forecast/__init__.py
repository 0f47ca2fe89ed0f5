"""Before a run starts: what it will take of memory and time."""
