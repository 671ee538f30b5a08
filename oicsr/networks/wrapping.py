"""Looking into what is wrapped around a network, and what it shares with other processes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
AVERAGES = {"ModelEmaV2", "ModelEmaV3"}  # of timm, by name, since the library does not import it
COMPILED = "_orig_mod"  # the network in what `torch.compile` returns; asking for its class would import the compiler


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network itself, out of any nest of wrappers.

    `DataParallel`, `DistributedDataParallel`, a moving average (`torch.optim.swa_utils.AveragedModel`, timm's
    `ModelEmaV2` and `ModelEmaV3`) and what `torch.compile` returns are looked into. Couplings and plans speak of the
    network's own names, so that those found on it fit every wrapped form of it, and the other way round. What is no
    module is returned as it is.
    """
    while (name := _wrapped(model)) is not None:
        model = model._modules[name]  # type: ignore[assignment]
    return model


def _wrapped(model: nn.Module) -> str | None:
    """Return under which name a wrapper holds its network; None for what is no wrapper."""
    if isinstance(model, WRAPPERS) or any(each.__name__ in AVERAGES for each in type(model).__mro__):
        return "module"
    return COMPILED if COMPILED in getattr(model, "_modules", ()) else None


class _Alone(nn.modules.batchnorm._BatchNorm):
    """A SyncBatchNorm that waits for no other process."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Take inputs of any number of axes."""


def stand_alone(twin: nn.Module) -> nn.Module:
    """Let a copy's SyncBatchNorm take its statistics from this process, and return the copy.

    In training mode it would wait for processes that do not try anything, and it runs on accelerators only.
    """
    for module in twin.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = _Alone  # type: ignore[assignment]
    return twin
