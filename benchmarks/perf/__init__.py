"""Micro-benchmarks of speed: each against its peers, measured in turns on the same machine."""

from benchmarks.perf.command import main

__all__ = ["main"]
