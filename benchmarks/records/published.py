"""Numbers from papers, each with its source and protocol; never in one column with this suite's own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from benchmarks.machine.paths import PUBLISHED

COLUMNS = ("method", "base_percent", "pruned_percent", "pruned_sd_percent", "speedup", "protocol", "source")

DENSE_COLUMNS = ("model", "dataset", "top1_percent", "dense_epochs", "pruning_epochs", "source")

RESNET56, RESNET50, DENSE = "resnet56-cifar10", "resnet50-imagenet", "dense"


def read_published(name: str, folder: Path = PUBLISHED) -> pd.DataFrame:
    """Read quoted numbers, in per cent as printed; speedup is dense MACs over pruned MACs.

    Raises:
        ValueError: A column is missing, or a row has no source or no protocol.
    """
    return _read(folder / f"{name}.csv", COLUMNS, "method", ("source", "protocol"))


def _read(path: Path, columns: tuple[str, ...], name: str, needed: tuple[str, ...]) -> pd.DataFrame:
    table = pd.read_csv(path)
    if tuple(table.columns) != columns:
        raise ValueError(f"{path} has the columns {list(table.columns)}; they must be {list(columns)}")
    silent = table[table[list(needed)].isna().any(axis=1)]
    if len(silent):
        raise ValueError(f"{path}: rows {list(silent[name])} have no {' or no '.join(needed)}")
    return table


@dataclass(frozen=True)
class PublishedDense:
    """How well a dense network does elsewhere, and how long the field trains it.

    Attributes:
        top1: In [0, 1].
        dense_epochs: Of the dense network, in the field's recipe.
        pruning_epochs: Of training with a regulariser and fine-tuning together, in the field's comparisons.
        source: Where the accuracy is printed.
    """

    top1: float
    dense_epochs: int
    pruning_epochs: int
    source: str


@cache
def published_dense(folder: Path = PUBLISHED) -> dict[tuple[str, str], PublishedDense]:
    """Return the published dense networks by model and data set.

    Raises:
        ValueError: A column is missing, or a row has no source.
    """
    table = _read(folder / f"{DENSE}.csv", DENSE_COLUMNS, "model", ("source",))
    return {
        (str(row["model"]), str(row["dataset"])): PublishedDense(
            float(row["top1_percent"]) / 100, int(row["dense_epochs"]), int(row["pruning_epochs"]), str(row["source"])
        )
        for row in table.to_dict("records")
    }
