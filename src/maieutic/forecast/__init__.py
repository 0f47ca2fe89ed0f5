"""Before a run starts: what it will take of memory and time, and of one that has gone on, whether that came true.

    config ─ reading ─► StageInputs ─ predict ─► StageForecast          formulas: memory, work
                            │                        │
                          needs ─► remedies     happened, trial         measured: measure (the machine), a run's store

    sizes    a model in numbers, read off an outline that has no weights
    store    the sampler's key-value store, asked of the real one over tensors without memory
    memory   weights, gradients, optimiser, activations, logits: bytes
    work     operations, bytes moved and calls of each phase: seconds, at the rates of a machine

(A comparison's plan, `maieutic.compare.plan`, is another thing: which runs there will be.)
"""
