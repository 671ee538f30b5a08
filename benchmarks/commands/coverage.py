"""`coverage`: which networks of torchvision and timm can be pruned."""

from __future__ import annotations

from benchmarks.coverage import add_options, command

__all__ = ["add_options", "command"]
