"""The folder of a run: where it is, resuming, checkpoints, preemption, loggers."""
