"""The ImageNet networks, from torchvision. ResNet-50 has its stride in the 3x3 convolution; VGG-16 has BatchNorm."""

from __future__ import annotations

from torch import nn

from benchmarks.models.hub import torchvision_model

ARCHITECTURES = {
    "imagenet-alexnet": "alexnet",
    "imagenet-resnet50": "resnet50",
    "imagenet-vgg16": "vgg16_bn",
    "imagenet-mobilenetv2": "mobilenet_v2",
}


def alexnet(num_classes: int) -> nn.Module:
    """Build AlexNet (the one-tower form): 61.1 M parameters, 714 M MACs for 1,000 classes."""
    return torchvision_model("alexnet", num_classes)


def resnet50(num_classes: int) -> nn.Module:
    """Build ResNet-50: 25.6 M parameters, 4,089 M MACs for 1,000 classes."""
    return torchvision_model("resnet50", num_classes)


def vgg16(num_classes: int) -> nn.Module:
    """Build VGG-16 with BatchNorm: 138 M parameters, 15,470 M MACs for 1,000 classes."""
    return torchvision_model("vgg16_bn", num_classes)


def mobilenetv2(num_classes: int) -> nn.Module:
    """Build MobileNetV2: 3.5 M parameters, 301 M MACs for 1,000 classes."""
    return torchvision_model("mobilenet_v2", num_classes)
