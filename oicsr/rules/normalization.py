"""Normalisation layers: scale, shift and statistics follow the channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from oicsr.rules.calls import argument, gives_many, module_path, shape_of, source_of
from oicsr.rules.ids import varying
from oicsr.rules.notes import Norm
from oicsr.rules.registry import Result, Value, aten, follows
from oicsr.rules.tracer import Tracer

OVER = "normalises over the channels"
WIDTHS = {"num_channels", "channels", "num_features", "features"}  # names of attributes


@follows(*aten("batch_norm instance_norm _native_batch_norm_legit_no_training _native_batch_norm_legit"))
def batch_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Scale, shift and running statistics, each `(channels,)`, follow axis 1.

    Of a weight (standardisation), the statistics of each filter run over all channels that it reads: a column of zeros
    is none after it, so that nothing exact exists.
    """
    source = source_of(node)
    if not tracer.depends_on_input(source):
        return tracer.opaque(node, "standardises a weight over the channels that it reads")
    if not varying(ids):
        return _first_of(node, ids)
    vector = tracer.channels(ids, 1, shape_of(source)[1])
    if vector is None:
        return tracer.opaque(node, "normalises channels that do not lie on axis 1")
    _follow_norm(tracer, [argument(node, i) for i in range(1, 5)], vector)
    if not any(isinstance(argument(node, i), fx.Node) for i in range(1, 5)):
        _count_width(tracer, node, vector)
    return _first_of(node, ids)


def _first_of(node: fx.Node, ids: Tensor) -> Result:
    """Return ids for the first output; the others, if any, are statistics."""
    if not gives_many(node):
        return Value(ids)
    return [Value(ids), *[Value(None, "is a statistic")] * (len(node.meta["val"]) - 1)]


def _follow_norm(tracer: Tracer, vectors: Sequence[Any], ids: Tensor) -> None:
    """Let `(scale, shift, ...)` of a normalisation follow the channels; only the scale carries energy."""
    for position, vector in enumerate(vectors):
        tracer.follow_vector(vector, ids, "norm", counts=position == 0)


@follows("aten::group_norm")
def group_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """A normalisation group goes as a whole, so that the statistics of the others do not change.

    How many groups there are must follow: it does in `nn.GroupNorm` with a scale, and where it is kept on the module.
    Whether the code computes it from the width (`F.group_norm(x, x.shape[1] // 8)`) is for the proof to find out. One
    group of all channels is as a LayerNorm (see `layer_norm`).
    """
    groups, scale, shift = int(argument(node, 1)), argument(node, 2), argument(node, 3)
    vector = tracer.channels(ids, 1, shape_of(source_of(node))[1])
    if vector is None:
        return tracer.opaque(node, "normalises channels that do not lie on axis 1")
    owner = tracer.parameters.get(scale, "").rpartition(".")[0]
    if scale is None or (tracer.modules is not None and not isinstance(tracer.modules.get(owner), nn.GroupNorm)):
        number = _number_of_groups(tracer, node, groups)
        if number is not None:
            tracer.count(node, number, vector.reshape(groups, -1)[:, 0])
        elif groups > 1 and not tracer.doubts.allow(tracer.sets, node, vector, groups):
            return tracer.opaque(
                node, f"has a number of groups that is fixed: keep the {groups} in one attribute of the module"
            )
        _count_width(tracer, node, vector)
    if groups == 1:
        stay = _stay_under(tracer, node, scale, vector, nn.GroupNorm)
        if stay:
            tracer.sets.fix(vector, tracer.notable(f"{tracer.where(node)} {stay}"))
    else:
        tracer.tie_axis(vector.reshape(groups, -1), 1)
    _follow_norm(tracer, [scale, shift], vector)
    return ids


def _count_width(tracer: Tracer, node: fx.Node, labels: Tensor) -> None:
    """Let the attributes of a module that say by their names how many channels there are follow."""
    numbers = vars((tracer.modules or {}).get(module_path(node), nn.Identity()))
    for name in WIDTHS & numbers.keys():
        if type(numbers[name]) is int and numbers[name] == len(labels):
            tracer.count(node, name, labels)


def _number_of_groups(tracer: Tracer, node: fx.Node, groups: int) -> str | None:
    """Return the attribute that says how many groups there are, on the module that a call is made in."""
    numbers = vars((tracer.modules or {}).get(module_path(node), nn.Identity()))
    named = [name for name, value in numbers.items() if type(value) is int and value == groups]
    named = named if len(named) == 1 else [name for name in named if "group" in name]
    return named[0] if len(named) == 1 else None


@follows("aten::layer_norm")
def layer_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels that do not lie on the axes it normalises.

    Statistics over channels change with the number of channels, even where a removed one was zero: nothing exact
    exists, and such channels stay. With `Tracer.follow_layer_norm` they go, scale and shift with them, and with
    `Tracer.approximate` as under an RMSNorm.
    """
    axes = list(range(ids.ndim - len(argument(node, 1)), ids.ndim))
    ids = of_tokens(tracer, node, ids, axes)
    kept = tracer.whole(ids, axes)
    if kept is not None:
        return kept
    stay = OVER if len(axes) > 1 else _stay_under(tracer, node, argument(node, 2), ids.flatten(), nn.LayerNorm)
    if stay:
        return tracer.opaque(node, stay)
    _follow_norm(tracer, [argument(node, 2), argument(node, 3)], ids.flatten())
    return ids


def of_tokens(tracer: Tracer, node: fx.Node, ids: Tensor, axes: Sequence[int]) -> Tensor:
    """Return the ids of what a norm over `axes` reads; of a table of learned tokens, the channels lie on these."""
    tied = None if tracer.depends_on_input(source_of(node)) else tracer.whole(ids, set(varying(ids)) - set(axes))
    return ids if tied is None else tied


def _stay_under(tracer: Tracer, node: fx.Node, weight: Any, channels: Tensor, kind: type[nn.Module]) -> str:
    """Return why channels stay that a norm with a mean runs over; empty where they may go, which is noted."""
    if tracer.approximate != "layer_norm":
        return "" if tracer.follow_layer_norm else OVER
    path = module_path(node)
    if not isinstance((tracer.modules or {}).get(path), kind) or weight not in tracer.parameters:
        return f"{OVER}: only nn.{kind.__name__} with a weight adapts"
    if tracer.modes.get(path) == "none":
        return "normalises over channels some of which stay for another reason"
    tracer.norms.append(Norm(path, tracer.parameters[weight], channels, exact=False))
    return ""
