"""Looking into what is wrapped around a network."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)
COMPILED = "_orig_mod"  # the network in what `torch.compile` returns; asking for its class would import the compiler


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network itself, out of any nest of wrappers.

    `DataParallel`, `DistributedDataParallel`, a moving average (`torch.optim.swa_utils.AveragedModel`) and what
    `torch.compile` returns are looked into. Couplings and plans speak of the network's own names, so that those found
    on it fit every wrapped form of it, and the other way round. What is no module is returned as it is.
    """
    while isinstance(model, WRAPPERS) or COMPILED in getattr(model, "_modules", ()):
        model = model._modules["module" if isinstance(model, WRAPPERS) else COMPILED]  # type: ignore[assignment]
    return model
