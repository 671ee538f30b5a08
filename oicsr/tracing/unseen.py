"""What the exporter does not see: tensors in arguments of an unknown class, and modules in plain containers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from oicsr.networks.inputs import Inputs

PLAIN = (int, float, bool, complex, str, bytes, type(None))


def said_of_unseen(model: nn.Module, inputs: Inputs, *, unruled: bool) -> tuple[str, ...]:
    """Return what a trace cannot know of, in words.

    Args:
        model: The network.
        inputs: The arguments of one forward call.
        unruled: Whether channels stay for want of a rule: what modules in plain lists compute is a constant then.
    """
    said = []
    foreign = next((value for value in (*inputs.args, *inputs.kwargs.values()) if not isinstance(value, PLAIN)), None)
    if not inputs.tensors() and foreign is not None:
        kind = type(foreign).__name__
        said.append(
            f"example_inputs hold no tensor that can be seen, but a {kind}, which counts as a constant: what reads it "
            f"keeps its channels. Register it (torch.export.register_dataclass({kind})), or pass a dictionary"
        )
    held = dict(_held_plainly(model)) if unruled else {}
    for place, kinds in held.items():
        said.append(
            f"{place!r} of {type(model).__name__} holds modules ({kinds}) in a plain list, tuple or dictionary: their "
            "weights are no parameters of the network, and neither go nor are saved. Use nn.ModuleList or nn.ModuleDict"
        )
    return tuple(said)


def _held_plainly(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the attributes that hold modules which the network does not know, and the classes of these."""
    known = {id(module) for module in model.modules()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or type(value) not in (list, tuple, dict):
                continue
            entries = value.values() if isinstance(value, Mapping) else value
            hidden = [entry for entry in entries if isinstance(entry, nn.Module) and id(entry) not in known]
            if hidden:
                kinds = ", ".join(dict.fromkeys(type(entry).__name__ for entry in hidden))
                yield f"{path}.{name}" if path else name, kinds
