"""Work for the Triton kernels of `oicsr.fast.kernels`: what each program does, where the weights are, and the launch.

Where the kernels cannot run (no Triton, no C compiler or Python headers to build its launcher with, a device that it
does not know), one warning says so and PyTorch operations do the work.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from oicsr.networks.warned import warn

HEIGHT, ROWS, COLUMNS = 128, 16, 256  # a tile, and the rows of it that a program has in registers at once
BLOCK = 128  # partial sums that one program adds up at once
FIELDS = 6  # per weight: rows, width, divisor, columns, place of the rows' channels, place of the columns' (or -1)
MAX_ADDRESSES = 16  # tables of addresses that are remembered
KERNEL_DEVICES = {"cuda"}  # where the kernels are used
_obstacles: list[str] = []  # why the kernels are not used in this process, once a launch has failed


@dataclass(frozen=True, eq=False)
class Tiles:
    """Which part of which weight each program works on, and which partial sums make up each channel's energy.

    Attributes:
        weights: Positions of the weights that take part, in the list of all weights.
        shapes: int64 `(weights, 6)`.
        tiles: int64 `(tiles, 3)`: weight, first row, first column.
        places: int64: where each channel's partial sums are, channel after channel. Tile `t` has its `HEIGHT` sums of
            rows and `COLUMNS` sums of columns from `t * (HEIGHT + COLUMNS)` on.
        starts: int64 `(channels + 2,)`: where each channel's places begin; the waste bin, the last channel, has none.
        slices: How many factors the combining kernel is given.
    """

    weights: tuple[int, ...]
    shapes: Tensor
    tiles: Tensor
    places: Tensor
    starts: Tensor
    slices: int
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
            found = self._addresses[key] = _to_device(
                torch.tensor(key, dtype=torch.int64, device="cpu"), self.shapes.device
            )
        if capturing:
            self._captured.append(found)
        return found

    def energies(self, weights: Sequence[Tensor]) -> Tensor | None:
        """Return the energies of all channels and the waste bin, `(channels + 1,)`; None if that cannot be done."""
        where = None if _obstacles else self.addresses(weights)
        if where is None:
            return None
        device = self.shapes.device
        sums = torch.empty(len(self.tiles) * (HEIGHT + COLUMNS), dtype=torch.float32, device=device)
        energies = torch.empty(len(self.starts) - 1, dtype=torch.float32, device=device)
        tile = {"HEIGHT": HEIGHT, "ROWS": ROWS, "COLUMNS": COLUMNS}
        first = _launch("square_sums", len(self.tiles), (where, self.shapes, self.tiles, sums), tile)
        then = (sums, self.places, self.starts, energies)
        return energies if first and _launch("channel_sums", len(energies), then, {"BLOCK": BLOCK}) else None

    def combine(
        self,
        targets: Sequence[Tensor | None],
        weights: Sequence[Tensor],
        per_slice: Tensor,
        *,
        add: bool,
        multiply: bool,
    ) -> bool:
        """Write weights times factors into targets, or add them; return whether that could be done.

        Args:
            targets: Tensors like the weights, in type and memory order too; None passes a weight over.
            weights: The weights.
            per_slice: The factor of each slice.
            add: Add to the targets.
            multiply: The factors of row and column are multiplied, not summed.

        Raises:
            ValueError: There is not one factor per slice, or a target has another size than its weight.
        """
        if per_slice.shape != (self.slices,):
            raise ValueError(f"the factors have shape {tuple(per_slice.shape)}; there are {self.slices} slices")
        for i in self.weights:
            if (target := targets[i]) is not None and target.shape != weights[i].shape:
                raise ValueError(f"a target of shape {tuple(target.shape)} for a weight of {tuple(weights[i].shape)}")
        where, goals = (None, None) if _obstacles else (self.addresses(weights), self.addresses(targets))
        if where is None or goals is None:
            return False
        options = {"ADD": add, "MULTIPLY": multiply, "HEIGHT": HEIGHT, "ROWS": ROWS, "COLUMNS": COLUMNS}
        return _launch("combine", len(self.tiles), (where, goals, self.shapes, self.tiles, per_slice), options)


def make_tiles(
    known: Mapping[int, tuple[int, ...]], index: Tensor, channels: int, device: torch.device
) -> Tiles | None:
    """Cut weights into tiles; None on a device without kernels.

    Args:
        known: The six numbers of each weight that takes part, by its position in the list of all weights.
        index: The channel of each slice, `(slices,)`, on the CPU.
        channels: Channels in all; slices of the one after the last are wasted.
        device: Where the kernels will run.
    """
    if device.type not in KERNEL_DEVICES:
        return None
    tiles = [
        (number, row, column)
        for number, (height, width, *_) in enumerate(known.values())
        for row in range(0, height, HEIGHT)
        for column in range(0, width, COLUMNS)
    ]
    places, starts = _sum_order(list(known.values()), index, channels)
    shapes = torch.tensor(list(known.values()), dtype=torch.int64).reshape(-1, FIELDS).to(device)
    numbers = torch.tensor(tiles, dtype=torch.int64).reshape(-1, 3).to(device)
    return Tiles(tuple(known), shapes, numbers, places.to(device), starts.to(device), len(index))


def _sum_order(rows: Sequence[tuple[int, ...]], index: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """Return the places of all partial sums, sorted by channel, and where each channel's begin."""
    places, owners = [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int64)]
    first = 0  # number of the weight's first tile
    for height, width, divisor, columns, rows_at, columns_at in rows:
        down, across = -(-height // HEIGHT), -(-width // COLUMNS)
        tile = HEIGHT + COLUMNS
        if rows_at >= 0:
            r, j = torch.arange(height)[:, None], torch.arange(across)[None, :]
            places.append(((first + r // HEIGHT * across + j) * tile + r % HEIGHT).flatten())
            owners.append(index[rows_at : rows_at + height].repeat_interleave(across))
        if columns_at >= 0:
            c, i = torch.arange(width)[None, :], torch.arange(down)[:, None]
            places.append(((first + i * across + c // COLUMNS) * tile + HEIGHT + c % COLUMNS).flatten())
            owners.append(index[columns_at + (torch.arange(width) // divisor) % columns].repeat(down))
        first += down * across
    place, owner = torch.cat(places), torch.cat(owners)
    order = owner.argsort(stable=True)[: int((owner < channels).sum())]
    counts = torch.bincount(owner[order], minlength=channels + 1)
    return place[order], torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _to_device(numbers: Tensor, device: torch.device) -> Tensor:
    """Copy to a device without waiting for it."""
    return numbers.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numbers


def _on(device: torch.device) -> AbstractContextManager[object]:
    """Make a device the current one: Triton launches on that, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _launch(name: str, programs: int, arguments: Sequence[Tensor], options: Mapping[str, int]) -> bool:
    """Run a kernel with some programs, on the device of its arguments; return whether it could be run.

    The first launch builds the kernel and its launcher. Where that fails, nothing has run yet; the kernels are not
    tried again in this process.
    """
    if programs == 0:
        return True
    failures: tuple[type[Exception], ...] = (ImportError, OSError, RuntimeError, subprocess.SubprocessError)
    try:
        from triton.errors import TritonError

        from oicsr.fast import kernels

        failures = (*failures, TritonError)
        with _on(arguments[0].device):
            getattr(kernels, name)[(programs,)](*arguments, **options)
    except failures as error:
        _obstacles.append(f"{type(error).__name__}: {error}")
        warn(
            f"the Triton kernels cannot run here ({_obstacles[-1]}); PyTorch operations take their place, which is "
            "slower. Triton needs a C compiler and the headers of Python (gcc and python3-dev)",
            RuntimeWarning,
        )
        return False
    return True
