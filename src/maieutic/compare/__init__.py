"""Comparisons: several arms × seeds on one task at equal cost, and what the results allow to say.

    comparison.toml ─► plan ─► execute (a run a seed and arm) ─► analyse ─► verdict
                                                                       └─► page, tables, JSON
    sweep.toml ─► sweep: a plan whose arms are the settings of a grid

Every arm of a seed starts from the same model, meets the same tasks in the same order, and is evaluated on the same
problems with the same random numbers: differences between arms are paired.
"""
