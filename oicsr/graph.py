"""The ATen graph of a network, from PyTorch's own exporter."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Container, Iterator, Mapping, Set
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._export.verifier import SpecViolationError
from torch._functorch import eager_transforms  # of `torch.func.grad` and its like
from torch.distributions import Distribution
from torch.export.graph_signature import InputKind
from torch.nn.modules import transformer
from torch.nn.utils import rnn
from torch.overrides import TorchFunctionMode

from oicsr.arguments import closed_part
from oicsr.names import first_names, named_tensors
from oicsr.networks.copying import MODEL_ERRORS, OTHERS, attributes_kept, first_line, hooks_off, line_of, mode
from oicsr.networks.grouped import InAnyPrecision
from oicsr.networks.inputs import Inputs, tensors_in
from oicsr.networks.recurrences import one_step_exported
from oicsr.networks.state import Muted, devices_of, one_at_a_time
from oicsr.rules import drop_unread, inline_blocks, leaf_modules, split_einsums
from oicsr.rules.evaluated import CONSTANT

DETECT = "_detect_is_causal_mask"
TRACES = "do_not_emit_stack_traces"
LIFTED = "lifted_tensor_"  # how the exporter calls a tensor that is written into the code


@dataclass(frozen=True)
class Graph:
    """A network as a graph of ATen operators.

    Attributes:
        nodes: The graph.
        names: Placeholder to the qualified name of the parameter or buffer that it stands for.
        unused: Names of the parameters, and of the buffers with axes, that nothing reads.
        constants: Placeholders of other tensors, in the network's code, to the attributes that hold them; empty where
            none does.
        modules: The network's modules by name.
    """

    nodes: fx.Graph
    names: Mapping[str, str]
    unused: tuple[str, ...]
    constants: Mapping[str, str]
    modules: Mapping[str, nn.Module]


DERIVATIVES = (
    "its forward takes derivatives, which the exporter does not follow. Find the couplings of the module that they are "
    "taken of, prune it, and put what comes back in its place"
)


@one_at_a_time()
def export_graph(twin: nn.Module, inputs: Inputs, *, training: bool) -> Graph:
    """Trace a copy of a network in one mode; what its forward keeps in its modules is put back.

    One image alone may be too little for BatchNorm in training mode, so it is taken twice then.

    Raises:
        ValueError: The exporter cannot trace it; says why.
    """
    try:
        exported = _export(twin, inputs, training=training)
    except ValueError:
        if not training:
            raise
        doubled = inputs.map(lambda x: torch.cat([x, x]) if x.ndim else x)
        exported = _export(twin, doubled, training=training)
    if any(is_functorch_wrapped_tensor(value) for value in exported.constants.values() if isinstance(value, Tensor)):
        raise ValueError(f"{type(twin).__name__} cannot be traced by torch.export: {DERIVATIVES}")
    graph = inline_blocks(exported.graph_module)
    if not training and not any(node.all_input_nodes for node in graph.nodes if node.op == "output"):
        raise ValueError(
            f"{type(twin).__name__} returns no tensors that can be found: what its outputs are made of is not known. "
            "Let forward return tensors, in tuples, lists, dictionaries or dataclasses"
        )
    kinds = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    first = first_names(named_tensors(twin).items())  # the exporter may call a tied parameter by any of its names
    tensors = (InputKind.PARAMETER, InputKind.BUFFER)
    names = {name: first[str(spec.target)] for name, spec in kinds.items() if spec.kind in tensors}
    split_einsums(graph, names)
    drop_unread(graph, names)
    _name_modules(graph, twin)
    unread = [node.name for node in graph.nodes if node.op == "placeholder" and not node.users and node.name in names]
    values = {node.name: node.meta["val"] for node in graph.nodes if node.name in unread}
    unused = tuple(
        names[name] for name in unread if kinds[name].kind is InputKind.PARAMETER or values[name].ndim
    )  # a count of steps (of BatchNorm) holds no channels
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in kinds:
            node.meta[CONSTANT] = exported.constants.get(str(kinds[node.name].target))
    constants = {
        name: "" if str(spec.target).startswith(LIFTED) else str(spec.target)
        for name, spec in kinds.items()
        if spec.kind is InputKind.CONSTANT_TENSOR
    }
    return Graph(graph, names, unused, constants, dict(twin.named_modules()))


def _name_modules(graph: fx.Graph, model: nn.Module) -> None:
    """Let calls name the modules that they are made in by their first names, from the network down.

    Where a module has two names, the exporter calls modules by the attributes through which they were reached: from the
    network, or from the module whose forward ran at the time.
    """
    first = first_names(model.named_modules(remove_duplicate=False))
    if all(name == other for name, other in first.items()):
        return
    for node in graph.nodes:
        path, stack = "", {}
        for key, (name, *more) in (node.meta.get("nn_module_stack") or {}).items():
            path = _name_within(path, str(name), first)
            stack[key] = (first[path], *more)
        node.meta["nn_module_stack"] = stack


def _name_within(path: str, name: str, modules: Container[str]) -> str:
    """Return what `name` stands for in the forward of the module `path`: that module itself where it names none."""
    whole, within = name.startswith(f"{path}."), f"{path}.{name}".strip(".")
    return next((n for n in ((name, within) if whole else (within, name)) if n in modules), path)


@contextmanager
def _empty_buffers_freed(twin: nn.Module) -> Iterator[None]:
    """Make buffers that are None plain attributes: the exporter fails on one that the forward fills (a cache).

    The forward may fill it by an assignment or by `register_buffer`, which goes back to what it was on leaving.
    """
    changed = []
    for module in twin.modules():
        empty = frozenset(name for name, buffer in module._buffers.items() if buffer is None)
        for name in empty:
            del module._buffers[name]
            object.__setattr__(module, name, None)
        if empty and "register_buffer" not in vars(module):
            object.__setattr__(module, "register_buffer", partial(_register, module, empty))
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del vars(module)["register_buffer"]


def _register(module: nn.Module, plain: Set[str], name: str, tensor: Tensor | None, persistent: bool = True) -> None:
    """Register a buffer, or set what has one of the names `plain` as an attribute."""
    if name in plain:
        object.__setattr__(module, name, tensor)
    else:
        type(module).register_buffer(module, name, tensor, persistent)


class _Derivatives(TorchFunctionMode):
    """Note where a forward calls `torch.autograd.grad`: the exporter fails long after that, and does not say so."""

    place = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.autograd.grad, Tensor.backward) and not self.place:
            own = [f for f in traceback.extract_stack()[:-1] if not f.filename.startswith(OTHERS)]
            self.place = f"line {own[-1].lineno} of {Path(own[-1].filename).name}, `{own[-1].line}`: " if own else " "
        return func(*args, **(kwargs or {}))


def _remedy(model: nn.Module, inputs: Inputs, error: BaseException, derivatives: str) -> str:
    """Return where in the network's code the exporter failed, and what can be done about it.

    Args:
        model: The network, to be called with the tensors in its inputs.
        inputs: Its inputs.
        error: What the exporter raised.
        derivatives: Where the forward takes derivatives, if it does.
    """
    own, given = devices_of(model), {x.device for x in inputs.tensors()}
    if len(own) == 1 and given - {*own} and "device" in str(error):
        where = ", ".join(sorted(map(str, given)))
        return f"the network is on {own[0]} and example_inputs on {where}: move them to the network's device"
    if closed := closed_part(model):
        return closed
    if any(tensor.is_inference() for tensor in (*model.parameters(), *model.buffers())):
        return (
            "its weights were made under torch.inference_mode: they can be neither traced nor trained. Take a copy, "
            "copy.deepcopy(model), outside of that mode"
        )
    line = line_of(error)
    where = "" if line is None else f"{line}: "
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if derivatives or any(frame.f_code.co_filename == eager_transforms.__file__ for frame in frames):
        return f"{derivatives or where}{DERIVATIVES}"
    if any(isinstance(value, rnn.PackedSequence) for frame in frames for value in frame.f_locals.values()) or any(
        frame.f_code.co_filename == rnn.__file__ for frame in frames
    ):
        return (
            f"{where}sequences are packed by lengths, which are values of a tensor. Let forward leave the sequences "
            "padded where lengths are None, and pass None among example_inputs; the pruned network packs as before"
        )
    try:
        model(*inputs.tensors())
    except MODEL_ERRORS:
        return f"{where}it fails without the exporter as well; example_inputs holds {inputs.described()}"
    return f"{where}check that the model does not branch on the values of tensors"


@contextmanager
def _values_unseen() -> Iterator[None]:
    """Keep PyTorch's own modules from branching on values, where that changes no result.

    Transformers ask whether a mask is causal, for a quicker kernel; distributions check their parameters.
    """
    detect, validates = getattr(transformer, DETECT, None), Distribution._validate_args
    if detect is not None:
        setattr(transformer, DETECT, lambda mask, is_causal=None, size=None: is_causal is True)
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(validates)
        if detect is not None:
            setattr(transformer, DETECT, detect)


@contextmanager
def _no_stack_traces() -> Iterator[None]:
    """Keep the exporter from noting the lines behind every node, an eighth of its time: nothing reads them here."""
    before = getattr(fx.config, TRACES, None)
    if before is not None:
        setattr(fx.config, TRACES, True)
    try:
        yield
    finally:
        if before is not None:
            setattr(fx.config, TRACES, before)


class _DataFollowed(TorchFunctionMode):
    """Let `tensor.data` be the tensor itself: the exporter takes it for a constant that comes from nowhere.

    Masks and norms of weights are often written so (`self.weight.data *= self.mask`).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == Tensor.data.__get__:  # type: ignore[attr-defined]
            return args[0].detach() if torch.is_grad_enabled() else args[0]
        if func == Tensor.data.__set__ and args[0].shape == args[1].shape:  # type: ignore[attr-defined]
            with torch.no_grad():
                return None if args[0] is args[1] else args[0].copy_(args[1])
        return func(*args, **(kwargs or {}))


def _exported(twin: nn.Module, tensors: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """Call the exporter, once more where it fails on `tensor.data`."""
    try:
        return torch.export.export(twin, tensors, strict=False)
    except RuntimeError as error:
        if LIFTED not in str(error):
            raise
    with _DataFollowed():
        return torch.export.export(twin, tensors, strict=False)


@torch.no_grad()
def _export(twin: nn.Module, inputs: Inputs, *, training: bool) -> torch.export.ExportedProgram:
    """Export a network as a function from the tensors in its inputs to those in its outputs, whatever holds them."""
    with (
        _empty_buffers_freed(twin),
        hooks_off(twin),
        mode(twin, training=training),
        leaf_modules(twin),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not the caller's
        own, forward, noted = vars(twin).get("forward"), twin.forward, _Derivatives()
        quiet = redirect_stderr(Muted())  # where it fails, it prints the whole graph

        def flat(*tensors: Tensor) -> tuple[Any, ...]:
            """Call the forward; the exporter refuses modules that keep an activation, so they have it taken away."""
            with attributes_kept(twin):
                return tuple(tensors_in(inputs.replace(tensors).call_as_is(forward)))

        vars(twin)["forward"] = flat  # past what its class may do where an attribute is set
        try:
            with _values_unseen(), _no_stack_traces(), one_step_exported(), InAnyPrecision(), noted, quiet:
                return _exported(twin, tuple(inputs.tensors()))
        except (*MODEL_ERRORS, SpecViolationError) as error:
            raise ValueError(
                f"{type(twin).__name__} cannot be traced by torch.export: {type(error).__name__}: "
                f"{first_line(error)} ({_remedy(twin, inputs, error, noted.place)})"
            ) from error
        finally:
            if own is None:
                del twin.forward
            else:
                twin.forward = own
