"""What a trial's forward passes run under: one precision, no chance, and an eye on the original network's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn import functional
from torch.utils.weak import WeakIdKeyDictionary

from oicsr.names import named_tensors
from oicsr.networks.grouped import in_any_precision
from oicsr.networks.modes import Mode

WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}
CASTS = {Tensor.float, Tensor.half, Tensor.bfloat16}
DROPOUTS = {
    functional.dropout,
    functional.dropout1d,
    functional.dropout2d,
    functional.dropout3d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
}
NOISES = {  # and the number in its place
    torch.rand: 0.4,
    torch.rand_like: 0.4,
    torch.randn: 0.7,
    torch.randn_like: 0.7,
    Tensor.exponential_: 0.7,
    Tensor.normal_: 0.7,
    Tensor.uniform_: 0.4,
}
DEFORMED = "torchvision::deform_conv2d"  # whose kernel reads wherever offsets lead: for NaN out of all memory
DRAWS = {torch.bernoulli, Tensor.bernoulli, Tensor.bernoulli_}


def storages(model: nn.Module) -> dict[int, str]:
    """Return the name of each parameter and buffer by the address of its memory."""
    found: dict[int, str] = {}
    for name, tensor in named_tensors(model).items():
        address = tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
        if address:
            found.setdefault(address, name)
    return found


class Watch(Mode):
    """Keep a trial in its precision, and note where it reads a tensor of the original network.

    Chance is taken out: how many numbers are drawn may depend on a width, so that a seed alone does not make two runs
    comparable. Dropout passes everything, noise is a constant, and of zeros and ones the likelier is drawn.
    """

    def __init__(self, dtype: torch.dtype | None, originals: Mapping[int, str], read: dict[str, str]) -> None:
        super().__init__()
        self._dtype = dtype
        self._originals = originals
        self._read = read
        self._decided = WeakIdKeyDictionary()  # whole numbers that are still there: what they were decided from

    def decided_from(self, output: Tensor) -> Tensor | None:
        """Return what whole numbers were computed from (of `argmax`, its scores); None of any other value."""
        source: Tensor | None = self._decided.get(output)
        return source

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        for value in (*args, *named.values()):
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if type(tensor) in (Tensor, nn.Parameter) and not is_batchedtensor(tensor):
                    self._note(tensor, func)
        if func in DROPOUTS:
            return args[0] if args else named["input"]
        if self._dtype is not None and func in CASTS:
            return args[0].double()
        if self._dtype is not None:
            args, named = [_widened(value) for value in args], {name: _widened(value) for name, value in named.items()}
        if getattr(func, "_qualified_op_name", "") == DEFORMED and not bool(args[2].isfinite().all()):
            return func(*args[:2], torch.zeros_like(args[2]), *args[3:], **named) * math.nan
        result = in_any_precision(func)(*args, **named)
        if func is torch.normal:
            return _drawn(result, *args, **named)
        self._note_decisions(result, [*args, *named.values()])
        if func in NOISES:
            return result.fill_(NOISES[func])
        return _likelier(result, args, named) if func in DRAWS else result

    def _note_decisions(self, result: Any, values: Sequence[Any]) -> None:
        """Note for each tensor of whole numbers in a result the first tensor of others that it was computed from."""
        parts = result if isinstance(result, tuple | list) else (result,)
        whole = [t for t in parts if isinstance(t, Tensor) and not (t.is_floating_point() or t.is_complex())]
        for value in values if whole else ():
            if isinstance(value, Tensor):
                source = value if value.is_floating_point() else self.decided_from(value)
                if source is not None:
                    for tensor in whole:
                        self._decided[tensor] = source
                    return

    def _note(self, tensor: Tensor, func: Callable[..., Any]) -> None:
        if tensor.layout is torch.strided and tensor.device.type != "meta":
            name = self._originals.get(tensor.untyped_storage().data_ptr())
            if name is not None:
                self._read.setdefault(name, getattr(func, "__name__", str(func)))


def _drawn(result: Tensor, mean: Any, std: Any = 1.0, *_: Any, **__: Any) -> Tensor:
    """Return a fixed value of a normal distribution in the place of a drawn one: its mean and 0.7 deviations."""
    return result.copy_(mean + 0.7 * std)


def _likelier(drawn: Tensor, args: Sequence[Any], named: Mapping[str, Any]) -> Tensor:
    """Return what is the likelier outcome of each draw of zeros and ones, in the place of `drawn`."""
    probability = args[1] if len(args) > 1 else named.get("p")
    if probability is None:  # drawn from the tensor itself, but `Tensor.bernoulli_()` has overwritten it
        source = args[0] if args else named["input"]
        probability = 0.5 if source is drawn else source
    return drawn.copy_(torch.as_tensor(probability, device=drawn.device) >= 0.5)


def _widened(value: Any) -> Any:
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value


@contextmanager
def default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """Let tensors be made in a precision; None: the one that they are made in anyway."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
