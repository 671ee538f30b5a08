"""Disjoint sets of channel slots: what must be removed together.

Every slice that a channel owns anywhere in a network (a row of a weight, a column of the next one, an entry of a
BatchNorm vector, a plane of an activation) carries an integer label. Operators that tie two channels to each other
join their labels; the sets that result are the channels that can only be removed as a whole.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ChannelSets:
    """Union-find over channel labels, with the reason why a set may not be removed."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._fixed: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """Return `count` fresh labels, each a set of its own, as an int64 tensor of shape `(count,)`."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def new_fixed(self, count: int, reason: str) -> Tensor:
        """Return `count` labels of one fresh set that can never be removed, because of `reason`."""
        label = self.new(1)
        self._fixed[int(label)] = reason
        return label.expand(count)

    def find(self, label: int) -> int:
        """Return the representative of the set that `label` is in."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]  # path halving
            label = parent[label]
        return label

    def join(self, first: Tensor, second: Tensor) -> bool:
        """Join the sets of two equally shaped label tensors, pair by pair; return whether anything was joined."""
        pairs = set(zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
        changed = [self.join_pair(a, b) for a, b in pairs]
        return any(changed)

    def join_pair(self, first: int, second: int) -> bool:
        """Join the sets of two labels; return whether they were apart."""
        root, other = sorted((self.find(first), self.find(second)))
        if root == other:
            return False
        self._parent[other] = root
        if other in self._fixed:
            self._fixed.setdefault(root, self._fixed.pop(other))
        return True

    def fix(self, labels: Tensor, reason: str) -> None:
        """Declare that no channel of `labels` may be removed, because of `reason` (the first reason stands)."""
        for label in set(labels.flatten().tolist()):
            self._fixed.setdefault(self.find(label), reason)

    def roots(self) -> Tensor:
        """Return the representative of every label, as an int64 tensor indexed by label."""
        return torch.tensor([self.find(label) for label in range(len(self._parent))], dtype=torch.int64)

    def reason_fixed(self, label: int) -> str | None:
        """Return why the channel `label` may not be removed, or None where it may."""
        return self._fixed.get(self.find(label))
