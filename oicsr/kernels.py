"""The two passes of `oicsr.fused` as one Triton kernel each, over all weights of a model at once.

A table of addresses says where the weights are, and a list of tiles which part of which weight each program works on:
so a network of many small layers costs two launches, not two per layer. A program reads its tile of a weight once. It
adds the sums of squares of its rows and columns to the energies of their channels (atomically: the order of the
additions, and with it the last bit, can differ from run to run), or it multiplies the tile by the factors of its rows
and columns.

Importing this module needs Triton, which PyTorch for CUDA brings along.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS, TILE_COLUMNS = 16, 256
FIELDS = 6  # per weight: rows, width, divisor, columns, place of the rows' channels, place of the columns' (or -1)
MAX_ADDRESSES = 16  # tables of addresses that are remembered


@triton.jit  # type: ignore[untyped-decorator]
def _energy_kernel(addresses, shapes, tiles, index, energies, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    weight = tl.load(tiles + 3 * tl.program_id(0))
    r = tl.load(tiles + 3 * tl.program_id(0) + 1) + tl.arange(0, ROWS)
    c = tl.load(tiles + 3 * tl.program_id(0) + 2) + tl.arange(0, COLUMNS)
    rows, width = tl.load(shapes + 6 * weight), tl.load(shapes + 6 * weight + 1)
    divisor, columns = tl.load(shapes + 6 * weight + 2), tl.load(shapes + 6 * weight + 3)
    rows_at, columns_at = tl.load(shapes + 6 * weight + 4), tl.load(shapes + 6 * weight + 5)
    start = tl.load(addresses + weight).to(tl.pointer_type(tl.float32))
    inside = (r < rows)[:, None] & (c < width)[None, :]
    w = tl.load(start + r[:, None] * width + c[None, :], mask=inside, other=0.0)
    square = w * w
    if rows_at >= 0:
        channel = tl.load(index + rows_at + r, mask=r < rows, other=0)
        tl.atomic_add(energies + channel, tl.sum(square, 1), mask=r < rows)
    if columns_at >= 0:
        channel = tl.load(index + columns_at + (c // divisor) % columns, mask=c < width, other=0)
        tl.atomic_add(energies + channel, tl.sum(square, 0), mask=c < width)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_kernel(  # type: ignore[no-untyped-def]
    addresses,
    targets,
    shapes,
    tiles,
    per_slice,
    ADD: tl.constexpr,
    MULTIPLY: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    weight = tl.load(tiles + 3 * tl.program_id(0))
    goal = tl.load(targets + weight)
    if goal != 0:
        r = tl.load(tiles + 3 * tl.program_id(0) + 1) + tl.arange(0, ROWS)
        c = tl.load(tiles + 3 * tl.program_id(0) + 2) + tl.arange(0, COLUMNS)
        rows, width = tl.load(shapes + 6 * weight), tl.load(shapes + 6 * weight + 1)
        divisor, columns = tl.load(shapes + 6 * weight + 2), tl.load(shapes + 6 * weight + 3)
        rows_at, columns_at = tl.load(shapes + 6 * weight + 4), tl.load(shapes + 6 * weight + 5)
        inside = (r < rows)[:, None] & (c < width)[None, :]
        offsets = r[:, None] * width + c[None, :]
        start = tl.load(addresses + weight).to(tl.pointer_type(tl.float32))
        w = tl.load(start + offsets, mask=inside, other=0.0)
        empty = 1.0 if MULTIPLY else 0.0
        of_row = tl.load(per_slice + rows_at + r, mask=(r < rows) & (rows_at >= 0), other=empty)[:, None]
        position = columns_at + (c // divisor) % columns
        of_column = tl.load(per_slice + position, mask=(c < width) & (columns_at >= 0), other=empty)[None, :]
        result = w * (of_row * of_column if MULTIPLY else of_row + of_column)
        out = goal.to(tl.pointer_type(tl.float32))
        if ADD:
            result += tl.load(out + offsets, mask=inside, other=0.0)
        tl.store(out + offsets, result, mask=inside)


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which part of which weight each program works on.

    Attributes:
        weights: Positions of the weights that take part, in the list of all weights.
        shapes: int64 `(weights, 6)`.
        tiles: int64 `(tiles, 3)`: weight, first row, first column.
    """

    weights: tuple[int, ...]
    shapes: Tensor
    tiles: Tensor
    _addresses: dict[tuple[int, ...], Tensor] = field(default_factory=dict, repr=False)
    _captured: list[Tensor] = field(default_factory=list, repr=False)

    def addresses(self, tensors: Sequence[Tensor | None]) -> Tensor | None:
        """Return where tensors are, as int64 on the device (0 for None); None where that cannot be had.

        Addresses are compared at each call, so a table is never stale. A CUDA graph under capture cannot be given a
        new one; it keeps those that it uses.
        """
        key = tuple(0 if (t := tensors[i]) is None else t.data_ptr() for i in self.weights)
        capturing = self.shapes.is_cuda and torch.cuda.is_current_stream_capturing()
        found = self._addresses.get(key)
        if found is None:
            if capturing:
                return None
            if len(self._addresses) >= MAX_ADDRESSES:
                self._addresses.clear()
            found = self._addresses[key] = _to_device(torch.tensor(key, dtype=torch.int64), self.shapes.device)
        if capturing:
            self._captured.append(found)
        return found

    def energies(self, weights: Sequence[Tensor], index: Tensor, channels: int) -> Tensor | None:
        """Return the energies of all channels and the waste bin, `(channels + 1,)`; None if that cannot be done."""
        where = self.addresses(weights)
        if where is None:
            return None
        energies = torch.zeros(channels + 1, dtype=torch.float32, device=index.device)
        _launch(_energy_kernel, self.tiles, where, self.shapes, self.tiles, index, energies)
        return energies

    def combine(
        self,
        targets: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        per_slice: Tensor,
        *,
        add: bool,
        multiply: bool = False,
    ) -> bool:
        """Write weights times factors into targets, or add them; return whether that could be done.

        Args:
            targets: Tensors like the weights; None passes a weight over.
            weights: The weights.
            per_slice: The factor of each slice.
            add: Add to the targets.
            multiply: The factors of row and column are multiplied, not summed.
        """
        if not all(_alike(targets[i], weights[i]) for i in self.weights):
            return False
        where, goals = self.addresses(weights), self.addresses(targets)
        if where is None or goals is None:
            return False
        arguments = (where, goals, self.shapes, self.tiles, per_slice)
        _launch(_scale_kernel, self.tiles, *arguments, ADD=add, MULTIPLY=multiply)
        return True


def make_tiles(rows: Sequence[tuple[int, ...]], weights: Sequence[int], device: torch.device) -> Tiles:
    """Cut weights into tiles.

    Args:
        rows: The six numbers of each weight that takes part.
        weights: Their positions in the list of all weights.
        device: Where the kernels will run.
    """
    tiles = [
        (number, row, column)
        for number, (height, width, *_) in enumerate(rows)
        for row in range(0, height, TILE_ROWS)
        for column in range(0, width, TILE_COLUMNS)
    ]
    shapes = torch.tensor(rows, dtype=torch.int64).reshape(-1, FIELDS)
    return Tiles(tuple(weights), shapes.to(device), torch.tensor(tiles, dtype=torch.int64).reshape(-1, 3).to(device))


def _to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for it."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def _alike(target: Tensor | None, weight: Tensor) -> bool:
    return target is None or (target.dtype is weight.dtype and target.stride() == weight.stride())


def _launch(kernel: Any, tiles: Tensor, *arguments: Tensor, **options: bool) -> None:
    """Run a kernel with one program per tile."""
    if len(tiles):
        kernel[(len(tiles),)](*arguments, ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS, **options)
