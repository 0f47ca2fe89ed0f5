"""A run, told: what was trained, how far it came, what was measured, and what the model wrote.

    run folder ─► read_run ─► RunView ─┬─► terminal     curves and tables as text
                                       ├─► data         all of it as JSON
                                       └─► html         one file that needs nothing else

Everything here only reads, also while the run is being written, and needs no torch.
"""
