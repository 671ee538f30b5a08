"""Operators that cut an axis into pieces or pick from it."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, fx

from oicsr.changes import whole_numbers
from oicsr.rules.broadcasting import Operand, combine
from oicsr.rules.calls import (
    argument,
    axis_of,
    gives_many,
    is_integer,
    module_path,
    operator_name,
    shape_of,
    shapes_of,
    source_of,
    start_of,
)
from oicsr.rules.ids import varying
from oicsr.rules.notes import Cut
from oicsr.rules.registry import Result, Value, aten, follows, register_rule
from oicsr.rules.tracer import Tracer

LIKE = frozenset(aten("zeros_like ones_like full_like empty_like rand_like randn_like randint_like"))
MOST_TIMES = 4  # a piece may be as many times as wide as a number says (queries, keys and values in one)


@follows(*aten("split split_with_sizes chunk slice narrow tensor_split unsafe_split unsafe_chunk"))
def cut(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Cuts an axis into pieces.

    Equal pieces of the channel axis are tied to one another, so that a cut in halves stays a cut in halves whatever
    is removed; of slices with a step (`x[:, ::2]`), neighbours go together. Where the module keeps the sizes of the
    pieces in a list, the list follows. Where numbers on the module give the places of a cut, it is found out later
    which of them follow (`oicsr.tracing.attention`). A cut at shares of the width is followed on trust. Any other cut
    of the channel axis, whose position is a number in the code, fixes its channels.
    """
    sizes = [shape[axis_of(node, ids.ndim)] for shape in shapes_of(node) if shape is not None]
    values = [Value(piece) for piece in _pieces(tracer, node, ids, sizes)]
    return values if gives_many(node) else values[0]


def _pieces(tracer: Tracer, node: fx.Node, ids: Tensor, sizes: list[int]) -> list[Tensor]:
    name, axis = operator_name(node).removeprefix("aten::"), axis_of(node, ids.ndim)
    if any(other > axis for other in varying(ids)):
        ids = tracer.tie_axis(ids, axis)  # the first part of a split axis: how many there are is a number
    width = ids.shape[axis]
    if width == 1:
        return [ids] * len(sizes)
    start = start_of(node, width) if name in ("slice", "narrow") else 0
    if set(sizes) <= {0, width} or (name == "slice" and _cuts_constant_end(tracer, node, ids, axis)):
        return [ids.narrow(axis, start if 0 < size < width else 0, size) for size in sizes]
    step = int(argument(node, "step")) if name == "slice" else 1
    kept = _kept_sizes(tracer, node, name, sizes)
    if kept is not None:
        return _listed_pieces(tracer, node, ids.split(sizes, axis), kept)
    if sizes == [1] * len(sizes):
        if gives_shape_only(node):
            return [tracer.sets.new_fixed(1, "gives a shape").reshape([1] * ids.ndim)] * len(sizes)
        tracer.opaque(node, "picks single channels")
    elif step > 1 and start < step and width == step * sizes[0]:
        return [_every(tracer, ids, axis, step).narrow(axis, 0, sizes[0])]
    elif _is_written(node) and width != 2 * sizes[0] and step == 1 and _is_given(tracer, node, [start], sizes, width):
        return _split_off(tracer, node, ids.split([start, *sizes, width - start - sum(sizes)], axis))
    elif len(set(sizes)) > 1 or width % sizes[0] or start % sizes[0] or step != 1:
        if len(varying(ids)) > 1 and not tracer.depends_on_input(node.all_input_nodes[0]):
            return [tracer.tie_axis(ids, axis)] * len(sizes)  # a table of more positions than are needed
        number = _kept_number(tracer, node, sizes[0]) if (start, step, len(sizes)) == (0, 1, 1) else None
        if number is not None and _repeats(tracer, ids):
            return [_counted(tracer, node, number, ids.narrow(axis, 0, sizes[0]))]
        places = [start, *(start + end for end in accumulate(sizes))]
        if step == 1 and _is_given(tracer, node, places, sizes, width):
            return _split_off(tracer, node, ids.split([start, *sizes, width - start - sum(sizes)], axis))
        if step != 1 or not _cuts_at_shares(tracer, node, ids, axis, places):
            tracer.opaque(node, "cuts the channel axis into unequal pieces")
    else:
        tracer.tie_pieces(ids, axis, sizes[0])
        tracer.cuts_by_number |= name not in ("chunk", "unsafe_chunk")
    if step != 1:
        return [ids.narrow(axis, 0, sizes[0])]  # fixed above
    starts = [start + sum(sizes[:i]) for i in range(len(sizes))]
    return [ids.narrow(axis, begin, size) for begin, size in zip(starts, sizes, strict=True)]


def _is_written(node: fx.Node) -> bool:
    """Return whether a piece is only written into (`out[..., : self.first] = a`), so that this says what it holds."""
    users = list(node.users) if operator_name(node) in ("aten::slice", "aten::narrow") else []
    return bool(users) and all(operator_name(user) == "aten::copy_" and source_of(user) is node for user in users)


def _cuts_at_shares(tracer: Tracer, node: fx.Node, ids: Tensor, axis: int, places: list[int]) -> bool:
    """Return whether code may cut at shares of the width (`x[:, c // 4 :]`), on trust; ties the blocks in between."""
    block = math.gcd(ids.shape[axis], *places)
    if block == 1 or not tracer.doubts.allow(tracer.sets, node, ids):
        return False
    tracer.tie_pieces(ids, axis, block)
    tracer.cuts_by_number = True
    return True


def _cuts_constant_end(tracer: Tracer, node: fx.Node, ids: Tensor, axis: int) -> bool:
    """Return whether a slice separates the last slices of an axis, counted from its end, all of which stay.

    Ones are put behind the values of a linear attention for its divisor: `out[..., :-1] / out[..., -1:]`.
    """
    width, start, end = ids.shape[axis], int(argument(node, "start", 0)), argument(node, "end")
    is_last = end is None or (isinstance(end, int) and end >= width)
    count = -start if is_last else -end if start == 0 and isinstance(end, int) else 0
    is_cut = 0 < count < width and argument(node, "step") == 1
    return is_cut and bool(tracer.sets.stays(ids.narrow(axis, width - count, count)).all())


def gives_shape_only(node: fx.Node) -> bool:
    """Return whether a value is read for its shape alone, as by `torch.ones_like(x[:, :1])`."""
    readers = {reader for user in node.users for reader in (user.users if user.target is operator.getitem else [user])}
    return bool(readers) and all(operator_name(reader) in LIKE for reader in readers)


def _every(tracer: Tracer, ids: Tensor, axis: int, step: int) -> Tensor:
    """Tie the channels of each block of `step` neighbours; return one for each block, wherever in it."""
    shape = list(ids.shape)
    blocks = ids.reshape([*shape[:axis], -1, step, *shape[axis + 1 :]])
    tracer.sets.join(blocks.narrow(axis + 1, 0, 1).expand_as(blocks), blocks)
    tracer.cuts_by_number = True
    return blocks.select(axis + 1, 0)


def _kept_sizes(tracer: Tracer, node: fx.Node, name: str, sizes: list[int]) -> str | None:
    """Return the one list on the module of a call that holds the sizes of its pieces."""
    module = (tracer.modules or {}).get(module_path(node))
    if name != "split_with_sizes" or module is None:
        return None
    lists = [key for key, value in vars(module).items() if isinstance(value, list | tuple) and list(value) == sizes]
    return lists[0] if len(lists) == 1 else None


def _listed_pieces(tracer: Tracer, node: fx.Node, pieces: Sequence[Tensor], kept: str) -> list[Tensor]:
    """Let pieces go by themselves, whose sizes the list `kept` on the module holds."""
    for position, piece in enumerate(pieces):
        tracer.count(node, f"{kept}.{position}", piece.flatten())
    tracer.cuts.append(Cut(node, tuple(piece.flatten() for piece in pieces), listed=True))
    return list(pieces)


def _kept_number(tracer: Tracer, node: fx.Node, size: int) -> str | None:
    """Return the one number on the module of a call that is the size of its piece."""
    module = (tracer.modules or {}).get(module_path(node))
    names = [name for name, number in whole_numbers(module) if number == size] if module is not None else []
    names = [name for name in names if name.count(".") < 2] or names
    return names[0] if len(names) == 1 else None


def _repeats(tracer: Tracer, ids: Tensor) -> bool:
    """Return whether a value holds some channels more than once (in copies, each with a sign of its own)."""
    return len(tracer.sets.find(ids.flatten()).unique()) < ids.numel()


def _counted(tracer: Tracer, node: fx.Node, number: str, piece: Tensor) -> Tensor:
    """Let a number count the slices of a first piece: it goes down by as many as a channel has in it."""
    tracer.count(node, number, piece.flatten())
    tracer.cuts.append(Cut(node, (piece.flatten(),), listed=True))
    tracer.cuts_by_number = True
    return piece


def _is_given(tracer: Tracer, node: fx.Node, places: list[int], sizes: list[int], width: int) -> bool:
    """Return whether the sizes of a cut's pieces, or its places, may come from whole numbers on the module."""
    module = (tracer.modules or {}).get(module_path(node))
    numbers = {number for _, number in whole_numbers(module) if number > 1} if module is not None else set()
    given = {1, *numbers} | {a * b for a in numbers for b in (*range(2, MOST_TIMES + 1), *numbers)}
    return given.issuperset(sizes) or all({place, width - place} & {0, *given} for place in places)


def _split_off(tracer: Tracer, node: fx.Node, parts: Sequence[Tensor]) -> list[Tensor]:
    """Let pieces go by themselves, each of them but for its last slice; the first and the last part are left off.

    A single slice that is left off (`x[..., :-1]`) stays as well: in its place, the code would leave another one off.
    """
    for part in parts:
        if part.numel() == 1:
            tracer.sets.fix(part, "is a piece of a single channel")
    _, *pieces, _ = parts
    tracer.cuts.append(Cut(node, tuple(piece.flatten() for piece in pieces)))
    tracer.cuts_by_number = True
    return pieces


@follows(*aten("select unbind"))
def pick(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Picks slices of an axis that holds no channels, or of one part of a split channel axis, and drops the axis."""
    axis = axis_of(node, ids.ndim)
    kept = tracer.whole(ids, [axis])
    if kept is None and gives_shape_only(node):
        kept = tracer.sets.new_fixed(1, "gives a shape").reshape([1] * ids.ndim)
    elif kept is None:
        tracer.opaque(node, "picks single channels")
        kept = ids.narrow(axis, 0, 1)  # fixed as they are
    return [Value(kept.squeeze(axis))] * len(node.meta["val"]) if gives_many(node) else kept.squeeze(axis)


@follows(*aten("index_select"))
def select_slices(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Picks slices of an axis that holds no channels."""
    kept = tracer.whole(ids, [axis_of(node, ids.ndim)])
    return tracer.opaque(node, "picks single channels") if kept is None else kept


@register_rule("aten::gather", "aten::take_along_dim")
def gather(tracer: Tracer, node: fx.Node) -> Result:
    """Picks elements along an axis that holds no channels, by an index that has one number for each element.

    Where the index has the channels' width, it follows them: it was spread over them, or was computed from them.
    """
    if argument(node, "dim") is None:
        return tracer.opaque(node, "picks single channels")
    shape, axis = shape_of(node), axis_of(node, len(shape_of(node)))
    parts = []
    for source in (source_of(node), argument(node, 2 if operator_name(node) == "aten::gather" else 1)):
        part = Operand.of(tracer, source, len(shape))
        kept = None if part.ids is None else tracer.whole(part.ids, [axis])
        if part.ids is not None and kept is None:
            return tracer.opaque(node, "picks single channels")
        if any(part.shape[other] != shape[other] for other in part.axes if other != axis):
            return tracer.opaque(node, "picks the first of the channels")
        part.shape[axis] = 1
        parts.append(replace(part, ids=kept))
    return combine(tracer, node, parts)[0]


def _indexed_axes(indices: Sequence[fx.Node | None]) -> list[int]:
    """Return the axes that are indexed: by a tensor of integers one, by a mask as many as it has itself."""
    axes: list[int] = []
    place = 0
    for entry in indices:
        is_mask = entry is not None and (not is_integer(entry) or entry.meta["val"].dtype == torch.uint8)
        covered = len(shape_of(entry)) if is_mask else 1  # type: ignore[arg-type]
        axes += range(place, place + covered) if entry is not None else ()
        place += covered
    return axes


@follows("aten::index")
def index(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Indexes axes that hold no channels by integers or masks; what these give stands where the axes were."""
    used = _indexed_axes(argument(node, 1))
    kept = tracer.whole(ids, used)
    if kept is None:
        return tracer.opaque(node, "picks single channels")
    rank = len(shape_of(node)) - (ids.ndim - len(used))  # of what the indices give together
    place = used[0] if used == list(range(used[0], used[-1] + 1)) else 0
    rest = [size for axis, size in enumerate(kept.shape) if axis not in used]
    return kept.reshape([*rest[:place], *[1] * rank, *rest[place:]])


@register_rule("aten::sym_size")
def size(tracer: Tracer, node: fx.Node) -> Value:
    """Gives the size of an axis that depends on values (after a mask): no axis of channels, whose width is a number."""
    return Value(None, "is a size")


@follows("aten::unfold")
def windows(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Cuts an axis that holds no channels into windows, whose elements lie on a new last axis."""
    kept = tracer.whole(ids, [axis_of(node, ids.ndim, "dimension")])
    return tracer.opaque(node, "cuts windows over the channels") if kept is None else kept.unsqueeze(-1)


@follows(*aten("tril triu"))
def triangle(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Sets a triangle of the last two axes to zero; channels on the others pass."""
    kept = tracer.whole(ids, [ids.ndim - 2, ids.ndim - 1])
    return tracer.opaque(node, "cuts a triangle out of the channels") if kept is None else kept
