"""An independent oracle: torch-pruning's groups are the same channels."""

from __future__ import annotations

import warnings
from collections import defaultdict

import pytest
import torch
from torch import nn

import oicsr
from benchmarks.models import build_model

tp = pytest.importorskip("torch_pruning")

Item = tuple[str, int, int]  # parameter or buffer, axis, slice
Channels = set[frozenset[Item]]

OUT = (
    tp.prune_conv_out_channels,
    tp.prune_linear_out_channels,
    tp.prune_depthwise_conv_out_channels,
    tp.prune_batchnorm_out_channels,
)
IN = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
# a depthwise convolution has one axis, and its in-channels are its out-channels
SAME = (tp.prune_depthwise_conv_in_channels, tp.prune_batchnorm_in_channels)


def our_channels(couplings: list[oicsr.Coupling]) -> Channels:
    found: dict[tuple[str, int], set[Item]] = defaultdict(set)
    for coupling in couplings:
        for member in coupling.members:
            for index, channel in enumerate(member.channels.tolist()):
                if channel >= 0:
                    found[coupling.name, channel].add((member.parameter, member.dim, index))
    return {frozenset(items) for items in found.values()}


def slices_of(model: nn.Module, name: str, pruner: object, index: int) -> list[Item]:
    """Return what torch-pruning takes away when it removes channel `index` of a layer."""
    module = model.get_submodule(name)
    if pruner in IN:
        return [(f"{name}.weight", 1, index)]
    assert pruner in OUT or pruner in SAME, pruner
    tensors = ("weight", "bias", "running_mean", "running_var")
    return [(f"{name}.{key}", 0, index) for key in tensors if getattr(module, key, None) is not None]


def their_channels(model: nn.Module, images: torch.Tensor, ignored: list[nn.Module]) -> Channels:
    """Return torch-pruning's channels; those of one root channel, over all items of its group, are one."""
    names = {module: name for name, module in model.named_modules()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = tp.DependencyGraph().build_dependency(model, images)
        groups = list(graph.get_all_groups(ignored_layers=ignored))
    channels: Channels = set()
    for group in groups:
        by_root: dict[int, set[Item]] = defaultdict(set)
        for item in group.items:
            target = item.dep.target.module
            if isinstance(target, nn.Conv2d | nn.Linear | nn.BatchNorm2d):  # others have no weights
                for index, root in zip(item.idxs, item.root_idxs, strict=True):
                    by_root[root].update(slices_of(model, names[target], item.dep.handler, index))
        channels |= {frozenset(items) for items in by_root.values()}
    return channels


# name: (classifier, channels in scope "all"). VGG-16: the sum of its widths; and so on
NETWORKS = {
    "vgg16": ("classifier", 4224),
    "mobilenetv2": ("classifier.1", 9128),
    "torchvision:densenet121": ("classifier", 10_240),
    "torchvision:resnet50": ("fc", 11_456),
}


def both(name: str, classifier: str, scope: str) -> tuple[Channels, Channels]:
    torch.manual_seed(0)
    model, images = build_model(name, 10).eval(), torch.randn(1, 3, 32, 32)
    # the other library is the proof here
    ours = our_channels(oicsr.find_couplings(model, images, scope=scope, verify="off"))  # type: ignore[arg-type]
    # the classifier's outputs are the model's: we never offer them
    return ours, their_channels(model, images, [model.get_submodule(classifier)])


@pytest.mark.parametrize("name", NETWORKS)
def test_couplings_of_scope_all_equal_torch_prunings_groups(name: str) -> None:
    classifier, channels = NETWORKS[name]
    ours, theirs = both(name, classifier, "all")
    assert len(ours) == channels
    assert ours == theirs


@pytest.mark.parametrize(("name", "channels"), [("resnet20", 336), ("resnet56", 1008)])
def test_inner_couplings_of_option_a_networks_equal_torch_prunings_groups(name: str, channels: int) -> None:
    """Restricted to the inner widths: torch-pruning does not know that zero-padding shifts the stream's channels.

    What is left is all of its groups but the 16 channels of the stream; test_surgery shows ours of the stream exact.
    """
    ours, theirs = both(name, "fc", "inner")
    assert len(ours) == channels
    assert ours <= theirs and len(theirs - ours) == 16
