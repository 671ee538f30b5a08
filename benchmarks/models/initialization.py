"""The one initialisation of the models that are defined here."""

from __future__ import annotations

import math

from torch import nn


def initialize(model: nn.Module) -> nn.Module:
    """Initialise a model in place, as the field does, and return it.

    Convolutions: He et al. 2015, normal, fan-out, gain of ReLU; the fan-out of a grouped convolution is that of one
    group, so that depthwise filters do not start far smaller than the others. Normalisation: scale 1, shift 0.
    Linear layers keep PyTorch's own: uniform within `1 / sqrt(in_features)`.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    return model
