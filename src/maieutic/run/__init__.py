"""A run on disk: what happened (`store`), where to go on from (`checkpoints`), and the folder of both (`directory`)."""
