"""How runs are run: cells, stages, checkpoints, strengths, engines."""
