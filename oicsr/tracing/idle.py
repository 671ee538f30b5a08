"""Modules that a network holds and that its example inputs do not run: moving averages, heads behind a flag."""

from __future__ import annotations

from collections.abc import Sequence, Set
from inspect import Parameter, signature
from types import CodeType

from torch import nn

from oicsr.coupling import Coupling
from oicsr.names import some_of
from oicsr.networks.classes import methods, own_bases
from oicsr.twins import twins_of


def said_of_averages(model: nn.Module, unread: Set[str], couplings: Sequence[Coupling]) -> list[str]:
    """Return what to warn of: modules that never run and are close in weights to exactly one that loses channels.

    They are moving averages of these, and would no longer fit.

    Args:
        model: The network.
        unread: Names of the parameters that its forward reads in no mode.
        couplings: What may go.
    """
    cut = {member.parameter for coupling in couplings for member in coupling.members}
    said = []
    for name, module in _idle(model, unread).items():
        twins = twins_of(model, module)  # of several, it is the pattern that they were copied from
        if len(twins) == 1 and any(parameter.startswith(f"{twins[0]}.") for parameter in cut):
            said.append(
                f"{name!r} is never run and stays as it is, with weights near those of {twins[0]!r}, which may lose "
                f"channels: where it is a moving average, find the couplings of {twins[0]!r} and prune both by one plan"
            )
    return said


def said_of_idle(model: nn.Module, unread: Set[str], couplings: Sequence[Coupling]) -> tuple[str, ...]:
    """Return what to warn of: modules that are not run, beside one of their kind that is cut, or as wide as channels.

    Beside one of their kind are the normalisations of other domains, the heads of other tasks, the branches of a
    network of many. A head that a flag runs is as wide as what it reads.

    Args:
        model: The network.
        unread: Names of the parameters that its forward reads in no mode.
        couplings: What may go.
    """
    found: dict[tuple[str, str], list[str]] = {}
    wide: dict[tuple[str, ...], list[str]] = {}
    for name, module in _idle(model, unread).items():
        run = _alike(model, name, module, couplings)
        if run is not None:
            found.setdefault(run, []).append(name)
        elif _may_run(model, name):
            alike = tuple(c.name for c in couplings if c.num_channels == _width_read(module))
            wide.setdefault(alike, []).append(name)
    beside = (
        f"{some_of(entries)} {'is' if len(entries) == 1 else 'are'} not run with example_inputs, as {run!r} is: where "
        f"channels of {coupling!r} go, only the module that runs loses them, and the others no longer fit (pass "
        f"example_inputs that run them, or ignore={coupling!r})"
        for (run, coupling), entries in found.items()
    )
    return *beside, *(_said_of_wide(entries, names) for names, entries in wide.items() if names)


def _alike(model: nn.Module, name: str, module: nn.Module, couplings: Sequence[Coupling]) -> tuple[str, str] | None:
    """Return the entry of the same list or dictionary that has the same weights and is cut, and by which coupling."""
    cut = {member.parameter: coupling.name for coupling in couplings for member in coupling.members}
    around = name.rpartition(".")[0]
    if not isinstance(model.get_submodule(around), nn.ModuleList | nn.ModuleDict):
        return None
    shapes = {key: parameter.shape for key, parameter in module.named_parameters()}
    for key, other in model.get_submodule(around).named_children():
        own = {name: parameter.shape for name, parameter in other.named_parameters()}
        names = [cut[f"{around}.{key}.{inner}"] for inner in own if f"{around}.{key}.{inner}" in cut]
        if names and own == shapes:
            return f"{around}.{key}", names[0]
    return None


def _may_run(model: nn.Module, name: str) -> bool:
    """Return whether another call might run a module: code mentions its name, or what holds it, and takes options.

    What is made and never called, or called as other settings of the network would have it, runs in no call.
    """
    path = name.split(".")
    for depth in range(len(path) - 1, -1, -1):
        owner = type(model.get_submodule(".".join(path[:depth])))
        if own_bases(owner):
            return _takes_options(owner) and path[depth] in _names_in_methods(owner)
    return False


def _takes_options(cls: type[nn.Module]) -> bool:
    try:
        parameters = signature(cls.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code may not tell
        return False
    return any(parameter.default is not Parameter.empty for parameter in parameters)


def _names_in_methods(cls: type) -> set[str]:
    """Return the names of attributes in the methods of a class, but for where they are made."""
    functions = [function for base in own_bases(cls) for function in methods(base).values()]
    waiting = [function.__code__ for function in functions if function.__name__ != "__init__"]
    found: set[str] = set()
    while waiting:
        code = waiting.pop()
        found.update(code.co_names)
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def _width_read(module: nn.Module) -> int:
    """Return how many channels the first layer of a module reads, as far as its weight says so; 0 where it does not."""
    first = next((layer for layer in module.modules() if next(layer.parameters(recurse=False), None) is not None), None)
    sizes = [getattr(first, name, None) for name in ("in_channels", "in_features", "num_features", "num_channels")]
    return next((size for size in sizes if isinstance(size, int)), 0)


def _said_of_wide(entries: Sequence[str], names: Sequence[str]) -> str:
    one = len(entries) == 1
    runs, it, does = ("is", "it reads", "it does") if one else ("are", "they read", "they do")
    as_many = (
        f"{'reads' if one else 'read'} as many channels as {some_of(names)} {'has' if len(names) == 1 else 'have'}"
    )
    ignored = repr(names[0]) if len(names) == 1 else "the one that it is"
    return (
        f"{some_of(entries)} {runs} not run with example_inputs, and {as_many}: if {it} these, {does} no longer fit "
        f"once some go (pass example_inputs that run {'it' if one else 'them'}, or ignore={ignored})"
    )


def _idle(model: nn.Module, unread: Set[str]) -> dict[str, nn.Module]:
    """Return the modules of which no parameter is read, without those within others."""
    idle: dict[str, nn.Module] = {}
    for name, module in model.named_modules() if unread & {name for name, _ in model.named_parameters()} else ():
        own = {f"{name}.{key}" for key, _ in module.named_parameters()}
        if name and own and own <= unread and not any(name.startswith(f"{outer}.") for outer in idle):
            idle[name] = module
    return idle
