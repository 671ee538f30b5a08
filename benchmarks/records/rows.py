"""The rows of the files that lie beside a record."""

from __future__ import annotations

from dataclasses import dataclass

CURVE_POINTS = 41  # of the cumulative energy in a record's structure


@dataclass(frozen=True)
class EpochRow:
    """One line of `history.csv`."""

    phase: str
    step: int
    epoch: int
    learning_rate: float
    train_loss: float
    penalty: float
    train_top1: float
    val_loss: float
    val_top1: float
    seconds: float


@dataclass(frozen=True)
class ChannelRow:
    """A channel before any removal: its energies on both sides, and whether it stays to the end."""

    coupling: str
    channel: int
    out: float
    inward: float
    kept: bool = True
