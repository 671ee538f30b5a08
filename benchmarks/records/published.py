"""Numbers from papers, each with its source and protocol. They never stand in a column of this suite's own."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.machine.paths import PUBLISHED

COLUMNS = ("method", "base_percent", "pruned_percent", "pruned_sd_percent", "speedup", "protocol", "source")

RESNET56, RESNET50 = "resnet56-cifar10", "resnet50-imagenet"


def read_published(name: str, folder: Path = PUBLISHED) -> pd.DataFrame:
    """Read quoted numbers, in per cent as printed; speedup is dense MACs over pruned MACs.

    Raises:
        ValueError: A column is missing, or a row has no source or no protocol.
    """
    path = folder / f"{name}.csv"
    table = pd.read_csv(path)
    if tuple(table.columns) != COLUMNS:
        raise ValueError(f"{path} has the columns {list(table.columns)}; they must be {list(COLUMNS)}")
    silent = table[table["source"].isna() | table["protocol"].isna()]
    if len(silent):
        raise ValueError(f"{path}: rows {list(silent['method'])} have no source or no protocol")
    return table
