"""Couplings whose width is a number in the model's code, by their shapes alone: nothing is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from oicsr.coupling import Axis, Coupling
from oicsr.networks.copying import MODEL_ERRORS, copy_model, first_line, hooks_off, mode
from oicsr.networks.inputs import Inputs
from oicsr.networks.recurrences import OneStep
from oicsr.plan import PruningPlan, shrink_couplings
from oicsr.proving.proof import blame
from oicsr.surgery import apply_plan

Retrace = Callable[[nn.Module], tuple[list[Coupling], set[str]]]


def find_rigid(model: nn.Module, inputs: Inputs, couplings: Sequence[Coupling]) -> dict[str, str] | None:
    """Find couplings whose width is a number in the model's code, by a trial on the meta device.

    A forward that says `view(batch, 512)` or `split(x, 26)` is traced like one that asks the tensor for its width,
    but fails once the width has changed. One channel of every coupling is removed and the shapes are run through;
    where that fails, the culprits are found by bisection.

    Returns:
        Coupling name to reason; None where the model does not run on the meta device, so that nothing can be said.
    """
    meta_inputs = inputs.map(lambda x: x.to("meta"))
    if _trial(model, meta_inputs, []) is not None:
        return None
    return blame(couplings, lambda some: _trial(model, meta_inputs, some)) if couplings else {}


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model without storage: shapes only."""

    def empty(tensor: Tensor) -> Tensor:
        """Return the same shape on the meta device."""
        bare = torch.empty_like(tensor, device="meta")
        return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare

    return copy_model(model, empty, constants=lambda tensor: tensor.to("meta"))


class _ShapesOfNorms(TorchFunctionMode):
    """BatchNorm by its shapes alone: on the meta device the real one takes most of a trial's time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not functional.batch_norm or kwargs is None or len(args) < 3:
            return func(*args, **(kwargs or {}))
        if args[1] is not None and len(args[1]) != args[0].shape[1]:
            raise RuntimeError(f"BatchNorm has {len(args[1])} channels and reads {args[0].shape[1]}")
        return args[0].clone()


def _trial(model: nn.Module, inputs: Inputs, couplings: Sequence[Coupling]) -> str | None:
    """Remove the last channel of each coupling; return what the forward says against it, if anything.

    The model stays as it is; what is run is a copy on the meta device, where the inputs are.
    """
    kept = {c.name: range(c.num_channels - 1) for c in couplings}
    trial = meta_copy(model)
    with mode(trial, training=False), hooks_off(trial), torch.no_grad(), _ShapesOfNorms(), OneStep():
        try:
            apply_plan(trial, PruningPlan.from_kept(couplings, kept))  # a parametrization may fix the width, too
            inputs.call(trial)
        except MODEL_ERRORS as error:
            return f"cannot lose channels: its width is a number in the model's code ({first_line(error)})"
    return None


def find_moved(model: nn.Module, couplings: Sequence[Coupling], trace: Retrace) -> dict[str, str]:
    """Find couplings that are cut at a number in the model's code, by tracing the model with one channel less of each.

    `x[:, :4]` of eight channels is traced like `x[:, : width // 2]`, and the shapes may fit after a removal although
    other channels lie before the cut then. So the couplings of the smaller model must be what is left of these.

    Args:
        model: The network; left as it is.
        couplings: Its couplings.
        trace: Traces a network as the couplings were found; returns its couplings, and the names of the layers that
            were left a single channel.
    """
    plan = PruningPlan.from_kept(couplings, {c.name: range(c.num_channels - 1) for c in couplings})
    trial = copy_model(model)
    apply_plan(trial, plan)
    found: Sequence[Coupling] = []
    single: set[str] = set()
    with suppress(ValueError):
        found, single = trace(trial)
    axes = {c.name: _axes(c) for c in found}
    return {
        c.name: f"the channels of {c.name!r} are cut at a number in the model's code"
        for c in shrink_couplings(couplings, plan)
        if (c.name not in single if c.num_channels == 1 else axes.get(c.name) != _axes(c))
    }


def _axes(coupling: Coupling) -> dict[Axis, list[int]]:
    return {member.axis: member.channels.tolist() for member in coupling.members}
