"""Networks of torchvision and timm by name, with or without pretrained weights; both are imported lazily."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.machine.weights_files import READ_ERRORS, in_short, what_it_is_instead
from benchmarks.suggest import unknown_name

FURTHER_HEADS = ("aux1.", "aux2.", "AuxLogits.")  # of GoogLeNet and Inception, for training alone
PRETRAINED = "pretrained"  # as `weights`: those of the model's own hub


def torchvision_model(name: str, num_classes: int) -> nn.Module:
    """Build a classifier of torchvision, with its own initialisation."""
    import torchvision

    # these two warn unless told whether to initialise, and give the outputs of further heads in training
    extra = {"init_weights": True, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **extra)
    return model


def timm_model(name: str, num_classes: int) -> nn.Module:
    """Build a classifier of timm, with its own initialisation."""
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes)
    return model


def split_name(name: str) -> tuple[str, str]:
    """Split `torchvision:NAME` or `timm:NAME` in two.

    Raises:
        ValueError: The library or its network is unknown; the message suggests the nearest name.
    """
    library, _, architecture = name.partition(":")
    if library == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if architecture not in known:
            raise ValueError(unknown_name("torchvision model", architecture, known))
    elif library == "timm":
        import timm

        if not timm.is_model(architecture.partition(".")[0]):  # behind the dot stands which weights
            raise ValueError(unknown_name("timm model", architecture, timm.list_models()))
    else:
        raise ValueError(f"model is {name!r}; the part before the colon must be 'torchvision' or 'timm'")
    return library, architecture


def hub_builder(name: str) -> Callable[[int], nn.Module]:
    """Return the builder for `torchvision:NAME` or `timm:NAME`."""
    library, architecture = split_name(name)
    return partial(torchvision_model if library == "torchvision" else timm_model, architecture)


def hub_input_shape(name: str) -> tuple[int, int, int]:
    """Return `(channels, height, width)` of the images that `torchvision:NAME` or `timm:NAME` was trained on."""
    library, architecture = split_name(name)
    if library == "timm":
        import timm

        cfg = timm.get_pretrained_cfg(architecture)
        channels, height, width = cfg.input_size if cfg is not None else (3, 224, 224)
        return channels, height, width
    import torchvision

    size = int(torchvision.models.get_model_weights(architecture).DEFAULT.transforms().crop_size[0])
    return 3, size, size


def hub_state(name: str) -> dict[str, Tensor]:
    """Download the pretrained state of `torchvision:NAME` or `timm:NAME`.

    Raises:
        ValueError: The hub has none, cannot be reached, or sends a file whose checksum is wrong.
    """
    library, _, architecture = name.partition(":")
    try:
        return _torchvision_state(architecture) if library == "torchvision" else _timm_state(architecture)
    except _network_errors() as error:
        raise _not_to_be_had(name, error) from error
    except RuntimeError as error:
        if "invalid hash value" not in str(error):  # what torch.hub says of a file that was cut short or changed
            raise
        raise _not_to_be_had(name, error) from error


def _torchvision_state(architecture: str) -> dict[str, Tensor]:
    import torchvision

    entry = getattr(torchvision.models.get_model_weights(architecture), "DEFAULT", None)
    if entry is None:
        raise ValueError(f"torchvision has no pretrained weights of {architecture!r}; give the path of a local file")
    state: dict[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    return {name: tensor for name, tensor in state.items() if not name.startswith(FURTHER_HEADS)}


def _timm_state(architecture: str) -> dict[str, Tensor]:
    import timm

    cfg = timm.get_pretrained_cfg(architecture)
    if cfg is None or not cfg.has_weights:
        raise ValueError(f"timm has no pretrained weights of {architecture!r}; give the path of a local file")
    model: nn.Module = timm.create_model(architecture, pretrained=True)
    return model.state_dict()


def _not_to_be_had(name: str, error: Exception) -> ValueError:
    return ValueError(
        f"the pretrained weights of {name!r} are not to be had here: {type(error).__name__}: {error}. "
        "Download them elsewhere and give the local file as weights."
    )


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what the two hubs' clients raise where there is no network or no such file, and nothing else."""
    try:
        import httpx  # huggingface_hub's client; its errors are not OSErrors
    except ImportError:
        return (OSError,)
    return OSError, httpx.HTTPError


def local_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state from `*.safetensors` or a file of `torch.save`; no code in the file is executed.

    Raises:
        ValueError: There is no such file, or it holds no state.
    """
    if not Path(path).is_file():
        raise ValueError(f"weights is {str(path)!r}; it must be {PRETRAINED!r} or the path of a local file")
    instead = what_it_is_instead(path)
    if instead:
        raise ValueError(f"{path} holds no weights: {instead}")
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(str(path))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the ways of a file that another program made
            state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except READ_ERRORS as error:
        raise ValueError(f"{path} holds no weights that can be read safely: {in_short(error)}") from error
    for key in ("state_dict", "model"):  # training scripts wrap the state
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a dictionary of tensors")
    odd = next((name for name in state if not isinstance(name, str)), None)
    if odd is not None:
        raise ValueError(f"{path} names a tensor {odd!r}; names must be texts, as `state_dict()` gives them")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def load_state(model: nn.Module, state: dict[str, Tensor], num_classes: int) -> None:
    """Load a pretrained state in place; a classifier for another number of classes keeps its initialisation.

    Raises:
        ValueError: The state does not fit; says where.
    """
    own = model.state_dict()
    matching = {name: tensor for name, tensor in state.items() if not _other_classes(tensor, own, name, num_classes)}
    try:
        missing, unexpected = model.load_state_dict(matching, strict=False)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit {type(model).__name__}: {error}") from error
    missing = [name for name in missing if name not in state and not name.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise ValueError(
            f"the weights do not fit {type(model).__name__}: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )


def _other_classes(tensor: Tensor, own: dict[str, Tensor], name: str, num_classes: int) -> bool:
    """Return whether `tensor` is of a classifier for another number of classes."""
    if name not in own or own[name].ndim != tensor.ndim or not tensor.ndim:
        return False
    rows, same_rest = own[name].shape[0], own[name].shape[1:] == tensor.shape[1:]
    return rows == num_classes and tensor.shape[0] != rows and same_rest
