"""An epoch in progress: training may stop after any step and resumes there bit for bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine.processes import current_rank, summed


@dataclass
class PartEpoch:
    """The steps of the current epoch that are done.

    Attributes:
        generator: State of the generator of order and augmentation when the epoch began: its numbers are drawn again.
        totals: Loss, penalty and right answers, summed over the images, float64 `(3,)`.
        steps: How many are done.
        images: Number of images in them.
        seconds: Time spent on them.
    """

    generator: Tensor
    totals: Tensor
    steps: int = 0
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def new(cls, generator: torch.Generator, device: torch.device) -> PartEpoch:
        """Return an epoch that begins now. Its totals are on the device: no step waits for them."""
        return cls(generator.get_state(), torch.zeros(3, device=device, dtype=torch.float64))

    def plain(self) -> dict[str, Any]:
        """Return what a checkpoint holds of it; totals and images are those of all processes together."""
        both = summed(torch.cat([self.totals, self.totals.new_tensor([self.images])]))
        return {
            "totals": both[:3].clone(),
            "images": round(float(both[3])),
            "steps": self.steps,
            "seconds": self.seconds,
        }

    @classmethod
    def from_plain(cls, values: dict[str, Any], generator: Tensor, device: torch.device) -> PartEpoch:
        """Return the epoch that `plain` describes; the first process takes the sums of all of them."""
        share = int(current_rank().first)
        totals = share * values["totals"].to(device)
        return cls(generator.cpu(), totals, values["steps"], share * values["images"], values["seconds"])
