"""What can be removed of a network, and whether that reaches a target: known before any training."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from benchmarks.config import Cell
from benchmarks.methods.registry import find_method
from benchmarks.models import build_model
from oicsr import Coupling, OutOfReachError, PruningPlan, find_couplings
from oicsr.algorithm import share_after
from oicsr.tracing.approximate import Approximate
from oicsr.tracing.attention import Granularity
from oicsr.tracing.trace import Scope


@lru_cache(maxsize=8)
def couplings_of(
    model: str,
    num_classes: int,
    shape: tuple[int, int, int],
    scope: Scope,
    granularity: Granularity,
    approximate: Approximate,
) -> list[Coupling]:
    """Return the couplings of a network, which many runs share: they depend only on its architecture."""
    with torch.random.fork_rng(devices=[]):
        network = build_model(model, num_classes)
    images = torch.zeros(1, *shape)
    return find_couplings(network, images, scope=scope, granularity=granularity, approximate=approximate)


def cell_out_of_reach(cell: Cell, num_classes: int, shape: tuple[int, int, int]) -> str:
    """Return why the first removal of a run, or all together where caps refer to the dense network, reach no target.

    Empty where they do, or where that is not known.
    """
    profile = cell.profile
    steps = 1 if profile.cap_of == "original" else profile.steps
    share = share_after(0, steps, cell.macs_kept, profile.pruning_schedule)
    what = profile.scope, profile.granularity, profile.approximate
    limits = share, profile.max_removed, profile.round_to
    select = find_method(cell.method).selection.select
    reason = out_of_reach(cell.experiment.model, num_classes, shape, what, select, limits)
    return f"{reason} Scope and caps belong to the experiment; --macs-kept is an option." if reason else ""


@lru_cache(maxsize=64)
def out_of_reach(
    model: str,
    num_classes: int,
    shape: tuple[int, int, int],
    what: tuple[Scope, Granularity, Approximate],
    select: Callable[..., PruningPlan],
    limits: tuple[float, float, int],
) -> str:
    """Return why no removal can reach a target, whatever the weights; empty where that is not known.

    What is within reach depends on the network, the caps and the rounding alone, so that a selection by scores that
    mean nothing tells.

    Args:
        model: Name of the network.
        num_classes: Its outputs.
        shape: Channels, height and width of its images.
        what: Scope, granularity and approximation of the removal.
        select: The method's selection.
        limits: Share of the MACs that remains, cap and rounding.
    """
    couplings = couplings_of(model, num_classes, shape, *what)
    macs_kept, max_removed, round_to = limits
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(coupling.num_channels, generator=generator) for coupling in couplings]
    with torch.random.fork_rng(devices=[]):
        network = build_model(model, num_classes)
    options = {"macs_kept": macs_kept, "max_removed": max_removed, "round_to": round_to}
    try:
        select(scores, couplings, network, torch.zeros(1, *shape), **options)
    except OutOfReachError as error:
        return str(error)
    except Exception:  # a selection may raise anything of such scores: its run shows what it does with its own
        return ""
    return ""
