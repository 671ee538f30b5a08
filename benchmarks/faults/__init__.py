"""Fault injection: sweeps that are killed on purpose, and what was lost."""
