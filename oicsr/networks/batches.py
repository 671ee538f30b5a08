"""How many inputs an example holds, by what the first layers of a network read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from oicsr.networks.inputs import Inputs

MOSTLY = 0.9  # the share of the MACs that a batch must divide; a table of positions may have layers of its own


@dataclass(frozen=True)
class Batch:
    """What an example holds.

    Attributes:
        size: The number of inputs that the layers read at once.
        listed: The number of inputs in a list that they read one by one.
    """

    size: int
    listed: int

    def shares(self, counts: Sequence[int]) -> list[int]:
        """Return what is left of counts, one per call, for one input.

        What a batch does not divide is done once for all of it. Of a list that is run one by one, each call gets its
        share, and these add up to what one input takes on average.
        """
        counts = [count // self.size if count % self.size == 0 else count for count in counts]
        if self.listed > 1 and len(counts) % self.listed == 0:
            sums = [total // self.listed for total in accumulate(counts, initial=0)]
            return [after - before for before, after in pairwise(sums)]
        return [count // self.listed if count % self.listed == 0 else count for count in counts]


class SeenBatch:
    """The batch, as the first layer sees it.

    What a linear layer takes for the batch may be steps: a recurrent layer or an attention behind it, of the same
    numbers of steps and sequences, knows better.

    Attributes:
        size: Inputs in the first layer's batch; 1 where it reads a single one; None before the first call.
        axis: The axis of the first layer's input that they lie on: 1 where steps are in front.
        rank: The number of axes of one input of the first layer, without that of the batch.
    """

    def __init__(self) -> None:
        self.size: int | None = None
        self.axis, self.rank = 0, 0
        self._doubtful: tuple[int, ...] = ()  # the axes before the last one of what a first linear layer reads
        self._swapped = WeakTensorKeyDictionary()

    def note_layer(self, source: Tensor, spatial: int) -> None:
        """Note what a linear layer reads, or a convolution over `spatial` axes."""
        if self.size is None:
            single = source.ndim <= spatial + 1
            self.size, self.rank = (1, source.ndim) if single else (int(source.shape[0]), source.ndim - 1)
            self._doubtful = () if spatial else tuple(source.shape[:-1])

    def note_swapped(self, value: Tensor) -> None:
        """Note a value whose first two axes changed places: the second one may be the batch."""
        self._swapped[value] = True

    def note_attention(self, query: Tensor) -> None:
        """Note what `multi_head_attention_forward` reads: `(steps, batch, width)` or, alone, `(steps, width)`.

        Where modules and their callers have the batch in front, they have it change places with the steps before.
        """
        alone = query.ndim < 3
        axis = 0 if alone or query in self._swapped else 1
        self._note_sequences(1 if alone else int(query.shape[1]), axis, query.shape[0])

    def note_recurrent(self, args: Sequence[Any]) -> None:
        """Note how many sequences a recurrent layer reads, or states a cell, by the arguments of its function."""
        source, second = args[0], args[1]
        if source.ndim == 3:  # `batch_first` is the last argument
            axis = 0 if args[-1] is True else 1
            self._note_sequences(int(source.shape[axis]), axis, source.shape[1 - axis])
        elif isinstance(second, Tensor) and second.ndim == 1:  # packed, by the sizes of the steps
            self._note_sequences(int(second[0]), 1, None)
        else:
            self._note_sequences(int(source.shape[0]), 0, None)

    def _note_sequences(self, size: int, axis: int, steps: int | None) -> None:
        """Note the batch of a layer that knows steps from sequences, unless a layer before it did.

        Args:
            size: The number of sequences.
            axis: The axis of the layer's input that they lie on.
            steps: Of each; None where they are not known.
        """
        each_step = steps is None and len(self._doubtful) == 2 and self._doubtful[1] == size
        known = self._doubtful in ((steps, size), (steps,) if size == 1 else None)
        if self.size is None or known or each_step:
            self.size, self.axis, self.rank = size, 1 if each_step else axis, 2
        self._doubtful = ()

    def find(self, inputs: Inputs, works: Sequence[tuple[int, int]]) -> Batch:
        """Return what an example holds.

        Args:
            inputs: The example.
            works: For each call that may have a batch, a number that it must divide, and its MACs.
        """
        return Batch(self._batch_size(inputs, works), self._listed(inputs))

    def _batch_size(self, inputs: Inputs, works: Sequence[tuple[int, int]]) -> int:
        """Return how many inputs the layers read at once.

        That is what the first layer sees where an input or a list of inputs has as many along axis 0 (or behind the
        steps), or where it sees a single one. A layer that sees others (frames of videos, windows) leaves axis 0 of the
        first input. A number by which the positions of layers cannot be divided is no batch: the next likely one is
        taken then.
        """
        seen, tensors = self.size, inputs.tensors()
        behind = [t for t in tensors if t.ndim > 2 or (t.ndim == 2 and not t.is_floating_point())]  # or of tokens
        seconds = [tensor.shape[1] for tensor in behind if self.axis == 1]
        sizes = [tensor.shape[0] for tensor in tensors if tensor.ndim]
        sizes += [len(value) for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, list | tuple)]
        first = seen or 1 if not sizes or seen in (1, *seconds, *sizes) else sizes[0]
        if first == 1:
            return 1
        likely = [size for size in dict.fromkeys([first, seen or 1, *sizes]) if size > 1]
        whole = max(1, sum(macs for _, macs in works))
        shares = {size: sum(macs for count, macs in works if count % size == 0) / whole for size in likely}
        for least in (1.0, MOSTLY):
            found = [size for size, share in shares.items() if share >= least]
            if found:
                return found[0]
        return 1

    def _listed(self, inputs: Inputs) -> int:
        """Return how many inputs lie in a list whose parts the layers read one by one, each of the rank of one input.

        One where there is no such list; the levels of a pyramid have an axis of the batch each.
        """
        lists = [value for value in (*inputs.args, *inputs.kwargs.values()) if isinstance(value, list | tuple)]
        for value in lists if self.size == 1 else ():
            if value and all(isinstance(part, Tensor) and part.ndim == self.rank for part in value):
                return len(value)
        return 1
