"""How far each coupling may be thinned: caps, rounding, and the order in which its channels go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from oicsr.arguments import check_count, check_number
from oicsr.coupling import Coupling
from oicsr.names import per_coupling

PAPER_CAP = 0.5  # the share of a layer's channels that Li et al. remove at most
DEFAULT_CAP = 0.9  # where no cap is given; more where the target needs more


@dataclass(frozen=True)
class Limits:
    """Caps and rounding by coupling.

    Attributes:
        couplings: The couplings.
        caps: The largest share of each one's channels that may go; None where that is left to the library.
        rounding: Each width is left a multiple of this.
        references: The widths that the caps refer to.
    """

    couplings: tuple[Coupling, ...]
    caps: tuple[float | None, ...]
    rounding: tuple[int, ...]
    references: tuple[int, ...]

    @staticmethod
    def of(
        couplings: Sequence[Coupling],
        max_removed: float | Mapping[str, float] | None,
        round_to: int | Mapping[str, int],
        original_widths: Mapping[str, int],
    ) -> Limits:
        """Read the arguments of `select_channels`.

        Raises:
            TypeError: A cap, a rounding or a width is not a number.
            ValueError: A cap is not in [0, 1], a rounding is below 1, a name fits no coupling, or an original width is
                below the current one.
        """
        caps = per_coupling(max_removed, couplings, None, "max_removed")
        rounding = per_coupling(round_to, couplings, 1, "round_to")
        for cap in caps:
            if cap is not None and not 0 <= check_number("max_removed", cap) <= 1:
                raise ValueError(f"max_removed is {cap!r}; it must be in [0, 1]")
        for multiple in rounding:
            check_count("round_to", multiple)
        return Limits(tuple(couplings), tuple(caps), tuple(map(int, rounding)), _references(couplings, original_widths))

    @property
    def automatic(self) -> bool:
        """Whether the library chooses the cap of any coupling."""
        return any(cap is None for cap in self.caps)

    def with_automatic(self, cap: float) -> Limits:
        """Return the limits with `cap` where the library chooses."""
        return replace(self, caps=tuple(cap if given is None else given for given in self.caps))

    def raised(self, cap: float) -> Limits:
        """Return the limits with no cap below `cap`."""
        return replace(self, caps=tuple(cap if given is None else max(given, cap) for given in self.caps))

    def floors(self) -> list[int]:
        """Return the smallest width that each coupling may be left with."""
        floors = []
        for coupling, cap, multiple, reference in zip(
            self.couplings, self.caps, self.rounding, self.references, strict=True
        ):
            share = DEFAULT_CAP if cap is None else cap
            least = max(1, reference - math.floor(share * reference + 1e-9))
            floors.append(min(coupling.num_channels, math.ceil(least / multiple) * multiple))
        return floors

    def least(self, scores: Sequence[Tensor]) -> Tensor:
        """Return which channels of all couplings, one after another, stay after all steps, as bool."""
        stays = []
        for score, coupling, floor in zip(scores, self.couplings, self.floors(), strict=True):
            order = torch.sort(score.detach().double().cpu(), stable=True).indices
            layer = torch.ones(coupling.num_channels, dtype=torch.bool, device="cpu")
            layer[order[: coupling.num_channels - floor]] = False
            stays.append(layer)
        return torch.cat(stays)

    def steps(self, scores: Sequence[Tensor]) -> list[Tensor]:
        """Return the sets of channels to remove one after another, least important first, down to the floors.

        Each is an int64 tensor of positions among the channels of all couplings. With rounding, a layer gives up its
        channels in blocks that leave it a multiple; a block is as important as its most important channel.
        """
        steps: list[tuple[float, int, Tensor]] = []
        start = 0
        for score, coupling, floor, multiple in zip(scores, self.couplings, self.floors(), self.rounding, strict=True):
            ascending, order = torch.sort(score.detach().double().cpu(), stable=True)
            values = ascending.tolist()
            width, sizes = coupling.num_channels, list[int]()
            while width > floor:
                sizes.append(min(width % multiple or multiple, width - floor))
                width -= sizes[-1]
            blocks = (start + order[: sum(sizes)]).split(sizes) if sizes else ()
            last = [taken - 1 for taken in accumulate(sizes)]
            steps += [(values[i], start, block) for i, block in zip(last, blocks, strict=True)]
            start += coupling.num_channels
        return [positions for _, _, positions in sorted(steps, key=lambda step: step[:2])]


def _references(couplings: Sequence[Coupling], original_widths: object) -> tuple[int, ...]:
    """Return the width of each coupling that its cap refers to: the original one, or the current."""
    if not isinstance(original_widths, Mapping):
        raise TypeError(
            f"original_widths is {str(original_widths)[:80]!r}, a {type(original_widths).__name__}; it must be a "
            "mapping from names of couplings to their numbers of channels"
        )
    references = []
    for coupling in couplings:
        name, width = coupling.name, original_widths.get(coupling.name, coupling.num_channels)
        references.append(check_count(f"original_widths[{name!r}]", width))
        if width < coupling.num_channels:
            raise ValueError(
                f"original_widths[{name!r}] is {width!r}, but the coupling has {coupling.num_channels} channels: give "
                "the widths from before channels were removed"
            )
    return tuple(references)
