"""Strength search: the same number of strengths for every method, judged on the validation split alone.

What is compared is accuracy before fine-tuning at the target MACs, of networks of seeds that no comparison uses. The
grid, all scores and the choice go into a record (`results/tuning/`) that experiments read their strengths from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.analysis.statistics import summarize
from benchmarks.config import Cell
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.provenance import provenance
from benchmarks.methods.registry import find_method
from benchmarks.records.strengths import SCHEMA, grid_of, read_tuning, tuning_path
from benchmarks.running.bench import Bench, splits_of
from benchmarks.running.outcome import resolved_config
from benchmarks.running.run import validate_pruned
from benchmarks.training.loop import DivergedError

TUNING_SEEDS = (1000,)  # far from those of any comparison

Scores = dict[str, dict[str, dict[str, list[float | None]]]]

Tell = Callable[[Cell, float, float | None], None]


def tune(bench: Bench, cells: Sequence[Cell], seeds: Sequence[int], tell: Tell) -> Path:
    """Try every strength of every method of an experiment at every target; write and return the tuning record.

    Args:
        bench: Where to train.
        cells: Runs of one experiment and profile, of any seed: their methods and targets are tuned.
        seeds: Networks that are trained for it.
        tell: Is told cell, strength and validation accuracy (None: training diverged) of each try.

    Raises:
        ValueError: The methods' grids differ in length.
    """
    pairs = {(cell.method, cell.macs_kept): cell for cell in cells if is_tuned(cell)}
    _check_grids({method: grid_of(cell, find_method(method)) for (method, _), cell in pairs.items()})
    path = tuning_path(bench.tuning, cells[0].experiment.name, cells[0].profile_name)
    record = read_tuning(path) if path.is_file() else _empty_record(cells[0], seeds, bench.device.type)
    for method, macs_kept in pairs:  # what is tuned anew, perhaps on another grid, replaces what was there
        record["scores"].get(method, {}).pop(f"{macs_kept:g}", None)
    for seed in seeds:
        for cell in pairs.values():
            for strength in grid_of(cell, find_method(cell.method)):
                top1 = _try(bench, replace(cell, seed=seed), strength)
                tell(replace(cell, seed=seed), strength, top1)
                _note(record["scores"], cell, strength, top1)
    for cell in pairs.values():
        scores = record["scores"][cell.method][f"{cell.macs_kept:g}"]
        record["chosen"].setdefault(cell.method, {})[f"{cell.macs_kept:g}"] = best_strength(scores)
    record["provenance"] = provenance(bench.device, splits_of(cells[0]).checksum)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())
    return path


def is_tuned(cell: Cell) -> bool:
    """Return whether a run's method has a strength of its own to choose."""
    method = find_method(cell.method)
    return method.has_strength and method.strength_of is None


def _check_grids(grids: dict[str, tuple[float, ...]]) -> None:
    if len({len(grid) for grid in grids.values()}) > 1:
        sizes = {method: len(grid) for method, grid in grids.items()}
        raise ValueError(f"every method needs as many strengths as any other, not {sizes}")


def _empty_record(cell: Cell, seeds: Sequence[int], device_type: str) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "experiment": cell.experiment.name,
        "profile": cell.profile_name,
        "criterion": "validation top-1 of the pruned network, before fine-tuning, mean over seeds",
        "seeds": list(seeds),
        "config": resolved_config(cell, find_method("none"), device_type),
        "scores": {},
        "chosen": {},
    }


def _try(bench: Bench, cell: Cell, strength: float) -> float | None:
    try:
        return validate_pruned(bench, cell, strength)
    except DivergedError:
        return None


def _note(scores: Scores, cell: Cell, strength: float, top1: float | None) -> None:
    target = scores.setdefault(cell.method, {}).setdefault(f"{cell.macs_kept:g}", {})
    target.setdefault(f"{strength:g}", []).append(top1)


def best_strength(scores: dict[str, list[float | None]]) -> float:
    """Return the strength of the highest mean score; of equals the smallest, and a diverged one never.

    Raises:
        ValueError: Training diverged at every strength.
    """
    means = {float(text): _mean(tries) for text, tries in scores.items()}
    usable = {strength: mean for strength, mean in means.items() if mean is not None}
    if not usable:
        raise ValueError(
            f"training diverged at every strength of the grid {sorted(means)}; give a grid of smaller ones"
        )
    return min(usable, key=lambda strength: (-usable[strength], strength))


def _mean(tries: list[float | None]) -> float | None:
    values = [value for value in tries if value is not None]
    return summarize(values).mean if len(values) == len(tries) else None
