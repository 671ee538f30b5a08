"""Check, on the device in use and before any replay counts, that a replayed step equals the step itself.

One step is replayed and its result kept; everything that a step changes is restored (parameters, buffers, momentum,
counters, totals, random numbers); then the same step is run eagerly, and the changes of every tensor are compared. This
detects a graph that does nothing, omits the update, reads memory that was reused, or keeps the learning rate of its
capture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], None]

TOLERANCE = 0.01  # of the change that the step itself makes, in the L2 norm of each tensor
FLOOR = 0.1  # a tensor that hardly changes (a bias before BatchNorm) is held to this share of the typical change


@dataclass(frozen=True)
class Moment:
    """Tensors and random numbers as they were."""

    tensors: dict[str, Tensor]
    host: Tensor
    device: Tensor | None


class ReplayCheck:
    """Compares a replay with the step that it stands for.

    Args:
        tensors: Returns all that a step changes, by a name that begins with its kind ("momentum conv1.weight"); the
            tensors themselves, which are written to when they are put back.
        device: Where they are.
    """

    def __init__(self, tensors: Callable[[], Mapping[str, Tensor]], device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def difference(self, replay: Call, step: Call, *, counts: bool) -> str:
        """Replay, restore everything, run the step eagerly; return how they differ, or nothing.

        Args:
            replay: Replays the step.
            step: Runs it eagerly.
            counts: Whether the eager step is kept; otherwise it is undone too.
        """
        before = self.moment()
        replay()
        replayed = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        self.put_back(before)
        step()
        found = first_difference(before.tensors, replayed, self._tensors())
        if not counts:
            self.put_back(before)
        return found

    def moment(self) -> Moment:
        """Return everything as it is now."""
        tensors = {name: tensor.detach().clone() for name, tensor in self._tensors().items()}
        on_gpu = self._device.type == "cuda"
        return Moment(tensors, torch.get_rng_state(), torch.cuda.get_rng_state(self._device) if on_gpu else None)

    @torch.no_grad()
    def put_back(self, moment: Moment) -> None:
        """Restore everything."""
        for name, tensor in self._tensors().items():
            tensor.copy_(moment.tensors[name])
        torch.set_rng_state(moment.host)
        if moment.device is not None:
            torch.cuda.set_rng_state(moment.device, self._device)


@torch.no_grad()
def first_difference(before: Mapping[str, Tensor], replayed: Mapping[str, Tensor], taken: Mapping[str, Tensor]) -> str:
    """Return, in words, the first tensor whose two changes since `before` differ by more than the tolerance, or "".

    Integers must be equal. Changes that are not finite (training diverged) are not compared.
    """
    for name, tensor in taken.items():
        if not tensor.is_floating_point() and not torch.equal(tensor, replayed[name]):
            return f"it leaves other numbers in {name}"
    names = [name for name, tensor in taken.items() if tensor.is_floating_point() and tensor.numel()]
    changes = torch.stack([(taken[name] - before[name]).double().norm() for name in names] or [torch.zeros(())]).cpu()
    if not bool(changes.isfinite().all()):
        return ""
    errors = torch.stack([(taken[name] - replayed[name]).double().norm() for name in names] or [torch.zeros(())]).cpu()
    sizes = torch.tensor([float(taken[name].numel()) for name in names], dtype=torch.float64)
    kinds = [name.partition(" ")[0] for name in names]
    for i, name in enumerate(names):
        same = torch.tensor([kind == kinds[i] for kind in kinds])
        typical = (changes[same].square().sum() / sizes[same].sum()).sqrt() * sizes[i].sqrt()
        allowed = TOLERANCE * torch.maximum(changes[i], FLOOR * typical)
        if not bool(errors[i] <= allowed):
            share = float(errors[i] / torch.maximum(changes[i], FLOOR * typical))
            return f"its change of {name} is off by {share:.0%}"
    return ""
