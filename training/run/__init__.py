"""One run of a trainer: its configuration, steps, checkpoints, folder, log and processes."""
