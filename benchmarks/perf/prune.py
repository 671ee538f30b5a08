"""Tracing, selection and surgery as the network grows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import find_builder, input_shape
from benchmarks.perf.measure import Candidate, Settings, quiet_couplings
from oicsr import (
    Coupling,
    PruningPlan,
    out_in_energy,
    remove_channels,
    select_channels,
)

FAMILY = ("resnet20", "resnet32", "resnet56", "resnet110")

MODELS = (*FAMILY, "imagenet-resnet50")

MACS_KEPT = 0.6

STAGES = ("tracing", "selection", "surgery")

NOTE = (
    f"Processor seconds (one thread), median, to find the couplings, to select channels down to {MACS_KEPT:.0%} of the "
    "MACs, and to build the smaller network; on an idle machine they are seconds, and another program on the same core "
    "does not count in them. `wall s` is what the clock said. The last rows fit total = a + b x (channels / 1000) over "
    "the CIFAR ResNets and over all."
)


def run(settings: Settings) -> list[dict[str, Any]]:
    """Return a row per network, and the fits."""
    names = settings.models or MODELS
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    channels: dict[str, int] = {}
    _once(names[0])  # the first trace of a process loads the exporter
    for _ in range(settings.repeats):
        for name in names:  # interleaved
            seconds, channels[name] = _once(name)
            rounds[name].append(seconds)
    rows = []
    for name in names:
        row: dict[str, Any] = {"model": name, "channels": channels[name]}
        for stage in STAGES:
            row[f"{stage} s"] = round(statistics.median(r[stage] for r in rounds[name]), 4)
        row["total s"] = round(statistics.median(sum(r[stage] for stage in STAGES) for r in rounds[name]), 4)
        row["wall s"] = round(statistics.median(r["wall"] for r in rounds[name]), 4)
        rows.append(row)
    family = [row for row in rows if row["model"] in FAMILY]
    return rows + [
        fit(part, label) for part, label in ((family, "fit, CIFAR ResNets"), (rows, "fit, all")) if len(part) > 2
    ]


def _once(name: str) -> tuple[dict[str, float], int]:
    """Return the seconds of each stage on a fresh network, and its channels."""
    torch.manual_seed(0)
    model, example = find_builder(name)(10), torch.zeros(1, *input_shape(name))
    found: list[Coupling] = []
    plans: list[PruningPlan] = []
    start = time.perf_counter()
    seconds = {
        "tracing": processor_seconds(lambda: found.extend(quiet_couplings(model, example))),
        "selection": processor_seconds(lambda: plans.append(_select(model, found, example))),
        "surgery": processor_seconds(lambda: remove_channels(model, plans[0])),
    }
    seconds["wall"] = time.perf_counter() - start
    return seconds, sum(coupling.num_channels for coupling in found)


def processor_seconds(candidate: Candidate) -> float:
    """Return the CPU time of one call on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    candidate()
    spent = time.process_time() - start
    torch.set_num_threads(threads)
    return spent


def _select(model: nn.Module, couplings: Sequence[Coupling], example: Tensor) -> PruningPlan:
    scores = out_in_energy(model, couplings)
    return select_channels(scores, couplings, model, example, macs_kept=MACS_KEPT, max_removed=0.7)


def fit(rows: Sequence[dict[str, Any]], label: str) -> dict[str, Any]:
    """Return the least-squares line of total seconds over thousands of channels, with its R²."""
    x = [row["channels"] / 1000 for row in rows]
    y = [row["total s"] for row in rows]
    slope, intercept = statistics.linear_regression(x, y)
    r_squared = statistics.correlation(x, y) ** 2
    line = f"{intercept:.3f} + {slope:.3f} x (channels / 1000)"
    return {"model": label, "line": line, "R²": round(r_squared, 4)}
