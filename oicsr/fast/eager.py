"""Keeping a function out of compiled graphs, at no cost where nothing is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import _compile

P = ParamSpec("P")
R = TypeVar("R")


def eager(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function`, run as it stands where `torch.compile` meets it, as by `torch.compiler.disable`.

    That one imports the whole compiler at once, which doubles the time of `import oicsr`; PyTorch's optimisers use the
    one here, which waits for the first call.
    """
    lazy: Callable[[Callable[P, R]], Callable[P, R]] = getattr(_compile, "_disable_dynamo", torch.compiler.disable)
    return lazy(function)
