"""Which attributes of its modules a forward pass reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from oicsr.changes import is_settings
from oicsr.networks.classes import quiet_base
from oicsr.networks.copying import MODEL_ERRORS


@contextmanager
def reads_noted(twin: nn.Module, read: set[tuple[str, str]]) -> Iterator[None]:
    """Note which attributes of which modules, and of the settings that these hold, are read."""
    owners: dict[int, tuple[object, list[tuple[str, str]]]] = {}  # and where each is: in a module, behind a name
    for path, module in twin.named_modules():
        owners[id(module)] = module, [(path, "")]
        for name, value in vars(module).items():
            if is_settings(value):
                owners.setdefault(id(value), (value, []))[1].append((path, f"{name}."))
    changed: list[tuple[object, type]] = []
    try:
        for owner, places in owners.values():
            cls = type(owner)
            try:
                object.__setattr__(owner, "__class__", _noting(cls, places, read))
            except MODEL_ERRORS:  # a class that fixes its layout, or whose metaclass refuses another
                read |= {(path, prefix + entry) for path, prefix in places if prefix for entry in vars(owner)}
                continue
            changed.append((owner, cls))
        yield
    finally:
        for owner, cls in changed:
            object.__setattr__(owner, "__class__", cls)


def _noting(cls: type, places: Sequence[tuple[str, str]], read: set[tuple[str, str]]) -> type:
    """Return a class like another one that notes, for each of some places, the names of attributes that are read."""

    def noted(self: Any, name: str) -> Any:
        """Note the name."""
        read.update((path, prefix + name) for path, prefix in places)
        return cls.__getattribute__(self, name)  # type: ignore[call-arg]

    return type(cls.__name__, (quiet_base(), cls), {"__getattribute__": noted, "__module__": cls.__module__})
