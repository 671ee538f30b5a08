"""Networks of the coverage table by task: how each is built, what it is given, and what it is trained on.

A name is `SOURCE:NETWORK`. Beside the classifiers of torchvision and timm: torchvision's networks for segmentation and
for video, the backbones of its detectors and keypoint networks (a detector as a whole picks boxes by their values,
which no tracer follows; its backbone holds nearly all of its layers), and two networks over sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.coverage import networks
from benchmarks.models import build_model, find_builder, input_shape
from benchmarks.suggest import unknown_name
from oicsr import open_attention
from oicsr.networks.copying import MODEL_ERRORS, mode
from oicsr.networks.inputs import tensors_in
from oicsr.opened.windows import is_window_attention

IMAGE_SIZES = (96, 128)  # tried in order, then the network's own
VIDEO = (3, 16, 112, 112)  # channels, frames, height, width
OWN_VIDEO = {"s3d": (3, 16, 224, 224)}
SMALLER = {"torchvision:vit_h_14": 56}  # pixels that a network is built for, whose own size takes minutes
SMALLER_VIDEO: dict[str, dict[str, Any]] = {
    name: {"temporal_size": 8, "spatial_size": (112, 112)} for name in ("mvit_v1_b", "mvit_v2_s")
}
SAMPLES = 8000  # one second of a waveform


# All that torchvision has; classifiers of torchvision and timm may be tried beside those on the list.
OTHERS = {
    "segmentation": networks.SEGMENTATION,
    "detection": networks.DETECTION,
    "video": networks.VIDEO,
    "sequence": networks.SEQUENCE,
}


@dataclass(frozen=True)
class Task:
    """How the networks of one source are built and tried.

    Attributes:
        build: Returns a freshly initialised network, by name and number of classes.
        examples: Returns two inputs, by network and name.
    """

    build: Callable[[str, int], nn.Module]
    examples: Callable[[nn.Module, str], Tensor]


def task_of(name: str) -> Task:
    """Return the task that a name of the table belongs to."""
    return TASKS.get(name.partition(":")[0], CLASSIFIERS)


def check_network(name: str) -> None:
    """Refuse the name of a network that is not there to be tried, on the list or beside it.

    Raises:
        ValueError: There is none of this name; the message suggests the nearest one.
    """
    source, _, short = name.partition(":")
    if source in OTHERS:
        known = OTHERS[source]
        if short not in known:
            raise ValueError(unknown_name(f"{source} network", short, known))
    else:
        find_builder(name)


def outputs_of(output: Any) -> list[Tensor]:
    """Return the tensors that a network gives, in any nesting."""
    return list(tensors_in(output))


def training_loss(output: Any, classes: int) -> Tensor:
    """Return a loss for one training step: cross-entropy of the first output where it has a score for each class.

    Maps of scores are averaged over positions. What has no classes (the maps of a backbone) is drawn towards zero.
    """
    outputs = outputs_of(output)
    scores = outputs[0].flatten(2).mean(2) if outputs[0].ndim > 2 else outputs[0]
    if len(outputs) < 3 and scores.shape[1] == classes:
        return functional.cross_entropy(scores, torch.arange(len(scores)) % classes)
    return torch.stack([tensor.square().mean() for tensor in outputs]).sum()


def example_images(model: nn.Module, name: str) -> Tensor:
    """Return two images of the smallest size that a network runs on, in evaluation and in training.

    Raises:
        ValueError: It runs on none, not even on its own.
    """
    channels, own, _ = input_shape(name)
    built_for = getattr(model, "image_size", None)  # the size of the weights on offer may be another one
    own = built_for if isinstance(built_for, int) else own
    failure = ""
    for size in [*(s for s in IMAGE_SIZES if s < own), own]:
        images = random(channels, size, size)
        try:
            for training in (False, True):
                with mode(model, training=training), torch.no_grad():
                    model(images)
        except MODEL_ERRORS as error:
            failure = str(error)
            continue
        return images
    raise ValueError(f"does not run on its own image size {own}: {failure}")


def opened(model: nn.Module) -> nn.Module:
    """Return a network with its attention in windows opened (`oicsr.open_attention`), where it has any."""
    return open_attention(model) if any(map(is_window_attention, model.modules())) else model


def freely(model: nn.Module) -> nn.Module | None:
    """Return a network with all its attention opened, or None where there is nothing to open."""
    try:
        return open_attention(model)
    except ValueError:
        return None


def build_classifier(name: str, classes: int) -> nn.Module:
    """Return a classifier of torchvision or timm."""
    if name not in SMALLER:
        return build_model(name, classes)
    import torchvision

    model: nn.Module = torchvision.models.get_model(
        _short(name), weights=None, num_classes=classes, image_size=SMALLER[name]
    )
    return model


def example_videos(model: nn.Module, name: str) -> Tensor:
    """Return two clips of the size that a network is built for."""
    smaller = SMALLER_VIDEO.get(_short(name))
    if smaller is not None:
        return random(3, smaller["temporal_size"], *smaller["spatial_size"])
    return random(*OWN_VIDEO.get(_short(name), VIDEO))


def random(*shape: int) -> Tensor:
    """Return two inputs of a shape, the same ones at every call."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def build_detector_backbone(name: str, classes: int) -> nn.Module:
    """Return the backbone of a detector, its feature pyramid included."""
    import torchvision

    backbone = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes).backbone
    assert isinstance(backbone, nn.Module)
    for parameter in backbone.parameters():
        parameter.requires_grad_()  # torchvision freezes the stem
    return backbone


def build_segmenter(name: str, classes: int) -> nn.Module:
    """Return a network that scores every pixel, with its auxiliary head where it has one."""
    import torchvision

    model: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return model


def build_video(name: str, classes: int) -> nn.Module:
    """Return a classifier of videos, built for shorter and smaller clips where its own take minutes."""
    import torchvision
    from torchvision.models.video import mvit

    original, smaller = mvit.MViT, SMALLER_VIDEO.get(name, {})
    mvit.MViT = lambda **arguments: original(**arguments | smaller)  # its builders take no size of the clips
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=classes)
    finally:
        mvit.MViT = original
    return model


def build_sequence(name: str, classes: int) -> nn.Module:
    """Return one of the two networks over sequences."""
    return {"m5": waveform_network, "tcn": temporal_network}[name](classes)


def waveform_network(classes: int, width: int = 64) -> nn.Module:
    """Return a classifier of sounds: M5 of Dai et al. (ICASSP 2017), four convolutions over the waveform."""
    layers: list[nn.Module] = []
    last = 1
    for channels, size, stride in ((width, 80, 4), (width, 3, 1), (2 * width, 3, 1), (4 * width, 3, 1)):
        layers += [nn.Conv1d(last, channels, size, stride), nn.BatchNorm1d(channels), nn.ReLU(), nn.MaxPool1d(4)]
        last = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(last, classes))


class TemporalBlock(nn.Module):
    """Two causal, dilated convolutions with weight norm and a shortcut: the block of Bai et al. (2018)."""

    def __init__(self, width: int, out: int, dilation: int) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.pad = nn.ConstantPad1d((2 * dilation, 0), 0.0)
        self.one = norm(nn.Conv1d(width, out, 3, dilation=dilation))
        self.two = norm(nn.Conv1d(out, out, 3, dilation=dilation))
        self.shortcut = nn.Conv1d(width, out, 1) if width != out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return features `(batch, out, time)`."""
        hidden = torch.relu(self.two(self.pad(torch.relu(self.one(self.pad(x))))))
        total: Tensor = torch.relu(hidden + self.shortcut(x))
        return total


class Last(nn.Module):
    """The features of the last step."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `(batch, channels)` of `(batch, channels, time)`."""
        return x[..., -1]


def temporal_network(classes: int, width: int = 48) -> nn.Module:
    """Return a classifier of sequences of eight numbers: a temporal convolutional network of four blocks."""
    blocks = [TemporalBlock(8 if level == 0 else width, width, 2**level) for level in range(4)]
    return nn.Sequential(*blocks, Last(), nn.Linear(width, classes))


def example_sequence(model: nn.Module, name: str) -> Tensor:
    """Return two waveforms, or two sequences of eight numbers."""
    return random(1, SAMPLES) if name.endswith("m5") else random(8, 128)


def example_for_detector(model: nn.Module, name: str) -> Tensor:
    """Return two images; SSD300 needs those that it is named after."""
    size = 300 if name.endswith("ssd300_vgg16") else 128
    return random(3, size, size)


def _short(name: str) -> str:
    return name.partition(":")[2]


CLASSIFIERS = Task(build_classifier, example_images)
TASKS = {
    "segmentation": Task(lambda name, n: build_segmenter(_short(name), n), lambda _, name: random(3, 96, 96)),
    "detection": Task(lambda name, n: build_detector_backbone(_short(name), n), example_for_detector),
    "video": Task(lambda name, n: build_video(_short(name), n), example_videos),
    "sequence": Task(lambda name, n: build_sequence(_short(name), n), example_sequence),
}
