"""A complete optimisation step as one CUDA graph, replayed without host synchronisation inside an epoch.

Everything a step reads is in buffers whose addresses never change: the data set, the order, shifts and flips of the
epoch, the learning rate of each of its steps, and a counter on the device that says which step it is. They are filled
once per epoch, from the same CPU random numbers that an eager step would use. So a step is a function without
arguments: it picks its images by index, augments them, runs forward and backward, adds the penalty, updates the weights
and the totals, and advances the counter; its replay costs the host one call.

The first steps of a stage run eagerly on a side stream: they create gradients and momentum, whose memory the graph then
uses, let cuDNN and Triton choose and compile their kernels, and fill the tables of the regulariser. The last of them is
watched for operations in which the host waits for the device. If there are any, or if the capture itself fails,
training continues step by step, and `reason` says why. Weights, momentum, BatchNorm's statistics and random numbers are
those of training without graphs, to rounding (the kernels are the same; gradients are added to zeros where they would
be written). That is why graphs are no part of a stage's name.

Replays are checked (`replay_check`): right after the capture, at half the learning rate of the step, to detect a graph
that kept a rate; and at the first step of every epoch, since memory that a graph reads may have been reused. That step
runs eagerly and counts. If a replay differs, the rest is trained step by step.

A graph belongs to the tensors of one network: every stage, and so every network after a removal, captures its own.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from benchmarks.datasets.contract import Batch
from benchmarks.datasets.in_memory import Draws
from benchmarks.training.part_epoch import PartEpoch
from benchmarks.training.replay_check import Call, ReplayCheck

WARM_UP = 3  # steps before a capture, as in PyTorch's documentation


@runtime_checkable
class ResidentBatches(Protocol):
    """Training batches that are assembled on the device, from images stored there."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        ...

    def draw(self, generator: torch.Generator) -> Draws:
        """Return an epoch's random numbers, on the CPU."""
        ...

    def batch(self, draws: Draws, index: Tensor) -> Batch:
        """Return some images, augmented, and their labels."""
        ...


class Recorder(Protocol):
    """Records a function that works on the same tensors at each call, so that it can be replayed."""

    def warm_up(self, call: Call) -> None:
        """Call once before recording."""
        ...

    def watched(self, call: Call) -> str:
        """Call once more; return why the function cannot be recorded, or nothing."""
        ...

    def record(self, call: Call) -> Call:
        """Return a replacement for `call`, without running it now.

        Raises:
            RuntimeError: It cannot be recorded.
        """
        ...


class CaptureError(OSError):
    """A capture failed and left the device unusable: a problem of the machine, which ends the sweep, not a run."""


class GraphRecorder:
    """Records CUDA graphs.

    Args:
        device: Where all tensors are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def warm_up(self, call: Call) -> None:
        """Call on the side stream that the capture will use too."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            call()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def watched(self, call: Call) -> str:
        """Call, and return the first warning that the host waits for the device."""
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.warm_up(call)
            finally:
                torch.cuda.set_sync_debug_mode(before)
        waits = [w for w in caught if "called a synchronizing" in str(w.message)]
        place = f"{Path(waits[0].filename).name}:{waits[0].lineno}" if waits else ""
        return f"the host waits for the device in every step ({place})" if waits else ""

    def record(self, call: Call) -> Call:
        """Capture the function; see `Recorder.record`.

        Raises:
            RuntimeError: It cannot be captured; stream, allocator and random numbers are as they were before.
            CaptureError: They cannot be restored, so that the device is unusable.
        """
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        before = torch.cuda.current_stream(self._device)
        numbers = torch.cuda.get_rng_state(self._device)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.set_stream(self._stream)
        captured = False
        try:
            graph.capture_begin()
            try:
                call()
            finally:
                graph.capture_end()
            captured = True
        finally:
            torch.cuda.set_stream(before)
            if not captured:
                self._clean_up(graph, numbers)
        replay: Call = graph.replay
        return replay

    def _clean_up(self, graph: torch.cuda.CUDAGraph, numbers: Tensor) -> None:
        """Clean up after a failed capture: its memory pool, its hold on the random number generator.

        Ending a failed capture raises before it has done all that; then the device is tested.
        """
        index = torch.cuda.current_device() if self._device.index is None else self._device.index
        with suppress(RuntimeError):  # the capture may have ended already
            torch._C._cuda_endAllocateToPool(index, graph.pool())
        with suppress(RuntimeError):
            graph.reset()
        # the generator would otherwise stay in its capturing state
        with suppress(RuntimeError, AttributeError, IndexError):
            generator = torch.cuda.default_generators[index]
            generator.graphsafe_set_state(generator.clone_state())
        try:
            torch.cuda.synchronize(self._device)
            torch.cuda.set_rng_state(numbers, self._device)
            torch.rand(1, device=self._device).cpu()
            torch.cuda.set_rng_state(numbers, self._device)
        except RuntimeError as error:
            raise CaptureError(
                "a failed capture of a CUDA graph left the device unusable in this process; do the run again with "
                f"--no-graphs, and it goes on from its checkpoint ({str(error).splitlines()[0]})"
            ) from error


class StaticEpochs:
    """Epochs of steps over static buffers.

    Args:
        batches: Where images come from.
        step: Takes an optimisation step on `(images, labels, rate, *, keep_gradients)`, the rate a float64 scalar, and
            returns what is added to the totals, float64 `(3,)`. The first one makes the gradients, the others keep
            their memory. A bound method, held weakly: when a training is dropped, its graph's memory is free at once.
        parameters: Whose gradients those are.
        changed: Returns the tensors that a step changes, by a name that begins with its kind.
        recorder: How steps are recorded.
        device: Where all of it happens.

    Attributes:
        reason: Why steps are not replayed; empty where they are, or may still be.
        replayed: Steps that were replayed.
    """

    def __init__(
        self,
        batches: ResidentBatches,
        step: Callable[..., Tensor],
        parameters: Sequence[Tensor],
        changed: Callable[[], Mapping[str, Tensor]],
        recorder: Recorder,
        device: torch.device,
    ) -> None:
        self.reason = ""
        self.replayed = 0
        self._batches, self._recorder, self._device = batches, recorder, device
        self._call = weakref.WeakMethod(step)
        self._parameters = list(parameters)
        self._changed = weakref.WeakMethod(changed)
        self._comparison = ReplayCheck(self._all_changed, device)
        self._checked = self._rate_checked = False
        self._gradients: list[Tensor | None] | None = None  # held here, so that their memory stays the graph's
        self._replay: Call | None = None
        self._warm_steps = 0
        self._draws: Draws | None = None
        self._rates = torch.zeros(len(batches), dtype=torch.float64, device=device)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._totals = torch.zeros(3, dtype=torch.float64, device=device)

    def run(
        self, generator: torch.Generator, rates: Sequence[float], part: PartEpoch, check: Callable[[], None]
    ) -> None:
        """Take the steps of an epoch that are not done yet.

        Args:
            generator: Draws the epoch's random numbers.
            rates: The learning rate of each step.
            part: What is done already; its totals are on the device, and become those of this object.
            check: Called before each step; may raise to stop there.
        """
        self._fill(generator, rates, part)
        assert self._draws is not None
        part.totals = self._totals
        for _ in range(part.steps, len(self._batches)):
            check()
            self._take_step()
            part.steps += 1
            part.images += self._draws.order.shape[1]

    def _fill(self, generator: torch.Generator, rates: Sequence[float], part: PartEpoch) -> None:
        """Put an epoch's numbers into the buffers."""
        drawn = self._batches.draw(generator)
        if self._draws is None:
            self._draws = drawn.like(self._device)
        for target, source in zip(self._draws.tensors, drawn.tensors, strict=True):
            copy_to_device(target, source)
        copy_to_device(self._rates, torch.tensor(list(rates), dtype=torch.float64))
        self._position.fill_(part.steps)
        self._totals.copy_(part.totals)
        self._checked = False
        if self._gradients is not None:
            for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
                parameter.grad = gradient

    def _take_step(self) -> None:
        """Take one step: eagerly, as a capture, or as a replay."""
        if self.reason:
            self._step()
        elif self._replay is not None and not self._checked:
            self._check_replay(self._replay)
        elif self._replay is not None:
            self._replay()
            self.replayed += 1
        elif self._warm_steps < WARM_UP - 1:
            self._recorder.warm_up(self._step)
            self._warm_steps += 1
        else:
            self.reason = self._recorder.watched(self._step)
            if not self.reason:
                self._record()

    def _record(self) -> None:
        """Capture the step, or note why not and restore everything."""
        before = self._comparison.moment()
        try:
            self._replay = self._recorder.record(self._step)
        except RuntimeError as error:
            cause: BaseException = error
            while cause.__context__ is not None:  # ending a failed capture fails too, with a message that says less
                cause = cause.__context__
            if not isinstance(cause, Exception):  # Ctrl-C in the middle of a capture
                raise cause from None
            lines = str(cause).splitlines()
            self.reason = f"the capture failed: {lines[0] if lines else type(cause).__name__}"
            self._comparison.put_back(before)

    def _check_replay(self, replay: Call) -> None:
        """Take a step eagerly; before that, replay it, compare the results and discard those of the replay.

        The first time, results are also compared at half the learning rate, since a capture may have kept a rate.
        """
        if not self._rate_checked:
            self._rates.mul_(0.5)
            self._judge(self._comparison.difference(replay, self._step, counts=False))
            self._rates.mul_(2)  # exact, as the halving
            self._rate_checked = True
        if self.reason:
            self._step()
        else:
            self._judge(self._comparison.difference(replay, self._step, counts=True))
        self._checked = True

    def _judge(self, difference: str) -> None:
        if difference:
            self.reason = f"a replayed step is not the step itself: {difference}"
            self._replay = None  # and with it the memory of its graph

    def _all_changed(self) -> dict[str, Tensor]:
        """Return all tensors that a step changes, by name."""
        changed = self._changed()
        assert changed is not None
        return {**changed(), "totals of the epoch": self._totals, "position in the epoch": self._position}

    def _step(self) -> None:
        """Take the step that the counter points at; reads and writes the buffers alone."""
        call = self._call()
        assert call is not None and self._draws is not None
        index = self._draws.order.index_select(0, self._position)[0]  # (batch,)
        rate = self._rates.index_select(0, self._position)[0]
        images, labels = self._batches.batch(self._draws, index)
        self._totals += call(images, labels, rate, keep_gradients=self._gradients is not None)
        self._position += 1
        if self._gradients is None:
            self._gradients = [parameter.grad for parameter in self._parameters]


def copy_to_device(target: Tensor, source: Tensor) -> None:
    """Copy from the CPU into a tensor on a device without waiting for it."""
    if target.device.type == "cuda":
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)
