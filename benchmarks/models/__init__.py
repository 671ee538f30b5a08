"""Every network by name: one file per family and one line here per network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.models import (
    cifarnet,
    densenet,
    digits_chain,
    hub,
    imagenet,
    mobilenet_v1,
    mobilenet_v2,
    preact_senet,
    resnet,
    resnet_cifar,
    vgg,
    vit,
)
from benchmarks.suggest import unknown_name

MODELS: dict[str, Callable[[int], nn.Module]] = {
    "digits-resnet": resnet.digits_resnet,
    "digits-batchnorm": digits_chain.digits_batchnorm,
    "digits-groupnorm": digits_chain.digits_groupnorm,
    "digits-plain": digits_chain.digits_plain,
    "digits-vit": vit.digits_vit,
    "cifarnet": cifarnet.cifarnet,
    "cifarnet-plain": cifarnet.cifarnet_plain,
    "resnet18": resnet.resnet18,
    "resnet20": resnet_cifar.resnet20,
    "resnet32": resnet_cifar.resnet32,
    "resnet56": resnet_cifar.resnet56,
    "resnet110": resnet_cifar.resnet110,
    "vgg16": vgg.vgg16,
    "vgg16-plain": vgg.vgg16_plain,
    "vgg19": vgg.vgg19,
    "mobilenetv1": mobilenet_v1.mobilenetv1,
    "mobilenetv2": mobilenet_v2.mobilenetv2,
    "densenet40": densenet.densenet40,
    "densenet89": densenet.densenet89,
    "preactsenet18": preact_senet.preactsenet18,
    "vit": vit.vit,
    "imagenet-alexnet": imagenet.alexnet,
    "imagenet-resnet50": imagenet.resnet50,
    "imagenet-vgg16": imagenet.vgg16,
    "imagenet-mobilenetv2": imagenet.mobilenetv2,
}

# by the first part of a name; any other network is for CIFAR
INPUT_SHAPES: dict[str, tuple[int, int, int]] = {"digits": (1, 8, 8), "imagenet": (3, 224, 224)}

CIFAR_SHAPE = (3, 32, 32)


def find_builder(name: str) -> Callable[[int], nn.Module]:
    """Return the builder of a registered network, of `torchvision:NAME` or of `timm:NAME`.

    Raises:
        ValueError: The name is unknown; the message suggests the nearest one.
    """
    if ":" in name:
        return hub.hub_builder(name)
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    return MODELS[name]


def build_model(name: str, num_classes: int, weights: str | None = None) -> nn.Module:
    """Build a network.

    Args:
        name: A key of `MODELS`, `torchvision:NAME` or `timm:NAME`.
        num_classes: Outputs of the classifier.
        weights: None: freshly initialised. A path: a local `*.safetensors` file or one of `torch.save` with a
            `state_dict`, read without executing anything in it. `"pretrained"`: the hub's, for networks of torchvision
            and timm. A classifier for another number of classes stays freshly initialised.

    Raises:
        ValueError: The name is unknown (the message suggests the nearest one), or the weights are missing or do not
            fit.
    """
    model = find_builder(name)(num_classes)
    if weights is None:
        return model
    source = f"torchvision:{imagenet.ARCHITECTURES[name]}" if name in imagenet.ARCHITECTURES else name
    if weights != hub.PRETRAINED:
        state = hub.local_state(weights)
    elif ":" in source:
        state = hub.hub_state(source)
    else:
        raise ValueError(f"there are no pretrained weights of {name!r}; weights must be None or a local file")
    hub.load_state(model, state, num_classes)
    return model


def input_shape(name: str) -> tuple[int, int, int]:
    """Return `(channels, height, width)` of the images that a network is meant for.

    Raises:
        ValueError: The name is unknown; the message suggests the nearest one.
    """
    if ":" in name:
        return hub.hub_input_shape(name)
    if name not in MODELS:
        raise ValueError(unknown_name("model", name, MODELS))
    return INPUT_SHAPES.get(name.partition("-")[0], CIFAR_SHAPE)
