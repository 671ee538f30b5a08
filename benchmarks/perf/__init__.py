"""Micro-benchmarks of speed, each against its peers, interleaved on the same machine."""
