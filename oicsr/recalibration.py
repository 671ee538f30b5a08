"""Recalibration: fresh normalisation statistics for a pruned network, without changing any weight."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from oicsr.arguments import check_callable, scripted_part
from oicsr.networks.copying import attributes_kept, mode
from oicsr.networks.state import buffers_kept, devices_of, generators_kept
from oicsr.networks.wrapping import unwrap

_BUILT_IN = inspect.Signature(
    [
        inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        for name in "input weight bias running_mean running_var training momentum eps cudnn_enabled".split()
    ]
)
# Every function that keeps running statistics: its signature, and which argument makes it use those of the batch.
_NORMALIZATIONS: dict[Callable[..., Any], tuple[inspect.Signature, str]] = {
    functional.batch_norm: (inspect.signature(functional.batch_norm), "training"),
    functional.instance_norm: (inspect.signature(functional.instance_norm), "use_input_stats"),
    torch.batch_norm: (_BUILT_IN, "training"),
    torch.instance_norm: (_BUILT_IN, "training"),
}


# What a network raises that is given other arguments than it takes; these types alone, since a derived one says more
# (memory that is out, an error of the user's own).
_REFUSALS = (TypeError, ValueError, RuntimeError, AttributeError, IndexError)


class NotFiniteError(ValueError):
    """A batch makes running statistics NaN or infinite."""


def recalibrate(
    model: nn.Module, batches: Iterable[Any], *, forward: Callable[[nn.Module, Any], object] | None = None
) -> nn.Module:
    """Estimate the running statistics of all normalisation layers from `batches`; change nothing else.

    After surgery, BatchNorm still holds the means and variances of the larger network. They no longer fit wherever a
    removed channel contributed, and that alone can cost most of the accuracy. One pass over training images restores
    them. It needs no labels.

    The new statistics are the mean, over all batches, of what PyTorch computes from each batch in training mode: the
    batch mean and the unbiased batch variance (`momentum=None` in PyTorch's terms). Every batch has the same weight,
    whatever its size. All other layers run in evaluation mode, so dropout is off. PyTorch's random generators (on the
    CPU and on the model's devices), all other buffers and the mode of every module are restored.
    `num_batches_tracked` is set to the number of calls that the statistics are the mean of: the batches, where a layer
    runs once in each. Layers that run in training only, such as auxiliary heads,
    keep their statistics. A network without running statistics is returned as it is.

    Args:
        model: The network; changed in place.
        batches: The batches; all of them are used. A batch is a tensor, a mapping of keyword arguments, or a tuple or
            list whose first entry is the input, as in `(images, labels)`. That entry may itself be a tuple or list of
            positional arguments, or a mapping. Tensors are moved to the model's device. Augment the batches as in
            training: these are the statistics that fine-tuning starts from.
        forward: For batches of any other form: called as `forward(model, batch)`. It moves the tensors itself.

    Returns:
        `model`.

    Raises:
        TypeError: `batches` is not an iterable of batches, or a batch is of a form that is not known.
        ValueError: There are no batches, `batches` is a single tensor, no layer with running statistics ran, a part of
            the network is scripted or exported, or a batch makes statistics NaN or infinite (`NotFiniteError`). After
            this or any other error the statistics are as they were. An error of the network itself keeps its type;
            where the batch is a tuple, a list or a mapping, its message says how the batch was read.

    Note:
        With several processes each one sees its own batches only, `SyncBatchNorm` included. Give all of them the same
        batches, or recalibrate in one process and broadcast the buffers.

    Example:
        >>> import torch, oicsr
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> network = oicsr.recalibrate(network, [torch.randn(16, 3, 8, 8) for _ in range(4)])
    """
    check_batches(batches)
    if forward is not None:
        check_callable("forward", forward)
    estimate = _Estimate()
    run, network = forward or _run, unwrap(model)
    _check_seen(network)
    with (
        generators_kept(network),
        buffers_kept(network, but=estimate.calls),
        attributes_kept(network),
        mode(network, training=False),
    ):
        for position, batch in enumerate(batches):
            with torch.no_grad(), estimate:
                run(network, batch)
            _check_finite(network, estimate, position, batch if forward else _inputs_of(batch))
        if not estimate.calls and any(name.endswith("running_mean") for name, _ in network.named_buffers()):
            raise ValueError("batches is empty, or no layer with running statistics ran: there is nothing to estimate")
    for module in network.modules():
        mean, counter = module._buffers.get("running_mean"), module._buffers.get("num_batches_tracked")
        if counter is not None and id(mean) in estimate.calls:
            counter.fill_(estimate.calls[id(mean)])
    return model


def check_batches(batches: object) -> None:
    """Raise where an argument is not an iterable of batches.

    Raises:
        TypeError: It cannot be iterated over, or is a string or a mapping.
        ValueError: It is a single tensor.
    """
    if isinstance(batches, Tensor):
        raise ValueError(f"batches is a tensor of shape {tuple(batches.shape)}; pass a list of batches, [batches]")
    if not isinstance(batches, Iterable) or isinstance(batches, str | Mapping):
        raise TypeError(f"batches is a {type(batches).__name__}; it must be a list of batches or a loader of them")


def _check_seen(model: nn.Module) -> None:
    """Raise ValueError where a part of a network is scripted: its normalisation layers would keep their statistics."""
    if scripted := scripted_part(model):
        raise ValueError(f"statistics of {type(model).__name__} cannot all be estimated: {scripted}")


def try_batches(model: nn.Module, batches: Iterable[Any]) -> None:
    """Run a network on the first of some batches, and leave no trace: it fails where `recalibrate` would, but sooner.

    Raises:
        TypeError: The batches can be read only once, or the first one is of a form that is not known.
        ValueError: There are no batches, a part of the network is scripted, or the first one makes statistics
            NaN or infinite.
    """
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which can be read only once; the first batch is tried before the "
            "training, and all are needed after it: pass a list of batches or a loader of them"
        )
    network, estimate = unwrap(model), _Estimate()
    _check_seen(network)
    with generators_kept(network), buffers_kept(network), attributes_kept(network), mode(network, training=False):
        for batch in batches:
            with torch.no_grad(), estimate:
                _run(network, batch)
            _check_finite(network, estimate, 0, _inputs_of(batch))
            return
    raise ValueError("batches is empty: there is nothing to estimate statistics from")


class _Estimate(TorchFunctionMode):
    """Let every normalisation use its batch, and make its running statistics the mean over all calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[int, int] = {}  # id of a running mean or variance -> calls so far
        self.statistics: dict[int, Tensor] = {}  # by that id
        self._exact: dict[int, Tensor] = {}  # means in float32 of those in half precision, where small steps round away

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func not in _NORMALIZATIONS:
            return func(*args, **(kwargs or {}))
        signature, use_batch = _NORMALIZATIONS[func]
        call = signature.bind(*args, **(kwargs or {}))
        call.apply_defaults()
        if call.arguments["input"].numel() == 0:  # PyTorch leaves the statistics as they are
            return func(*args, **(kwargs or {}))
        mean, variance = call.arguments["running_mean"], call.arguments["running_var"]
        if mean is not None and variance is not None:
            count = self.calls.get(id(mean), 0) + 1
            self.calls[id(mean)] = self.calls[id(variance)] = count
            self.statistics.update({id(mean): mean, id(variance): variance})
            if count == 1:  # the old values get no weight, not even where they are not finite
                mean.zero_()
                variance.fill_(1)
            coarse = [entry for entry in (mean, variance) if entry.dtype in (torch.float16, torch.bfloat16)]
            call.arguments.update({use_batch: True, "momentum": 1.0 if coarse else 1 / count})
            outputs = func(*call.args, **call.kwargs)
            for statistic in coarse:
                exact = self._exact.setdefault(id(statistic), statistic.float())
                statistic.copy_(exact.add_(statistic.float() - exact, alpha=1 / count))
            return outputs
        return func(*call.args, **call.kwargs)


def _check_finite(model: nn.Module, estimate: _Estimate, position: int, inputs: Any) -> None:
    """Raise where the statistics are NaN or infinite after a batch, and say whether its inputs were so before."""
    broken = next((key for key, values in estimate.statistics.items() if not bool(values.isfinite().all())), None)
    if broken is None:
        return
    name = next((name for name, buffer in model.named_buffers() if id(buffer) == broken), "a normalisation layer")
    given = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    why = (
        "its inputs are finite, so the network's own values are too large, or not finite"
        if all(bool(x.isfinite().all()) for x in given)
        else "its inputs hold such values themselves"
    )
    raise NotFiniteError(f"batch {position} (from 0) makes {name} NaN or infinite: {why}; no statistics were changed")


def _inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch of one of the usual forms."""
    return batch[0] if isinstance(batch, Sequence) and batch else batch


def _run(model: nn.Module, batch: Any) -> None:
    """Run the model on a batch of one of the usual forms, on the model's device."""
    inputs = _inputs_of(batch)
    if not isinstance(inputs, Tensor | Mapping | Sequence) or isinstance(inputs, str):
        raise TypeError(
            f"a batch is a {type(batch).__name__} of {type(inputs).__name__}; it must be a tensor, (inputs, targets) "
            "or a dictionary of keyword arguments: pass `forward` for any other"
        )
    devices = devices_of(model)
    if len(devices) == 1:  # a model spread over several devices places its inputs itself
        inputs = tree_map_only(Tensor, lambda x: x.to(devices[0], non_blocking=True), inputs)
    try:
        if isinstance(inputs, Mapping):
            model(**inputs)
        elif isinstance(inputs, Sequence):
            model(*inputs)
        else:
            model(inputs)
    except _REFUSALS as error:
        if isinstance(batch, Tensor) or type(error) not in _REFUSALS:
            raise
        raise type(error)(f"{_reading(batch, inputs)} {type(model).__name__} fails on it: {error}") from error


def _reading(batch: Any, inputs: Any) -> str:
    """Return how a batch was read, and what to do where it is meant otherwise."""
    if isinstance(inputs, Mapping):
        held = f"a batch has the keys {', '.join(map(repr, inputs))}, and each is taken for an argument of forward"
    else:
        shapes = [f"a tensor of shape {tuple(x.shape)}" for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        held = f"the first entry of a batch ({type(batch).__name__}) is taken for the input: {', '.join(shapes)}"
    return (
        f"{held}. For batches of another form call recalibrate(model, batches, forward=...), for example with "
        "forward=lambda model, batch: model(batch['image']); with prune, leave batches out and call it on the result."
    )
