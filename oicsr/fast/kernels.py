"""The passes as Triton kernels, over all weights of a model at once.

A table of addresses says where the weights are, and a list of tiles which part of which weight each program works on:
so a network of many small layers costs a launch or two, not one per layer. A program goes down its tile in steps of
`ROWS` rows and reads each element once.

Energies take two kernels: the first writes the sums of squares of each tile's rows and columns, each to a place of its
own, and the second adds up what belongs to each channel in a fixed order. So no sum depends on which program was
quicker, down to the last bit.

Importing this module needs Triton, which PyTorch for CUDA brings along.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def square_sums(addresses, shapes, tiles, sums, HEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the sums of squares of one tile: of its rows, `HEIGHT` of them, then of its columns."""
    tile = tl.program_id(0).to(tl.int64)
    weight, top, left = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
    rows, width = tl.load(shapes + 6 * weight), tl.load(shapes + 6 * weight + 1)
    start = tl.load(addresses + weight).to(tl.pointer_type(tl.float32))
    own = sums + tile * (HEIGHT + COLUMNS)
    c = left + tl.arange(0, COLUMNS)
    of_columns = tl.zeros((ROWS, COLUMNS), tl.float32)
    for row in range(top, tl.minimum(rows, top + HEIGHT), ROWS):
        r = row + tl.arange(0, ROWS)
        w = tl.load(start + r[:, None] * width + c[None, :], mask=(r < rows)[:, None] & (c < width)[None, :], other=0.0)
        of_columns += w * w
        tl.store(own + r - top, tl.sum(w * w, 1), mask=r < rows)
    tl.store(own + HEIGHT + tl.arange(0, COLUMNS), tl.sum(of_columns, 0))


@triton.jit  # type: ignore[untyped-decorator]
def channel_sums(sums, places, starts, energies, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add up the sums that belong to one channel, always in the same order."""
    channel = tl.program_id(0)
    first, end = tl.load(starts + channel), tl.load(starts + channel + 1)
    total = tl.zeros((BLOCK,), tl.float32)
    for at in range(first, end, BLOCK):
        i = at + tl.arange(0, BLOCK)
        place = tl.load(places + i, mask=i < end, other=0)
        total += tl.load(sums + place, mask=i < end, other=0.0)
    tl.store(energies + channel, tl.sum(total, 0))


@triton.jit  # type: ignore[untyped-decorator]
def combine(  # type: ignore[no-untyped-def]
    addresses,
    targets,
    shapes,
    tiles,
    per_slice,
    ADD: tl.constexpr,
    MULTIPLY: tl.constexpr,
    HEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Write one tile times the factors of its rows and columns into the target, or add it."""
    tile = tl.program_id(0).to(tl.int64)
    weight, top, left = tl.load(tiles + 3 * tile), tl.load(tiles + 3 * tile + 1), tl.load(tiles + 3 * tile + 2)
    goal = tl.load(targets + weight)
    if goal != 0:
        rows, width = tl.load(shapes + 6 * weight), tl.load(shapes + 6 * weight + 1)
        divisor, columns = tl.load(shapes + 6 * weight + 2), tl.load(shapes + 6 * weight + 3)
        rows_at, columns_at = tl.load(shapes + 6 * weight + 4), tl.load(shapes + 6 * weight + 5)
        start = tl.load(addresses + weight).to(tl.pointer_type(tl.float32))
        out = goal.to(tl.pointer_type(tl.float32))
        neutral = 1.0 if MULTIPLY else 0.0
        c = left + tl.arange(0, COLUMNS)
        position = columns_at + (c // divisor) % columns
        of_column = tl.load(per_slice + position, mask=(c < width) & (columns_at >= 0), other=neutral)[None, :]
        for row in range(top, tl.minimum(rows, top + HEIGHT), ROWS):
            r = row + tl.arange(0, ROWS)
            inside = (r < rows)[:, None] & (c < width)[None, :]
            offsets = r[:, None] * width + c[None, :]
            w = tl.load(start + offsets, mask=inside, other=0.0)
            of_row = tl.load(per_slice + rows_at + r, mask=(r < rows) & (rows_at >= 0), other=neutral)[:, None]
            result = w * (of_row * of_column if MULTIPLY else of_row + of_column)
            if ADD:
                result += tl.load(out + offsets, mask=inside, other=0.0)
            tl.store(out + offsets, result, mask=inside)
