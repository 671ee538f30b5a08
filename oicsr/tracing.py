"""Finding the couplings of a model in the graph that `torch.export` gives."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from oicsr.arguments import check_call
from oicsr.collect import SINGLE, Root, Streams, collect, layer_name
from oicsr.coupling import Axis, Coupling
from oicsr.names import Names, named_layers
from oicsr.plan import PruningPlan, shrink_couplings
from oicsr.rules import Tracer, inline_blocks, leaf_modules
from oicsr.surgery import slice_module

Scope = Literal["inner", "all"]
IGNORED = "is ignored, or joined to a layer that is"
MODEL_ERRORS = (  # what a model's forward, and the exporter with it, may raise
    RuntimeError,
    TypeError,
    ValueError,
    AttributeError,
    LookupError,
    ArithmeticError,
    NotImplementedError,
    AssertionError,
)


class UnprunedChannelsWarning(UserWarning):
    """Some channels are left as they are, because an operator that reads them has no rule."""


@dataclass(frozen=True)
class Trace:
    """What was found in a model.

    Attributes:
        couplings: The couplings.
        unpruned: Layer name to the reason why (some of) its channels stay.
        unruled: The reasons that come from operators without a rule; `find_couplings` warns of these.
    """

    couplings: list[Coupling]
    unpruned: Mapping[str, str]
    unruled: tuple[str, ...]


def find_couplings(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, scope: Scope = "inner", ignore: Names = ()
) -> list[Coupling]:
    """Find every set of weights that share a channel axis.

    Args:
        model: Any network that `torch.export` can trace. Left as it is, training mode included.
        example_inputs: The input tensor, or the sequence of them, of one forward call.
        scope: `"inner"`: axes that one layer produces and that no addition joins to another axis, as the authors
            prune in ResNets (the two inner widths of a bottleneck, the one of a basic block). An axis from which a
            residual block and its projection shortcut both start is part of the residual stream and not inner: the
            stem of torchvision's ResNet-50 is left as it is. `"all"`: residual streams too.
        ignore: Layers whose own channels stay: names, patterns (`"layer4.*.conv2"`) or modules, one or several. A
            module stands for all layers in it. A channel that an ignored layer produces or normalises stays wherever
            it goes; the channels that the layer reads may still be removed.

    Returns:
        The couplings in the order in which their first layers run. Axes of a single channel are left out.

    Raises:
        ValueError: `scope` is unknown, `ignore` names no layer of the model, or the model cannot be traced.

    Warns:
        UnprunedChannelsWarning: An operator without a rule fixes the channels that it reads; the message names it.
    """
    trace = trace_couplings(model, example_inputs, scope=scope, ignore=ignore)
    if trace.unruled:
        message = "some channels are left unpruned: " + "; ".join(trace.unruled)
        warnings.warn(message, UnprunedChannelsWarning, stacklevel=2)
    return trace.couplings


def trace_couplings(
    model: nn.Module, example_inputs: Tensor | Sequence[Tensor], *, scope: Scope = "inner", ignore: Names = ()
) -> Trace:
    """Do the work of `find_couplings`, and also say which layers' channels stay, and why."""
    if scope not in get_args(Scope):
        raise ValueError(f"scope is {scope!r}; it must be one of {', '.join(map(repr, get_args(Scope)))}")
    check_call(model, example_inputs)
    inputs = as_inputs(example_inputs)
    ignored = named_layers(model, ignore)
    tracer, couplings, unpruned = _trace_once(model, inputs, scope, ignored)
    rigid = _find_rigid(model, inputs, couplings)
    couplings = [coupling for coupling in couplings if coupling.name not in rigid]
    if tracer.cuts_by_number:
        moved = _find_moved(model, inputs, couplings, scope, ignored, tracer.thinned)
        couplings, rigid = [c for c in couplings if c.name not in moved], {**rigid, **moved}
    return Trace(couplings, {**unpruned, **rigid}, tuple(dict.fromkeys([*tracer.unruled, *rigid.values()])))


def _trace_once(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    scope: Scope,
    ignored: Set[str],
    thinned: Mapping[str, bool] | None = None,
) -> tuple[Tracer, list[Coupling], dict[str, str]]:
    """Return the tracer, the couplings, and why the channels of other layers stay; `thinned`: as another tracer did."""
    tracer = Tracer(thinned=dict(thinned or {}))
    streams = Streams(tracer)
    unused = _follow(tracer, streams, model, inputs, training=False)
    if unused:  # heads that only run in training (auxiliary classifiers) read channels too
        _follow(tracer, streams, model, inputs, training=True)
    for slot in tracer.slots.values():
        if slot.side != "in" and layer_name(slot.parameter) in ignored:
            tracer.sets.fix(slot.ids, IGNORED)
    return tracer, *collect(tracer, streams.roots() if scope == "inner" else set[Root]())


def as_inputs(example_inputs: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Return the arguments of a forward call as a tuple."""
    return (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)


# ----------------------------------------------------------------------------------------------------------------
# the graph
# ----------------------------------------------------------------------------------------------------------------


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and give every module its own mode back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _follow(
    tracer: Tracer,
    streams: Streams,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    training: bool,
) -> bool:
    """Trace a model in one mode; return whether it left parameters unused."""
    exported = _export_training(model, inputs) if training else _export(model, inputs, training=False)
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    tensors = (InputKind.PARAMETER, InputKind.BUFFER)
    first_names = _first_names(model)  # the exporter may call a tied parameter by any of its names
    names = {name: first_names[str(spec.target)] for name, spec in kinds.items() if spec.kind in tensors}
    constants = [name for name, spec in kinds.items() if spec.kind is InputKind.CONSTANT_TENSOR]
    graph = inline_blocks(exported.graph_module)
    tracer.run(graph, names, constants, dict(model.named_modules()))
    streams.read(graph)
    unused = {node.name for node in graph.nodes if node.op == "placeholder" and not node.users and node.name in names}
    return any(kinds[name].kind is InputKind.PARAMETER for name in unused)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Return for each name of a parameter or buffer the first name of the same tensor."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _export_training(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Export a model in training mode; one image alone may be too little for BatchNorm there, so take it twice then."""
    try:
        return _export(model, inputs, training=True)
    except ValueError:
        return _export(model, tuple(torch.cat([x, x]) if x.ndim else x for x in inputs), training=True)


def _export(model: nn.Module, inputs: tuple[Tensor, ...], *, training: bool) -> torch.export.ExportedProgram:
    with mode(model, training=training), leaf_modules(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not the caller's
        try:
            return torch.export.export(model, inputs, strict=False)
        except MODEL_ERRORS as error:
            first_line = (str(error).strip().splitlines() or ["no message"])[0]
            raise ValueError(
                f"{type(model).__name__} cannot be traced by torch.export: {type(error).__name__}: {first_line} "
                "(check that model(*example_inputs) runs and does not branch on the values of tensors)"
            ) from error


# ----------------------------------------------------------------------------------------------------------------
# widths that are numbers in the model's code
# ----------------------------------------------------------------------------------------------------------------


def _find_rigid(model: nn.Module, inputs: tuple[Tensor, ...], couplings: Sequence[Coupling]) -> dict[str, str]:
    """Find couplings whose width is a number in the model's code, by a trial on the meta device.

    A forward that says `view(batch, 512)` or `split(x, 26)` is traced like one that asks the tensor for its width,
    but fails once the width has changed. One channel of every coupling is removed and the shapes are run through;
    where that fails, couplings are tried one by one.
    """
    meta_inputs = tuple(x.to("meta") for x in inputs)
    if _trial(model, meta_inputs, couplings) is None:
        return {}
    if _trial(model, meta_inputs, []) is not None:
        return {}  # the model does not run on the meta device at all: nothing can be said
    rigid: dict[str, str] = {}
    for coupling in couplings:
        failure = _trial(model, meta_inputs, [coupling])
        if failure is not None:
            rigid[coupling.name] = f"the width of {coupling.name!r} is a number in the model's code ({failure})"
    return rigid


def meta_copy(model: nn.Module) -> nn.Module:
    """Return a copy of a model without storage: shapes only."""
    memo: dict[int, Tensor] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


class _ShapesOfNorms(TorchFunctionMode):
    """BatchNorm by its shapes alone: on the meta device the real one takes most of a trial's time."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not functional.batch_norm or kwargs is None or len(args) < 3:
            return func(*args, **(kwargs or {}))
        if args[1] is not None and len(args[1]) != args[0].shape[1]:
            raise RuntimeError(f"BatchNorm has {len(args[1])} channels and reads {args[0].shape[1]}")
        return args[0].clone()


def _trial(model: nn.Module, inputs: tuple[Tensor, ...], couplings: Sequence[Coupling]) -> str | None:
    """Remove the last channel of each coupling; return what the forward says against it, if anything.

    The model stays as it is; what is run is a copy on the meta device, where the inputs are.
    """
    kept = {c.name: range(c.num_channels - 1) for c in couplings}
    trial = meta_copy(model)
    slice_module(trial, PruningPlan.from_kept(couplings, kept).slices)
    with mode(trial, training=False), torch.no_grad(), _ShapesOfNorms():
        try:
            trial(*inputs)
        except MODEL_ERRORS as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _find_moved(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    couplings: Sequence[Coupling],
    scope: Scope,
    ignored: Set[str],
    thinned: Mapping[str, bool],
) -> dict[str, str]:
    """Find couplings that are cut at a number in the model's code, by tracing the model with one channel less of each.

    `x[:, :4]` of eight channels is traced like `x[:, : width // 2]`, and the shapes may fit after a removal although
    other channels lie before the cut then. So the couplings of the smaller model must be what is left of these.
    """
    plan = PruningPlan.from_kept(couplings, {c.name: range(c.num_channels - 1) for c in couplings})
    trial = copy.deepcopy(model)
    slice_module(trial, plan.slices)
    try:
        _, found, unpruned = _trace_once(trial, inputs, scope, ignored, thinned)
    except ValueError:
        found, unpruned = [], {}
    axes = {c.name: _axes(c) for c in found}
    return {
        c.name: f"the channels of {c.name!r} are cut at a number in the model's code"
        for c in shrink_couplings(couplings, plan)
        if (unpruned.get(c.name) != SINGLE if c.num_channels == 1 else axes.get(c.name) != _axes(c))
    }


def _axes(coupling: Coupling) -> dict[Axis, list[int]]:
    return {member.axis: member.channels.tolist() for member in coupling.members}
