"""State that running a model may change: context managers that restore it, and the lock of the process's own."""

from __future__ import annotations

import io
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_lock = threading.RLock()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one thread after another change what belongs to the whole process and put it back. Also a decorator.

    That is the default type of new tensors, global hooks, the filters of warnings, and functions of PyTorch that are
    replaced for a while: two threads that overlap would each restore what the other one has changed.
    """
    with _lock:
        yield


class Muted(io.TextIOBase):
    """A standard error that drops what this thread writes, and passes on what others do."""

    def __init__(self) -> None:
        super().__init__()
        self._thread, self._stream = threading.get_ident(), sys.stderr

    def write(self, text: str) -> int:
        """Write a text, unless it is this thread's."""
        if threading.get_ident() != self._thread and self._stream is not None:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream behind."""
        if self._stream is not None:
            self._stream.flush()


def devices_of(model: nn.Module) -> list[torch.device]:
    """Return the devices of the parameters and buffers of a model, each once."""
    return list({tensor.device: None for tensor in [*model.parameters(), *model.buffers()]})


@contextmanager
def buffers_kept(model: nn.Module, *, but: Mapping[int, object] | None = None) -> Iterator[None]:
    """Restore all buffers on leaving but those with an id in `but`; after an error, those as well."""
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not _is_expanded(buffer)]
    kept: Mapping[int, object] = {}
    try:
        yield
        kept = but or {}
    finally:
        with torch.no_grad():
            for buffer, values in before:
                if id(buffer) not in kept:
                    buffer.copy_(values)


@contextmanager
def values_kept(model: nn.Module) -> Iterator[None]:
    """Give parameters the memory back that they had: some code puts another in its place (`weight.data = ...`)."""
    own = [p for p in model.parameters() if type(p) is nn.Parameter and p.layout == torch.strided]
    saved = [(parameter, parameter.data) for parameter in own]
    try:
        yield
    finally:
        for parameter, values in saved:
            if parameter.data_ptr() != values.data_ptr() or parameter.shape != values.shape:
                parameter.data = values


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Return whether values of a tensor share memory (`mask.expand(...)`): PyTorch lets nothing write to these."""
    return tensor.layout == torch.strided and any(
        size > 1 and step == 0 for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


@contextmanager
def generators_kept(model: nn.Module) -> Iterator[None]:
    """Restore the generators of PyTorch, Python and NumPy on leaving: forwards and shuffled batches draw from them."""
    devices = [device for device in devices_of(model) if device.type not in ("cpu", "meta")]
    kind = devices[0].type if devices else "cuda"
    numpy: Any = sys.modules.get("numpy")  # no dependency of the library
    python, of_numpy = random.getstate(), numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices, device_type=kind):
            yield
    finally:
        random.setstate(python)
        if of_numpy is not None:
            numpy.random.set_state(of_numpy)


def seed_generators(model: nn.Module, seed: int) -> None:
    """Seed PyTorch's generators, of the CPU and of the devices that a model is on."""
    torch.default_generator.manual_seed(seed)
    for device in devices_of(model):
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)


@contextmanager
def indices_on_cpu() -> Iterator[None]:
    """Put tensors that are made without a device on the CPU: channel ids stay there, whatever the default device.

    For code of the library alone: a network's forward makes its tensors on the default device that the user chose.
    Also a decorator.
    """
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield


@contextmanager
def trainable() -> Iterator[None]:
    """Let tensors be made that can be trained, also where the caller is in inference mode. Also a decorator."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False):
        yield
