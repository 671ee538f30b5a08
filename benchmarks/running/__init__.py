"""Sweeps and runs: cells, stages, checkpoints, tuning, engines."""
