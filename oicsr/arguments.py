"""Mistakes in the arguments that many functions share, told apart before anything runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import chain
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from oicsr.changes import check_attributes
from oicsr.coupling import Coupling
from oicsr.names import named_tensors, whose
from oicsr.networks.wrapping import unwrap
from oicsr.plan import PruningPlan, check_is_plan

DIVERGED = "Load weights from before training diverged, and lower the learning rate or the strength"


def check_model(model: object, hint: str = "") -> None:
    """Raise unless `model` is a module, and whole; `hint` is what else the message says.

    Raises:
        TypeError: It is not a module.
        ValueError: Its parameters are spread over several processes, or have no shapes yet.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; it must be a torch.nn.Module{hint}")
    check_whole(model.named_parameters())
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet (a lazy module): call the model on an input first")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError unless the value of the argument `name` is one of what it may be."""
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")


def scripted_part(model: nn.Module) -> str:
    """Return what to say of the first scripted module of a network, whose calls nobody sees; empty without one."""
    names = (name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule))
    name = next(names, None)
    return "" if name is None else f"{name or '(root)'!r} is scripted: put the module that it was made of in its place"


def closed_part(model: nn.Module) -> str:
    """Return what to say of a network whose code cannot be looked into, in part: which module, and what to do."""
    if scripted := scripted_part(model):
        return scripted
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.") and hasattr(module, "_packed_params"):
            return f"{name or '(root)'!r} is quantised, its weights packed: take the network from before that"
    return ""


def check_open(model: nn.Module) -> None:
    """Raise ValueError where code of a network cannot be looked into: what runs there would be passed over unsaid."""
    if closed := closed_part(model):
        raise ValueError(f"{type(model).__name__} cannot be looked into: {closed}")


def check_whole(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ValueError where a parameter is spread over several processes, each of which holds a part."""
    for name, parameter in parameters:
        if type(parameter).__name__ == "DTensor":
            raise ValueError(
                f"{name!r} is spread over several processes (fully_shard, tensor parallelism): a channel's weights lie "
                "in all of them. Prune the whole network first and spread what comes back, or train with "
                "DistributedDataParallel, under which everything works"
            )


def check_call(model: object, example_inputs: object) -> None:
    """Raise where the first two arguments are swapped, or where a shape stands in place of a tensor.

    Raises:
        TypeError: `model` is not a module, or `example_inputs` is one.
        ValueError: `example_inputs` is a shape.
    """
    swapped = isinstance(example_inputs, nn.Module)
    check_model(model, ": the arguments are swapped, the model comes first" if swapped else "")
    if swapped:
        raise TypeError(f"example_inputs is a {type(example_inputs).__name__}, a module; pass a tensor")
    numbers = isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str | bytes)
    if numbers and example_inputs and all(type(size) is int for size in example_inputs):  # type: ignore[attr-defined]
        shape = ", ".join(map(str, example_inputs))  # type: ignore[call-overload]
        raise ValueError(f"example_inputs is a shape, ({shape}); pass a tensor, such as torch.zeros({shape})")


def check_plan(model: object, plan: object) -> None:
    """Raise TypeError unless `model` is a module and `plan` a plan."""
    check_model(model, ": the arguments are swapped, the model comes first" if isinstance(plan, nn.Module) else "")
    check_is_plan(plan)


def check_plan_fits(model: nn.Module, plan: PruningPlan) -> None:
    """Raise ValueError where a plan is another network's: a name is not there, or a width or number is another."""
    tensors = named_tensors(model)
    for entry in plan.slices:
        tensor = tensors.get(entry.parameter)
        if tensor is None:
            raise ValueError(
                f"the plan slices {entry.parameter!r}, which {type(model).__name__} does not have"
                f"{whose(model, entry.parameter)}"
            )
        if entry.dim >= tensor.ndim or tensor.shape[entry.dim] != entry.size:
            raise ValueError(
                f"the plan expects {entry.size} slices on axis {entry.dim} of {entry.parameter!r}, "
                f"whose shape is {tuple(tensor.shape)}: it was made for another network, or has been applied already "
                "(remove_channels takes the network that the plan was made for)"
            )
    for scaling in plan.scalings:
        tensor = tensors.get(scaling.parameter)
        last = max(scaling.slices, default=0)
        if tensor is None or scaling.dim >= tensor.ndim or last >= tensor.shape[scaling.dim]:
            shape = "is not there" if tensor is None else f"has shape {tuple(tensor.shape)}"
            raise ValueError(
                f"the plan multiplies slice {last} on axis {scaling.dim} of {scaling.parameter!r}, which {shape}: it "
                "was made for another network"
            )
    check_attributes(model, plan.attributes)


def check_number(name: str, value: Any) -> Any:
    """Return an argument; raise TypeError unless it is a number (a tensor of one number is one, a boolean is none)."""
    single = isinstance(value, Tensor) and value.numel() == 1
    if isinstance(value, bool) or not (single or isinstance(value, Real)):
        raise TypeError(f"{name} is {str(value)[:80]!r}, a {type(value).__name__}; it must be a number")
    return value


def check_learning_rate(value: Any) -> Any:
    """Return the learning rate of a proximal step; a tensor is not read: that would wait for its device.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or not finite.
    """
    if not isinstance(value, Tensor) and not 0 <= check_number("learning_rate", value) < math.inf:
        raise ValueError(f"learning_rate is {value!r}; it must be a finite number, 0 or more")
    return value


def check_count(name: str, value: Any) -> int:
    """Return an argument as an integer.

    Raises:
        TypeError: It is not a number.
        ValueError: It is below 1, or not whole.
    """
    if not (check_number(name, value) >= 1 and float(value).is_integer()):
        raise ValueError(f"{name} is {value!r}; it must be a whole number, 1 or more")
    return int(value)


def check_cost(cost: object) -> None:
    """Raise TypeError unless `cost` is a function, or None."""
    if cost is not None and (isinstance(cost, nn.Module) or not callable(cost)):
        raise TypeError(f"cost is {str(cost)[:80]!r}; it must be a function of the pruned model that returns a number")


def check_callable(name: str, function: object) -> None:
    """Raise TypeError unless an argument can be called."""
    if not callable(function) or isinstance(function, nn.Module):
        raise TypeError(f"{name} is {str(function)[:80]!r}, a {type(function).__name__}; it must be a function")


def as_optimizers(optimizer: object) -> tuple[torch.optim.Optimizer, ...]:
    """Return the optimisers that an argument holds, none for None.

    Raises:
        TypeError: It is neither one of PyTorch's optimisers nor a sequence of them.
    """
    many = tuple(optimizer) if isinstance(optimizer, list | tuple) else () if optimizer is None else (optimizer,)
    for one in many:
        if not isinstance(one, torch.optim.Optimizer):
            raise TypeError(
                f"optimizer {'holds' if one is not optimizer else 'is'} a {type(one).__name__}; it must be a "
                "torch.optim.Optimizer, made of the model's parameters, or a list of them"
            )
    return many


def check_scores(scores: object, couplings: Sequence[Coupling]) -> None:
    """Raise unless `scores` is a sequence of one tensor of numbers per coupling, in the couplings' order.

    Raises:
        TypeError: It is not a sequence, or holds something else than tensors.
        ValueError: Shapes differ from those of the couplings.
    """
    wanted = "it must be a list of tensors, one per coupling, such as out_in_energy(model, couplings)"
    if not isinstance(scores, Sequence) or isinstance(scores, str):
        raise TypeError(f"scores is a {type(scores).__name__}; {wanted}")
    for score in scores:
        if not isinstance(score, Tensor):
            raise TypeError(f"scores holds a {type(score).__name__}; {wanted}")
        if score.is_meta:
            raise ValueError("scores are on the meta device, which holds no numbers: load the model's weights first")
        if score.is_complex() or score.layout != torch.strided:
            raise TypeError(f"scores holds a tensor of {score.dtype}, {score.layout}; it must be dense and real")
    shapes, expected = [tuple(s.shape) for s in scores], [(c.num_channels,) for c in couplings]
    if shapes != expected:
        raise ValueError(f"scores have shapes {shapes}; the couplings need {expected}")


def check_no_nan(scores: Sequence[Tensor], couplings: Sequence[Coupling], model: nn.Module) -> None:
    """Raise ValueError where a score is NaN: what it was made of is not a number."""
    for score, coupling in zip(scores, couplings, strict=True):
        if bool(score.isnan().any()):
            broken = _not_finite(model, [coupling]) or _not_finite(model, couplings)
            reason = f"{broken}. {DIVERGED}" if broken else "All weights are finite: look at how the scores are made"
            raise ValueError(
                f"the scores of coupling {coupling.name!r} contain NaN: {int(score.isnan().sum())} of {len(score)} "
                f"channels. {reason}"
            )


def not_finite(model: nn.Module, couplings: Sequence[Coupling]) -> str:
    """Return what to say of a network whose channels have energies that are not finite: which weight, what to do."""
    return f"{_not_finite(model, couplings) or 'squares of weights overflow'}. {DIVERGED}"


def _not_finite(model: nn.Module, couplings: Sequence[Coupling]) -> str:
    """Return which weight of some couplings is not finite; empty where all are."""
    tensors = named_tensors(unwrap(model))
    names = dict.fromkeys(member.parameter for coupling in couplings for member in coupling.members)
    broken = next((name for name in names if not bool(tensors[name].isfinite().all())), None)
    return "" if broken is None else f"{broken!r} holds numbers that are not finite"


def check_couplings(couplings: object) -> None:
    """Raise TypeError unless `couplings` is a sequence of couplings."""
    if isinstance(couplings, Coupling):
        raise TypeError(f"couplings is one Coupling, {couplings.name!r}; put it into a list")
    if not isinstance(couplings, Sequence) or isinstance(couplings, str):
        hint = ""
        if isinstance(couplings, nn.Module | Tensor):
            hint = " (are the arguments in the right order?)"
        elif hasattr(couplings, "couplings"):
            hint = "; pass its attribute couplings"
        raise TypeError(f"couplings is a {type(couplings).__name__}; it must be what find_couplings returns{hint}")
    for entry in couplings:
        if not isinstance(entry, Coupling):
            raise TypeError(f"couplings holds a {type(entry).__name__}; it must hold what find_couplings returns")


def check_fit(model: nn.Module, couplings: Sequence[Coupling]) -> None:
    """Raise ValueError where couplings are another network's: a name is not there, or not as wide as they say.

    The likeliest ones are those of the network before its channels were removed.
    """
    check_couplings(couplings)
    model = unwrap(model)
    tensors = named_tensors(model)
    for coupling in couplings:
        for member in coupling.members:
            tensor = tensors.get(member.parameter)
            if tensor is None:
                raise ValueError(
                    f"the couplings are not those of this {type(model).__name__}: it has no {member.parameter!r}, of "
                    f"which {coupling.name!r} speaks{whose(model, member.parameter)}. Call `find_couplings`"
                )
            check_width(member.parameter, member.dim, len(member.channels), tensor)


def check_width(name: str, dim: int, width: int, weight: Tensor) -> None:
    """Raise ValueError where an axis of a parameter is not as long as the couplings say.

    The likeliest reason is that the couplings found before channels were removed are used on the network after it.
    """
    if dim >= weight.ndim or weight.shape[dim] != width:
        raise ValueError(
            f"the couplings are not those of this network: they give axis {dim} of {name!r} {width} slices, and its "
            f"shape is {tuple(weight.shape)}. After channels were removed, use `shrink_couplings(couplings, plan)`; "
            "for another network, call `find_couplings`"
        )
