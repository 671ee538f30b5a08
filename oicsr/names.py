"""Naming layers and couplings: by name, by pattern, by module."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import Tensor, nn

from oicsr.coupling import Coupling

Names = str | nn.Module | Iterable[str | nn.Module]
T = TypeVar("T")


def layer_name(parameter: str) -> str:
    """Return the name of the layer that a parameter belongs to, also through a parametrization."""
    layer, parametrized, _ = parameter.partition(".parametrizations.")
    return layer if parametrized else parameter.rpartition(".")[0] or parameter


def matches(name: str, pattern: str) -> bool:
    """Return whether `name` fits a pattern (`*`, `?`, `[...]`), or lies inside the module that the pattern names.

    So `"layer1"` stands for all layers of `layer1`, and `"*.conv1"` for every layer of that name.
    """
    parts = name.split(".")
    return name == pattern or any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by each of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def whose(model: nn.Module, name: str) -> str:
    """Return what to say of a tensor that `model` lacks: which of its modules has it, or under which name it does."""
    around = dict(model.named_modules()).get(name.rpartition(".")[0].rpartition(".")[0])
    if isinstance(around, nn.MultiheadAttention):  # q_proj, k_proj and v_proj are modules of what takes its place
        return (
            "; it has PyTorch's nn.MultiheadAttention there. Was it opened before? Call oicsr.open_attention "
            "on the network first (for load_pruned, in build_model)"
        )
    for inner, module in model.named_children():
        if name in named_tensors(module):
            return f"; its module {inner!r} has it, so pass that"
    known, (_, *parts) = named_tensors(model), name.split(".")
    shorter = (".".join(parts[start:]) for start in range(len(parts)))
    own = next((rest for rest in shorter if rest in known), None)
    return f"; it has {own!r}, so pass the module that holds it as {name.removesuffix(own)[:-1]!r}" if own else ""


def first_names(named: Iterable[tuple[str, object]]) -> dict[str, str]:
    """Return for each name of a module or tensor the first name of the same one; `named`: all names, in order."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(entry), name) for name, entry in named}


def some_of(names: Sequence[str]) -> str:
    """Return the first names of a list in quotes, and how many more there are."""
    others = len(names) - 3
    more = f" and {others} other{'s' if others > 1 else ''}" if others > 0 else ""
    return ", ".join(repr(name or "(root)") for name in names[:3]) + more


def named_layers(model: nn.Module, names: Names) -> set[str]:
    """Return the layers of a model that are meant by names, patterns or modules; with a module go all layers in it.

    Modules and parameters of several names are meant by any of them, and returned by the first.

    Raises:
        ValueError: A name or pattern matches nothing, or a module is not part of the model.
        TypeError: An entry is neither a string nor a module.
    """
    modules = {name for name, _ in model.named_modules(remove_duplicate=False)}
    parameters = first_names(model.named_parameters(remove_duplicate=False))
    known = modules | {layer_name(name) for name in parameters}
    found: set[str] = set()
    if not isinstance(names, str | nn.Module | Iterable) or isinstance(names, type):
        raise TypeError(f"{names!r} is neither the name of a layer, a pattern, nor a module, nor several of them")
    for entry in [names] if isinstance(names, str | nn.Module) else names:
        if isinstance(entry, str):
            hits = {name for name in known if name and matches(name, entry)}
        elif isinstance(entry, nn.Module):
            own = [name for name, module in model.named_modules(remove_duplicate=False) if module is entry]
            hits = {name for name in known if any(name == top or name.startswith(f"{top}.") or not top for top in own)}
        else:
            raise TypeError(f"{entry!r} is neither the name of a layer, a pattern, nor a module")
        if not hits:
            what = repr(entry) if isinstance(entry, str) else f"the {type(entry).__name__} that was given"
            raise ValueError(f"{what} is no layer of this {type(model).__name__}{_nearest(entry, known)}")
        found |= hits
    return found | {layer_name(first) for name, first in parameters.items() if layer_name(name) in found}


def per_coupling(value: T | Mapping[str, T], couplings: Sequence[Coupling], default: T, argument: str) -> list[T]:
    """Return one value per coupling from a value for all, or from a mapping of names and patterns.

    A key fits a coupling by the coupling's name or by that of any layer that produces its channels. The exact name of
    a coupling goes before all patterns, of which the first that fits holds.

    Args:
        value: The value, or the mapping.
        couplings: The couplings.
        default: What couplings get that no key fits.
        argument: What messages call the value.

    Raises:
        ValueError: A key fits no coupling.
    """
    if not isinstance(value, Mapping):
        return [value] * len(couplings)
    layers = [coupling_layers(coupling) for coupling in couplings]
    for key in value:
        if not isinstance(key, str):
            raise TypeError(
                f"{argument} has the key {key!r}, a {type(key).__name__}; keys are names or patterns of layers"
            )
        if not any(matches(layer, key) for names in layers for layer in names):
            names = [coupling.name for coupling in couplings]
            raise ValueError(f"{argument} names {key!r}, which fits no coupling{_nearest(key, names)}")
    return [
        value[names[0]]
        if names[0] in value
        else next((value[key] for key in value if any(matches(layer, key) for layer in names)), default)
        for names in layers
    ]


def check_names(named: Mapping[str, object], couplings: Sequence[Coupling], argument: str) -> None:
    """Raise ValueError where a mapping names what is not a coupling."""
    names = [coupling.name for coupling in couplings]
    for name in named:
        if name not in names:
            raise ValueError(f"{argument} names {name!r}, which is not a coupling{_nearest(name, names)}")


def coupling_layers(coupling: Coupling) -> list[str]:
    """Return the name of a coupling and those of all layers that produce its channels, each once."""
    producers = [layer_name(member.parameter) for member in coupling.members if member.side == "out"]
    return list(dict.fromkeys([coupling.name, *producers]))


def _nearest(entry: object, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(entry, [name for name in known if name], n=1) if isinstance(entry, str) else []
    return f"; did you mean {close[0]!r}?" if close else ""
