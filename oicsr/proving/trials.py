"""A copy of a network on a bench: channels are set to zero and removed, and the outputs compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils import parametrize

from oicsr.coupling import Coupling, Member, channel_mask
from oicsr.names import named_tensors
from oicsr.networks.copying import (
    MODEL_ERRORS,
    attributes_kept,
    copy_model,
    first_line,
    hooks_off,
    shared,
    uncompiled,
)
from oicsr.networks.inputs import Inputs, tensors_in
from oicsr.networks.state import buffers_kept, generators_kept, indices_on_cpu, seed_generators
from oicsr.networks.wrapping import stand_alone
from oicsr.parametrized import lengths
from oicsr.plan import PruningPlan
from oicsr.proving.advice import advice
from oicsr.proving.chance import choose_kept, is_sparse, measured, measuring, move_statistics, noisy_example, randomize
from oicsr.proving.watching import WIDER, Watch, default_dtype, storages
from oicsr.reference import along_axis
from oicsr.surgery import apply_plan

Surgery = Callable[[nn.Module, PruningPlan], None]
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}  # of the largest value of an output
COARSE_TOLERANCE = 5e-2  # in half precision
TRAINING_TOLERANCE = 1e-7  # statistics of a batch of two magnify rounding from layer to layer
ROUNDING = 1e-14  # of an output of zeros
LEAST = 1e6 * ROUNDING  # the largest output must reach this, or no difference would show
MAX_BYTES = 4 << 30  # of a copy in float64
NUDGE = 1e-6  # relative change of inputs, times the tolerance, that shows whether training mode magnifies rounding
MAGNIFIED = 1e-3  # of the outputs: a network that magnifies rounding to more than that shows nothing
ROUNDED = 1e-13  # relative change of inputs that stands for the rounding of all layers
ROUNDINGS = 8  # the smallest change of inputs, in units of their rounding (eps)
TRAINING_FAILS = "cannot lose channels: training mode fails without them"
EXAMPLES = 2  # examples of a batch that are tried first; one for a large network
LARGE = 1 << 22  # parameters and buffers, in elements, from which a network counts as large
THINNED = 128, 4  # in training mode, of images with at least 128 pixels a side every 4th pixel is used


def forms(model: nn.Module, inputs: Inputs) -> Iterator[tuple[torch.dtype | None, Inputs]]:
    """Yield the precisions (None: the network's own) and inputs to try a network with, the best first."""
    floats = [t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()]
    fits = sum(t.numel() for t in floats) * torch.float64.itemsize <= MAX_BYTES
    knows = all(t.device.type != "mps" for t in floats)
    examples = EXAMPLES if sum(t.numel() for t in floats) < LARGE else 1
    for dtype in (torch.float64, None) if fits and knows else (None,):
        tensors = inputs.tensors()
        sizes = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors}
        if len(sizes) == 1 and next(iter(sizes)) > examples and not any(is_sparse(tensor) for tensor in tensors):
            yield dtype, inputs.map(lambda tensor: tensor[:examples])
        yield dtype, inputs


class Bench:
    """A copy of a network with random parameters, in which channels can be set to zero, removed and brought back.

    Attributes:
        untried: What could not be tried, in the order found.
        read_of_original: Names of the original's parameters and buffers that the copy was seen to read, and where.
        is_sharp: Whether numbers are compared in float64, and are not random or whole ones.
    """

    @indices_on_cpu()
    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        couplings: Sequence[Coupling],
        *,
        surgery: Surgery | None = None,
        dtype: torch.dtype | None = torch.float64,
        seed: int = 0,
        kept: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.untried: list[str] = []
        self.read_of_original: dict[str, str] = {}
        self.is_sharp = dtype == torch.float64
        self._surgery: Surgery = surgery or apply_plan
        self._couplings = couplings
        self._dtype = dtype
        self._seed = seed
        self._originals = storages(model)
        self._model = stand_alone(copy_model(model, self._convert, constants=self._convert)).eval()
        generator = torch.Generator().manual_seed(seed)
        randomize(self._model, generator)
        self._generator = generator
        self._inputs = inputs.map(lambda tensor: noisy_example(self._convert(tensor), generator))
        self._training_inputs = self._inputs
        self._kept = choose_kept(couplings, generator) if kept is None else kept
        self._tensors = named_tensors(self._model)
        self._lengths = lengths(self._model)
        self._only_readers = False  # whether only the weights that read a channel are set to zero
        self._expected: list[Tensor] = []
        self._whole: dict[int, tuple[Tensor, Tensor]] = {}  # tensors with slices at zero, and their own values
        self._at_zero: tuple[str, ...] | None = None  # the couplings that have slices at zero
        self._small: tuple[tuple[str, ...], nn.Module] | None = None

    def _convert(self, tensor: Tensor) -> Tensor:
        """Return a copy in the precision of the trial; of a parameter, a parameter."""
        wide = tensor.dtype if self._dtype is None else WIDER.get(tensor.dtype, tensor.dtype)
        copied = tensor.detach().to(wide, copy=True)
        return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied

    def removed(self) -> dict[str, frozenset[int]]:
        """Return the channels of each coupling that trials remove."""
        return {
            coupling.name: frozenset(range(coupling.num_channels)).difference(self._kept[coupling.name])
            for coupling in self._couplings
        }

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Take off users' hooks, and put the random state back on leaving."""
        with generators_kept(self._model), hooks_off(self._model), uncompiled():
            yield

    def first_run(self) -> str | None:
        """Run the network with channels of all couplings at zero; return why it failed, or None if it ran."""
        self._settle()
        try:
            self._expected = self._zeroed_outputs(self._couplings)
            if not _finite(self._expected) and not self._only_readers:
                self._restore()
                self._only_readers = True  # a length of zero may have divided by zero (weight norm)
                self._expected = self._zeroed_outputs(self._couplings)
        except MODEL_ERRORS as error:
            return f"its copy does not run ({type(error).__name__}: {first_line(error)})"
        if not self._expected:
            return "its output holds no tensors"
        if not any(tensor.numel() for tensor in self._expected):
            return "its outputs are empty on the example inputs"
        if not _finite(self._expected, but_infinite=True):
            return "its outputs are not finite on the example inputs"
        numbers = [
            float(t.abs()[t.isfinite()].max())
            for t in self._expected
            if t.numel() and (t.is_floating_point() or t.is_complex()) and bool(t.isfinite().any())
        ]
        if not numbers:
            self.untried.append(
                f"the outputs of {type(self._model).__name__} are integers, which hide small differences"
            )
            self.is_sharp = False
        return "its outputs are nearly zero on the example inputs" if numbers and max(numbers) < LEAST else None

    def _settle(self) -> None:
        """Give normalisations the statistics of what they see, with channels at zero, moved at random.

        With others, what one layer computes may be lost beside what the next ones add to it.
        """
        norms = measured(self._model)
        own = [(b, b.clone()) for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]
        for only_readers in (False, True) if norms else ():  # what is zero may be divided by, as in `first_run`
            self._only_readers = only_readers
            self._put_to_zero(self._couplings)
            try:
                self._run(self._model, training=False, measure=norms)
            except MODEL_ERRORS:  # some code knows no training mode
                return
            if all(bool(buffer.isfinite().all()) for buffer, _ in own):
                break
            self._restore()
            for buffer, values in own:
                buffer.copy_(values)
        for buffer, values in move_statistics(norms, self._generator):
            for place in (buffer, *self._whole.get(id(buffer), ())[1:]):
                place.copy_(values)

    def disagreement(self, couplings: Sequence[Coupling]) -> str | None:
        """Return what happens where channels of zeros of `couplings` are removed, or None where nothing does."""
        self._put_to_zero(couplings)
        try:  # first, as it ends early where shapes no longer fit
            found = self._run(self._pruned(couplings), training=False)
        except MODEL_ERRORS as error:
            if any(frame.f_code.co_filename == parametrize.__file__ for frame, _ in walk_tb(error.__traceback__)):
                return f"cannot lose channels: the parametrization of a weight fails without them ({first_line(error)})"
            reason = f"cannot lose channels: its width is a number in the model's code ({first_line(error)})"
            return f"{reason}; {advice(error)}"
        whole = len(couplings) == len(self._couplings)
        expected = self._expected if whole else self._zeroed_outputs(couplings)
        difference = _difference(expected, found, self._tolerance())
        if difference is None or self._is_random(couplings, expected) or self._is_rounding(couplings, expected, found):
            return None
        return (
            f"cannot lose channels: {difference} where channels of zeros go (an operator depends on how many channels "
            "there are, or the width is a number in the model's code)"
        )

    def training_disagreement(self, couplings: Sequence[Coupling]) -> str | None:
        """Return what happens in training mode without the channels of `couplings`, or None where nothing does.

        Numbers are compared where they mean something: not where they are random, or where the statistics of so small
        a batch magnify rounding beyond all bounds.
        """
        expected = self._training_outputs(couplings)
        if expected is None:
            return None
        try:
            found = self._run(self._pruned(couplings), training=True)
        except MODEL_ERRORS as error:
            reason = f"{TRAINING_FAILS} ({first_line(error)}); if a width is a number in the model's code there"
            return f"{reason}, {advice(error)}"
        tolerance = max(TRAINING_TOLERANCE, 10 * self._tolerance())
        difference = _difference(expected, found, tolerance)
        if difference is None:
            return None
        again = self._zeroed_outputs(couplings, training=True, seed=self._seed + 1, nudge=NUDGE * tolerance)
        if _difference(expected, again, tolerance) is not None:
            return None
        return f"cannot lose channels: in training mode {difference} where channels of zeros go"

    def _training_outputs(self, couplings: Sequence[Coupling]) -> list[Tensor] | None:
        """Return the outputs in training mode with channels at zero; None where the network does not run there.

        Large images are thinned out first, as the pass is one of many that this costs; where that fails, they are not.
        """
        failure: Exception | None = None
        for inputs in _with_thinned(self._inputs):
            self._training_inputs = inputs
            try:
                return self._zeroed_outputs(couplings, training=True)
            except MODEL_ERRORS as error:
                failure = error
        assert failure is not None
        self.untried.append(
            f"training mode of {type(self._model).__name__} could not be tried on the example inputs "
            f"({type(failure).__name__}: {first_line(failure)})"
        )
        return None

    def _is_random(self, couplings: Sequence[Coupling], expected: list[Tensor]) -> bool:
        """Return, and note, whether the outputs in evaluation mode differ from run to run anyway."""
        again = self._zeroed_outputs(couplings, seed=self._seed + 1)
        if _difference(expected, again, self._tolerance()) is None:
            return False
        self.untried.append(f"the outputs of {type(self._model).__name__} in evaluation mode are random: not compared")
        self.is_sharp = False
        return True

    def _is_rounding(self, couplings: Sequence[Coupling], expected: list[Tensor], found: list[Tensor]) -> bool:
        """Return whether outputs differ no more than with inputs that differ by some rounding, which few magnify so."""
        change = _change(expected, self._zeroed_outputs(couplings, nudge=ROUNDED))
        if _difference(expected, found, change) is not None:
            return False
        if change > MAGNIFIED:
            said = f"the outputs of {type(self._model).__name__} magnify rounding to {change:.0e} of them: not compared"
            self.untried.append(said)
            self.is_sharp = False
        return True

    def _tolerance(self) -> float:
        dtypes = {t.dtype for t in self._tensors.values() if t.is_floating_point()}
        return max((TOLERANCES.get(dtype, COARSE_TOLERANCE) for dtype in dtypes), default=TOLERANCES[torch.float64])

    @indices_on_cpu()
    def _pruned(self, couplings: Sequence[Coupling]) -> nn.Module:
        """Return a pruned copy, which shares the parameters that stay whole; the last one is kept.

        Where channels are at zero at the time, they are those that go: `_zeroed_outputs` runs for the same couplings.
        """
        names = tuple(coupling.name for coupling in couplings)
        if self._small is None or self._small[0] != names:
            small = copy_model(self._model, shared)
            self._surgery(small, PruningPlan.from_kept(couplings, {name: self._kept[name] for name in names}))
            self._small = names, small
        return self._small[1]

    def _zeroed_outputs(
        self, couplings: Sequence[Coupling], *, training: bool = False, seed: int | None = None, nudge: float = 0.0
    ) -> list[Tensor]:
        self._put_to_zero(couplings)
        network = copy_model(self._model, shared) if training else self._model
        return self._run(network, training=training, seed=seed, nudge=nudge)

    def _put_to_zero(self, couplings: Sequence[Coupling]) -> None:
        names = tuple(coupling.name for coupling in couplings)
        if self._at_zero != names:
            self._restore()
            self._set_to_zero(couplings)
            self._at_zero = names

    @indices_on_cpu()
    def _set_to_zero(self, couplings: Sequence[Coupling]) -> None:
        """Put tensors with every slice of the channels that go at zero in the place of the network's."""
        for coupling in couplings:
            stays = channel_mask(coupling, self._kept)
            for member in coupling.members:
                tensor = self._tensors[member.parameter]
                if not self._goes_to_zero(member, tensor):
                    continue
                factor = emptying(member, stays, tensor)
                if id(tensor) in self._whole:
                    tensor.data.mul_(factor)
                else:
                    self._whole[id(tensor)] = tensor, tensor.data
                    tensor.data = tensor.data * factor

    def _restore(self) -> None:
        """Put the network's own tensors back."""
        for tensor, values in self._whole.values():
            tensor.data = values
        self._whole.clear()
        self._at_zero = None

    def _goes_to_zero(self, member: Member, tensor: Tensor) -> bool:
        """Leave as they are what may be divided by: variances and their like (positive buffers), directions."""
        if member.axis in self._lengths:
            return False  # the length of a slice goes to zero in its place, as a slice of zeros has no direction
        if self._only_readers:
            return member.side == "in"
        return isinstance(tensor, nn.Parameter) or not bool((tensor > 0).all())

    def _run(
        self,
        network: nn.Module,
        *,
        training: bool,
        seed: int | None = None,
        nudge: float = 0.0,
        measure: Sequence[_NormBase] = (),
    ) -> list[Tensor]:
        """Return the outputs, and leave the statistics of this one pass in the normalisations to `measure`."""
        seed = self._seed if seed is None else seed
        seed_generators(self._model, seed)
        network.train(training)
        inputs = self._training_inputs if training else self._inputs
        inputs = inputs.map(lambda tensor: _nudged(tensor, nudge)) if nudge else inputs
        watch = Watch(self._dtype, self._originals, self.read_of_original)
        own = {id(buffer): None for norm in measure for buffer in (norm.running_mean, norm.running_var)}
        with (
            attributes_kept(network),
            buffers_kept(network, but=own),
            measuring(measure),
            watch,
            default_dtype(self._dtype),
        ):
            outputs = _call_or_doubled(network, inputs) if training or measure else inputs.call(network)
        tensors = list(tensors_in(outputs))
        if not any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
            behind = (watch.decided_from(tensor) for tensor in tensors)
            tensors = [*tensors, *(tensor for tensor in behind if tensor is not None)]
        return [tensor.detach().clone() for tensor in tensors]


def emptying(member: Member, stays: Tensor, tensor: Tensor) -> Tensor:
    """Return what a member's tensor is multiplied with so that the slices of channels that do not stay are zero."""
    return along_axis((member.channels < 0) | stays[member.channels], member.dim, tensor.ndim).to(tensor)


def _call_or_doubled(network: nn.Module, inputs: Inputs) -> Any:
    """Run a network; one input alone may be too little for BatchNorm in training mode, so add another one then."""
    try:
        return inputs.call(network)
    except ValueError:
        return inputs.map(_doubled).call(network)


def _with_thinned(inputs: Inputs) -> Iterator[Inputs]:
    """Yield inputs with large images thinned out, where there are any, and the inputs themselves."""
    least, by = THINNED
    large = [t.ndim >= 4 and t.is_floating_point() and min(t.shape[-2:]) >= least for t in inputs.tensors()]
    if any(large):
        thin = iter(large)
        yield inputs.map(lambda tensor: tensor[..., ::by, ::by] if next(thin) else tensor)
    yield inputs


@indices_on_cpu()
def _nudged(tensor: Tensor, nudge: float) -> Tensor:
    """Return an input, each value moved by a random share of it: one factor for all would be lost in a BatchNorm."""
    if not tensor.is_floating_point() or is_sparse(tensor):
        return tensor
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    share = max(nudge, ROUNDINGS * torch.finfo(tensor.dtype).eps)
    return tensor * (1 + share * noise).to(tensor)


def _doubled(tensor: Tensor) -> Tensor:
    """Return a batch and a batch like it, its values moved along the last axis: equal ones have no variance."""
    other = tensor.roll(1, -1) * 0.9 if tensor.is_floating_point() else tensor
    return torch.cat([tensor, other]) if tensor.ndim else tensor


# ----------------------------------------------------------------------------------------------------------------
# comparing
# ----------------------------------------------------------------------------------------------------------------


def _finite(outputs: Sequence[Tensor], *, but_infinite: bool = False) -> bool:
    """Return whether all values are finite, or else infinite, as masks set them, beside some that are finite."""
    if not but_infinite:
        return all(bool(tensor.isfinite().all()) for tensor in outputs)
    return not any(bool(tensor.isnan().any()) for tensor in outputs) and any(
        bool(tensor.isfinite().any()) for tensor in outputs
    )


def _change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return the largest change of a value, in units of the largest of its tensor."""
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a.is_floating_point() and a.numel()]
    changes = [
        float((a - b).abs().nan_to_num().max()) / max(float(a.abs().nan_to_num().max()), LEAST) for a, b in pairs
    ]
    return max(changes, default=0.0)


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> str | None:
    """Say how outputs differ; None where shapes agree, and numbers to `tolerance` of the largest that differs at all.

    What a mask has set (-1e9, -inf) stays to the last digit, and must not hide what changes beside it.
    """
    if len(expected) != len(found):
        return f"{len(found)} outputs come in the place of {len(expected)}"
    for before, after in zip(expected, found, strict=True):
        if before.shape != after.shape:
            return f"the shape of an output changes from {tuple(before.shape)} to {tuple(after.shape)}"
        if not before.numel():
            continue
        if not (before.is_floating_point() or before.is_complex()):
            if not torch.equal(before, after):
                return "an output of integers changes"
            continue
        differs = before != after
        if not bool(differs.any()):
            continue
        largest = float(before[differs].abs().max())
        change = float((before[differs] - after[differs]).abs().max())
        if not change <= tolerance * largest + ROUNDING or math.isinf(change):
            return f"an output changes by {change:.1e} of {largest:.1e}"
    return None
