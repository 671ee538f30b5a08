"""Weights that are copies of one: a kernel that is repeated for every channel, or several kernels for each of them."""

from __future__ import annotations

import math

from torch import fx

from oicsr.rules.calls import argument, operator_name, shape_of, source_of
from oicsr.rules.ids import pad_left
from oicsr.rules.names import CONVOLUTIONS, JOINED
from oicsr.rules.table import aten

REPEATED = frozenset(aten("repeat tile"))


def copies_by_group(node: fx.Node, position: int) -> int:
    """Return how often an axis is repeated, where that makes one copy for each group of convolutions; 0 elsewhere.

    One kernel of a wavelet for all channels, `conv2d(x, kernel.repeat(channels, 1, 1, 1), groups=channels)`: a copy
    goes with its channel, though its slices are those of every other copy.
    """
    if operator_name(node) in JOINED:
        return copies_joined(node) if _is_by_group(node, copies_joined(node)) else 0
    if operator_name(node) not in REPEATED:
        return 0
    counts = pad_left(argument(node, 1), len(shape_of(node)))
    copies = counts[position - len(shape_of(source_of(node)))]
    return copies if copies == math.prod(counts) and _is_by_group(node, copies) else 0


def copies_joined(node: fx.Node) -> int:
    """Return how often `torch.cat([kernel] * channels)`, or `torch.stack`, puts a weight behind itself; 0 elsewhere."""
    sources = list(argument(node, 0))
    return len(sources) if len(sources) > 1 and len(set(sources)) == 1 else 0


def _is_by_group(node: fx.Node, copies: int) -> bool:
    """Return whether convolutions alone read a weight, each of as many groups as there are copies."""
    users = [u for u in node.users if operator_name(u) in CONVOLUTIONS and argument(u, 1) is node]
    return copies > 1 and 0 < len(users) == len(node.users) and all(argument(u, "groups") == copies for u in users)
