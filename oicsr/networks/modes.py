"""What looks at the functions of PyTorch that a network calls."""

from __future__ import annotations

import sys
from typing import Any, Self

import torch
from torch.overrides import TorchFunctionMode

FLEX_ATTENTION = torch.ops.higher_order.flex_attention  # called with queries, keys, values, two functions and a scale
FLEX = "torch.nn.attention.flex_attention"
UNCOMPILED = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"


class Mode(TorchFunctionMode):
    """A mode under which flex attention is computed function by function: it is compiled otherwise, unseen by modes."""

    def __init__(self) -> None:
        super().__init__()
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        flex = sys.modules.get(FLEX)
        self._before.append(getattr(flex, UNCOMPILED, None))
        if self._before[-1] is not None:
            setattr(flex, UNCOMPILED, True)
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def __exit__(self, *error: object) -> None:
        before = self._before.pop()
        if before is not None:
            setattr(sys.modules[FLEX], UNCOMPILED, before)
        super().__exit__(*error)  # type: ignore[no-untyped-call]
