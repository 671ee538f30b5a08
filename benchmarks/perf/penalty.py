"""The penalty's value and gradient: as a share of the training step, and against the peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.machine.memory import keep_freed_memory
from benchmarks.models import find_builder, input_shape
from benchmarks.perf.measure import (
    Candidate,
    Settings,
    Times,
    captured,
    in_turns,
    median_ms,
    median_ratio,
    quiet_couplings,
)
from benchmarks.perf.peers import naive_group_lasso, torch_pruning_regularize
from oicsr import Coupling, GroupLasso, ProximalGroupLasso, count_params
from oicsr.fast.layout import Layout
from oicsr.tracing.trace import Scope

MODELS = ("resnet56", "vgg16", "mobilenetv2", "imagenet-resnet50")

SCOPES: tuple[Scope, ...] = ("inner", "all")

STRENGTH = 1e-6

NOTE = (
    "Value and gradient of the penalty, in milliseconds. `direct` adds the gradient to `.grad`; `autograd` is value "
    "and backward pass; `proximal` is the proximal step. `share` is the direct form's share of a training step "
    "(forward, backward, SGD with momentum). `torch-pruning` is `GroupNormPruner.regularize` over all its groups "
    "(another penalty, on about the tensors of scope `all`); `naive` is a per-layer Group Lasso through autograd. "
    "Where there is CUDA, step and direct form are also measured as captured graphs. GB/s counts "
    "two reads of each weight and a read and a write of its gradient."
)


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield two rows per network: the paper's scope, and all channels."""
    for name in settings.models or MODELS:
        yield from _rows(name, settings)


def _rows(name: str, settings: Settings) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    shape = input_shape(name)
    model = find_builder(name)(10).to(settings.device)
    example = torch.zeros(1, *shape, device=settings.device)
    candidates, counts, failure = _penalties(model, example)
    if shape[1] <= 64 or settings.device.type == "cuda":  # an ImageNet step takes too long on a CPU
        candidates["step"] = training_step(model, settings.batch_size, shape)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    if settings.device.type == "cuda":
        for key in [key for key in candidates if key == "step" or key.startswith("direct")]:
            candidates[f"captured {key}"] = captured(candidates[key], settings.device)
    times = in_turns(candidates, settings.repeats, settings.device)
    return [_row(name, model, scope, times, counts[scope], failure, settings) for scope in SCOPES]


def _penalties(model: nn.Module, example: Tensor) -> tuple[dict[str, Candidate], dict[str, int], str]:
    """Return the penalties to measure, weights under each scope's penalty, and why a peer is missing."""
    candidates: dict[str, Candidate] = {}
    counts: dict[str, int] = {}
    for scope in SCOPES:
        couplings = quiet_couplings(model, example, scope)
        forms = _own_forms(model, couplings) | {"naive": naive_group_lasso(model, couplings, STRENGTH)}
        candidates |= {f"{form} {scope}": call for form, call in forms.items()}
        counts[scope] = sum(w.numel() for w in Layout.of(couplings, ("out", "in")).weights(model))
    try:
        candidates["torch-pruning"] = torch_pruning_regularize(model, example, STRENGTH)
    except RuntimeError as error:
        return candidates, counts, str(error)
    return candidates, counts, ""


def _own_forms(model: nn.Module, couplings: Sequence[Coupling]) -> dict[str, Candidate]:
    penalty = GroupLasso(couplings, strength=STRENGTH)
    proximal = ProximalGroupLasso(couplings, strength=STRENGTH)
    return {
        "direct": lambda: penalty.add_gradient(model),
        "autograd": lambda: penalty(model).backward(),
        "proximal": lambda: proximal.proximal_step(model, 0.0),
    }


def training_step(model: nn.Module, batch_size: int, shape: tuple[int, int, int]) -> Candidate:
    """Return forward, backward and SGD with momentum on one batch; gradients stay where they are."""
    device = next(model.parameters()).device
    if device.type == "cpu":  # as in the suite's training; otherwise the first penalty after a step pays for its memory
        keep_freed_memory()
    images = torch.randn(batch_size, *shape, device=device)
    labels = torch.arange(batch_size, device=device) % 10
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9, weight_decay=5e-4)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _row(
    name: str, model: nn.Module, scope: str, times: Times, weights: int, failure: str, settings: Settings
) -> dict[str, Any]:
    direct = f"direct {scope}"
    has_step = "step" in times
    row: dict[str, Any] = {
        "model": name,
        "scope": scope,
        "parameters": count_params(model),
        "penalised weights": weights,
        "batch": settings.batch_size if has_step else None,
        "step ms": median_ms(times, "step") if has_step else None,
    }
    for form in ("direct", "autograd", "proximal", "naive"):
        row[f"{form} ms"] = median_ms(times, f"{form} {scope}")
    row["torch-pruning ms"] = failure or median_ms(times, "torch-pruning")
    row["share of step"] = median_ratio(times, direct, "step") if has_step else None
    if "captured step" in times:
        row["captured step ms"] = median_ms(times, "captured step")
        row["captured direct ms"] = median_ms(times, f"captured {direct}")
        row["share of captured step"] = median_ratio(times, f"captured {direct}", "captured step")
    row["x naive"] = median_ratio(times, f"naive {scope}", direct)
    row["x torch-pruning"] = median_ratio(times, "torch-pruning", direct) if not failure else None
    row["GB/s"] = round(16 * weights / median_ms(times, direct) / 1e6, 2)
    return row
