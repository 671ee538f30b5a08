"""How much faster a pruned network trains and predicts, by the widths that it is left with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.config import Precision
from benchmarks.machine.memory import keep_freed_memory
from benchmarks.machine.precision import resolve_precision
from benchmarks.models import find_builder, input_shape
from benchmarks.perf.measure import Candidate, Settings, captured, in_turns, median_ms, median_ratio, quiet_couplings
from benchmarks.perf.steps import step_of
from benchmarks.training.step import autocast
from oicsr import count_macs, out_in_energy, remove_channels, select_channels

MODELS = ("resnet56", "vgg16", "mobilenetv2")

MACS_KEPT = 0.5

ROUNDINGS = (1, 8, 16)

TOLERANCE = 0.05  # of the target: wide networks come near it in multiples of 16, narrow ones do not come nearer

NOTE = (
    f"Training steps and predictions of networks with about {MACS_KEPT:.0%} of their MACs, chosen by out-in energy in "
    "an untrained network (the times depend on the widths alone), with exact widths and with widths in multiples of 8 "
    "and of 16; channels-last, in the precision that `auto` chooses. `x dense` is how many times as fast as the "
    "unpruned network, measured in the same rounds; `captured` steps are CUDA graphs, which hide the cost of launching "
    "small operations. `of MACs` is `x dense` over what the MACs promise."
)


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row per network and rounding."""
    for name in settings.models or MODELS:
        yield from _rows(name, settings)


def networks(name: str) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Return the dense and the pruned networks by widths, and why others are missing."""
    torch.manual_seed(0)
    model, example = find_builder(name)(10), torch.zeros(1, *input_shape(name))
    couplings = quiet_couplings(model, example, "all")
    scores = out_in_energy(model, couplings)
    found, missing = {"dense": model}, {}
    for rounding in ROUNDINGS:
        label = "exact" if rounding == 1 else f"multiples of {rounding}"
        try:
            plan = select_channels(
                scores, couplings, model, example, macs_kept=MACS_KEPT, round_to=rounding, tolerance=TOLERANCE
            )
        except ValueError as error:
            missing[label] = str(error).splitlines()[0][:120]
            continue
        found[label] = remove_channels(model, plan)
    return found, missing


def _rows(name: str, settings: Settings) -> Iterator[dict[str, Any]]:
    precision = resolve_precision("auto", settings.device.type)
    if settings.device.type == "cpu":
        keep_freed_memory()
    found, missing = networks(name)
    macs = {label: count_macs(model, torch.zeros(1, *input_shape(name))) for label, model in found.items()}
    kinds: dict[str, dict[str, Candidate]] = {"step": {}, "predict": {}}
    images = torch.randn(settings.batch_size, *input_shape(name), device=settings.device)
    images = images.contiguous(memory_format=torch.channels_last)
    for label, model in found.items():
        placed = model.to(settings.device).to(memory_format=torch.channels_last)
        labels = torch.arange(settings.batch_size, device=settings.device) % 10
        kinds["step"][label] = step_of(placed, images, labels, precision, placed, in_place=True)
        kinds["predict"][label] = _predict(copy.deepcopy(placed).eval(), images, precision)
    if settings.device.type == "cuda":
        kinds["captured step"] = {k: captured(_warm(c), settings.device) for k, c in kinds["step"].items()}
        kinds["captured predict"] = {k: captured(c, settings.device) for k, c in kinds["predict"].items()}
    times = {kind: in_turns(candidates, settings.repeats, settings.device) for kind, candidates in kinds.items()}
    for label in found:
        row: dict[str, Any] = {"model": name, "precision": precision, "batch": settings.batch_size, "widths": label}
        row["MACs kept"] = round(macs[label] / macs["dense"], 4)
        for kind, measured in times.items():
            row[f"{kind} ms"] = median_ms(measured, label)
            row[f"{kind} x dense"] = median_ratio(measured, "dense", label)
        best = row["captured step x dense" if "captured step" in times else "step x dense"]
        row["of MACs"] = round(best * row["MACs kept"], 3)
        yield row
    for label, reason in missing.items():
        yield {"model": name, "precision": precision, "batch": settings.batch_size, "widths": f"{label}: {reason}"}


def _warm(step: Candidate) -> Candidate:
    """Take a step, so that gradients and momentum have their memory before a capture."""
    step()
    return step


def _predict(model: nn.Module, images: Tensor, precision: Precision) -> Candidate:
    @torch.no_grad()
    def predict() -> None:
        with autocast(images.device, precision, cache=False):
            model(images)

    return predict
