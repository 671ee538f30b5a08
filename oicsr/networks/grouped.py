"""`torch._grouped_mm` (`functional.grouped_mm`), in any precision and without values.

PyTorch's own knows no float64, in which couplings are proved, and cannot be traced in float32. What is here gives the
same, group by group, and takes its place while a network is traced and tried; the network itself calls PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

GROUPED = torch._grouped_mm


@torch.library.custom_op("oicsr::grouped_mm", mutates_args=())
def by_groups(rows: Tensor, stack: Tensor, ends: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Multiply each group of rows by its own matrix.

    Args:
        rows: Shape `(rows, in)`; group `e` ends before row `ends[e]`. Rows behind the last group give zeros.
        stack: A matrix for each group, shape `(groups, in, out)`.
        ends: Shape `(groups,)`.
        dtype: Of the result `(rows, out)`; None for that of the rows.
    """
    result = rows.new_zeros(len(rows), stack.shape[2], dtype=dtype)
    begin = 0
    for matrix, end in zip(stack, ends.tolist(), strict=True):
        result[begin:end] = rows[begin:end] @ matrix
        begin = end
    return result


@by_groups.register_fake
def _shape(rows: Tensor, stack: Tensor, ends: Tensor, dtype: torch.dtype | None) -> Tensor:
    return rows.new_empty(len(rows), stack.shape[2], dtype=dtype)


def in_any_precision(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return what to call in the place of a function: PyTorch's grouped product has one that is less particular."""
    return _grouped if func is GROUPED else func


def _grouped(
    mat_a: Tensor,
    mat_b: Tensor,
    offs: Tensor | None = None,
    bias: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    if offs is None and mat_a.ndim == mat_b.ndim == 3 and bias is None:
        return torch.bmm(mat_a, mat_b).to(out_dtype or mat_a.dtype)
    if offs is None or mat_a.ndim != 2 or mat_b.ndim != 3 or bias is not None:
        return GROUPED(mat_a, mat_b, offs=offs, bias=bias, out_dtype=out_dtype)
    return by_groups(mat_a, mat_b, offs, out_dtype)  # type: ignore[no-any-return]


class InAnyPrecision(TorchFunctionMode):
    """Let products by groups be computed in any precision."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return in_any_precision(func)(*args, **(kwargs or {}))
