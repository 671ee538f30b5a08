"""Disjoint sets of channel slots: what must be removed together.

Every slice that a channel owns anywhere in a network (a row of a weight, a column of the next one, an entry of a
BatchNorm vector, a plane of an activation) carries an integer label. Operators that tie two channels to each other
join their labels; the sets that result are the channels that can only be removed as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelSets:
    """Union-find over channel labels, with the reason why a set may not be removed.

    The least label of a set stands for it (its root). All operations work on whole tensors of labels.
    """

    def __init__(self) -> None:
        self._parent = torch.arange(1024)  # a label's parent is never greater than itself; its own where it is a root
        self._count = 0
        self._fixed: list[tuple[Tensor, str]] = []
        self._fixed_last: list[tuple[Tensor, str]] = []

    def new(self, count: int) -> Tensor:
        """Return `count` fresh labels, each a set of its own, as an int64 tensor of shape `(count,)`."""
        start, self._count = self._count, self._count + count
        if self._count > len(self._parent):
            self._parent = torch.cat([self._parent, torch.arange(len(self._parent), 2 * self._count)])
        return torch.arange(start, self._count)

    def new_fixed(self, count: int, reason: str) -> Tensor:
        """Return `count` labels of one fresh set that can never be removed, because of `reason`."""
        label = self.new(1)
        self.fix(label, reason)
        return label.expand(count)

    def find(self, labels: Tensor) -> Tensor:
        """Return the root of each label, in the shape of `labels`."""
        roots = self._parent[labels]
        while True:
            further = self._parent[roots]
            if torch.equal(further, roots):
                break
            roots = further
        self._parent[labels] = roots  # shorter paths for the next time
        return roots

    def join(self, first: Tensor, second: Tensor) -> bool:
        """Join the sets of two equally shaped label tensors, pair by pair; return whether anything was joined."""
        if first.shape != second.shape:
            raise ValueError(f"labels of shapes {tuple(first.shape)} and {tuple(second.shape)} cannot be joined")
        first, second = self.find(first.flatten()), self.find(second.flatten())
        changed = False
        while bool((apart := first != second).any()):
            changed = True
            first, second = first[apart], second[apart]
            # a root that is to be joined to several others gets the least of them, and meets the rest in the next turn
            self._parent.scatter_reduce_(0, torch.maximum(first, second), torch.minimum(first, second), "amin")
            first, second = self.find(first), self.find(second)
        return changed

    def fix(self, labels: Tensor, reason: str, *, last: bool = False) -> None:
        """Declare that no channel of `labels` may be removed, because of `reason`.

        The first reason stands; with `last`, any other one comes before it.
        """
        (self._fixed_last if last else self._fixed).append((labels.unique(), reason))

    def stays(self, labels: Tensor, *, last: bool = False) -> Tensor:
        """Return which channels of `labels` are known already to stay, as bool of the shape of `labels`.

        With `last`, those alone that were fixed in this way.
        """
        fixed = [self.find(own) for own, _ in (self._fixed_last if last else self._fixed + self._fixed_last)]
        return torch.isin(self.find(labels), torch.cat(fixed)) if fixed else torch.zeros_like(labels, dtype=torch.bool)

    def roots(self) -> Tensor:
        """Return the root of every label, as an int64 tensor indexed by label."""
        return self.find(torch.arange(self._count))

    def reasons(self) -> tuple[Tensor, list[str]]:
        """Return why sets may not be removed.

        Returns:
            For each root the position of its reason, int64 `(labels,)`, -1 where the set may go; and the reasons.
        """
        which, fixed = torch.full((self._count,), -1), self._fixed + self._fixed_last
        for position in reversed(range(len(fixed))):  # the first reason is written last
            which[self.find(fixed[position][0])] = position
        return which, [reason for _, reason in fixed]
