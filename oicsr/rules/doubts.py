"""Calls of which a trace cannot tell whether channels of zeros change nothing: the numeric proof has to judge them.

A sum over channels does not change without those that are zero, but `exp(x).sum(1)` does; a number of groups that the
code computes from the width follows it, a number that stands in the code does not. Such calls are followed at first.
Where the proof then speaks against channels that take part in one, it is distrusted: the network is traced again, and
those channels stay.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from oicsr.rules.calls import operator_name
from oicsr.rules.labels import ChannelSets


@dataclass(frozen=True)
class Doubt:
    """A call that is followed on trust.

    Attributes:
        name: The name of its node.
        operator: Its operator.
        labels: The channels that take part.
        groups: How many groups it makes of them, where that is what is doubted.
    """

    name: str
    operator: str
    labels: Tensor
    groups: int | None = None


@dataclass
class Doubts:
    """The calls that are followed on trust, and those that are not any more.

    Attributes:
        distrusted: Names of the calls that the proof spoke against; None where there will be no proof.
        found: The others, in their order.
        closed: Whether only what was found already is followed, where it comes again: in the graph of training mode,
            which is tried less strictly.
    """

    distrusted: frozenset[str] | None = None
    found: list[Doubt] = field(default_factory=list)
    closed: bool = False

    def allow(self, sets: ChannelSets, node: fx.Node, labels: Tensor, groups: int | None = None) -> bool:
        """Return whether a call may be followed on trust; remember it then."""
        if self.distrusted is None:
            return False
        own = labels.flatten()
        if self.closed:
            roots = sets.find(own)
            known = [doubt for doubt in self.found if doubt.operator == operator_name(node)]
            return any(torch.equal(sets.find(doubt.labels), roots) for doubt in known)
        if node.name in self.distrusted:
            return False
        self.found.append(Doubt(node.name, operator_name(node), own, groups))
        return True
