"""Detectors and their like: networks that cannot be traced as a whole, but whose `backbone` can."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from oicsr.complexity import Positions
from oicsr.coupling import Call, Coupling, Member
from oicsr.networks.copying import MODEL_ERRORS, undisturbed
from oicsr.networks.inputs import Inputs
from oicsr.networks.state import one_at_a_time

BACKBONE = "backbone"


@dataclass(frozen=True)
class Part:
    """A part of a network, and what it is called with.

    Attributes:
        name: Its name in the whole.
        module: The part.
        inputs: The arguments of its first call in a forward pass of the whole.
        products_before: How many products of activations the whole makes before that call.
    """

    name: str
    module: nn.Module
    inputs: Inputs
    products_before: int


class _FirstCall(Exception):
    """Carries the arguments of the first call out of a forward pass."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.inputs = inputs


@one_at_a_time()
@torch.no_grad()
def backbone_call(model: nn.Module, inputs: Inputs) -> Part | None:
    """Return the `backbone` of a network with the arguments of its first call; None where it has none that is called.

    Args:
        model: The network; run in evaluation mode up to the call, and left as it is.
        inputs: The arguments of one forward call of the whole network.
    """
    module = getattr(model, BACKBONE, None)
    if not isinstance(module, nn.Module):
        return None

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """End the forward pass with what the backbone was called with."""
        raise _FirstCall(Inputs(args, kwargs))

    with undisturbed(model) as twin, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handle = getattr(twin, BACKBONE).register_forward_pre_hook(note, with_kwargs=True)
        counter = Positions([*twin.parameters(), *twin.buffers()])
        try:
            with counter:
                inputs.call(twin)
        except _FirstCall as call:
            return Part(BACKBONE, module, call.inputs, len(counter.products))
        except MODEL_ERRORS:
            return None
        finally:
            handle.remove()
    return None


def couplings_of_whole(
    couplings: Sequence[Coupling], model: nn.Module, part: Part
) -> tuple[list[Coupling], dict[str, str]]:
    """Return the couplings of a part with the names of the whole, and why some are left out.

    A parameter that the rest of the network holds as well is read there, too, where nothing was followed.
    """
    prefix = f"{part.name}."
    outside = {
        id(parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if not name.startswith(prefix)
    }
    shared = {name for name, parameter in part.module.named_parameters() if id(parameter) in outside}
    found, left = [], {}
    for coupling in couplings:
        tied = next((m.parameter for m in coupling.members if m.parameter in shared), None)
        if tied is not None:
            left[prefix + coupling.name] = f"{prefix + tied!r} is used outside {part.name!r} as well"
            continue
        members = tuple(Member(prefix + m.parameter, m.dim, m.channels, m.side, m.counts) for m in coupling.members)
        found.append(
            replace(
                coupling,
                name=prefix + coupling.name,
                members=members,
                attributes=tuple(replace(a, module=(prefix + a.module).rstrip(".")) for a in coupling.attributes),
                rescaled=tuple(replace(r, parameter=prefix + r.parameter) for r in coupling.rescaled),
                products=tuple(part.products_before + number for number in coupling.products),
                parts=tuple(replace(p, product=_of_whole(p.product, part)) for p in coupling.parts),
            )
        )
    return found, left


def _of_whole(work: Call, part: Part) -> Call:
    """Return what a product, or a call of a layer, is among those of the whole network."""
    if isinstance(work, int):
        return part.products_before + work
    return f"{part.name}.{work[0]}", work[1]
