"""Copies of networks: for surgery, and for running one without a trace in the original."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import operator
import pickle
import sys
import threading
import traceback
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as module_state
from torch.overrides import TorchFunctionMode

from oicsr.networks.state import buffers_kept, generators_kept, values_kept

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
COPY_ERRORS = (*MODEL_ERRORS, copy.Error, pickle.PicklingError, OSError)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")  # by number
# the numbers of hooks that want keyword arguments, or are always called: they may be more than there are
FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
TORCH = str(Path(torch.__file__).parent / "_").removesuffix("_")  # with a separator: torchvision is not part of it
OTHERS = (TORCH, str(Path(__file__).parents[1] / "_").removesuffix("_"), contextlib.__file__)
EMPTIED = (dict, OrderedDict)
SHARED = (  # what copies have in common with the original, as there is but one: locks, threads, files, processes
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Event,
    threading.Semaphore,
    threading.Thread,
    io.IOBase,
    *((torch.distributed.ProcessGroup,) if torch.distributed.is_available() else ()),
)
MOST_COPIED = 1 << 28  # parameters of a network: 1 GiB in float32
FROZEN = 1_000_000  # values of a frozen parameter, from which on it is shared: no power iteration moves so much
CONTAINERS = (list, dict, set, deque)  # a tuple is quicker to ask than a union
Convert = Callable[[Tensor], Tensor]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def line_of(error: BaseException) -> str | None:
    """Return the innermost line of the network's own code that an error passed through; None where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.line and not frame.filename.startswith(OTHERS)]
    return f"line {own[-1].lineno} of {Path(own[-1].filename).name}, `{own[-1].line}`" if own else None


@contextmanager
def mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model into training or evaluation mode, and give every module its own mode back on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        _set_mode(model, training=training)
        yield
    finally:
        for module, was_training in modes:
            module.training = was_training


def _set_mode(model: nn.Module, *, training: bool) -> None:
    try:
        model.train(training)
    except NotImplementedError as error:
        raise ValueError(
            f"{type(model).__name__} has one mode alone ({first_line(error)}), as what torch.export returns: take the "
            "network that was exported, and export it again afterwards"
        ) from error


# ----------------------------------------------------------------------------------------------------------------
# copies
# ----------------------------------------------------------------------------------------------------------------


class CopiedTensors(TorchFunctionMode):
    """Deep copies of tensors that are no parameters: those in a graph (a cached activation) are detached."""

    def __init__(self, convert: Convert) -> None:
        super().__init__()
        self._convert = convert

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__deepcopy__ or (self._convert is torch.clone and args[0].is_leaf):
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            copied = self._convert(tensor.detach())
            memo[id(tensor)] = copied.requires_grad_() if tensor.is_leaf and tensor.requires_grad else copied
        return memo[id(tensor)]


def copy_model(
    model: nn.Module,
    convert: Convert | None = None,
    *,
    constants: Convert = torch.clone,
    memo: dict[int, Any] | None = None,
) -> nn.Module:
    """Return a deep copy of a network that runs its own code and holds its own modules.

    Beyond `copy.deepcopy`: activations that a module keeps are detached, and functions that are bound to the original
    by what they enclose (`forward = model.forward; model.forward = lambda x: forward(x)`) are bound to the copy.

    Args:
        model: The network.
        convert: Makes each parameter and buffer of the copy; without it, they are copied.
        constants: Makes each other tensor that a module holds.
        memo: Copy by the identity of its original: filled; what it holds already is taken.

    Raises:
        ValueError: The network cannot be copied, or its copy is the original in part; says why.
    """
    memo = {} if memo is None else memo
    if convert is not None:
        for tensor in chain(model.parameters(), model.buffers()):
            memo[id(tensor)] = convert(tensor)
    _quick_or_shared(model, memo)
    try:
        with CopiedTensors(constants):
            twin = copy.deepcopy(model, memo)
    except COPY_ERRORS as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}); "
            "take what cannot be copied out of the modules (a generator, a connection), or give the module that "
            "holds it a __deepcopy__"
        ) from error
    originals = {id(module) for module in model.modules()}
    for name, module in twin.named_modules():
        if id(module) in originals:
            raise ValueError(
                f"{type(model).__name__} cannot be copied: the copy of {name or '(root)'!r} is the original itself "
                f"(see __deepcopy__ of {type(module).__name__})"
            )
    _rebind(twin, memo)
    return twin


def _quick_or_shared(model: nn.Module, memo: dict[int, Any]) -> None:
    """Copy empty dictionaries, mostly of hooks, which takes `copy.deepcopy` far longer; share what has no copy."""
    for module in model.modules():
        for value in vars(module).values():
            if type(value) in EMPTIED and not value:
                memo.setdefault(id(value), type(value)())
            elif isinstance(value, SHARED):
                memo.setdefault(id(value), value)


def shared(tensor: Tensor) -> Tensor:
    """Return a parameter itself and a copy of a buffer: a forward pass changes buffers, and parameters very rarely."""
    return tensor if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def _shared_but_written(model: nn.Module) -> Convert:
    """Return a form of `shared` that copies the parameters of a network, as its forward may write to them.

    Of very large ones only embeddings with `max_norm` and what is small and frozen, as vectors of power iterations are.
    """
    embeddings = [module for module in model.modules() if getattr(module, "max_norm", None) is not None]
    written = {id(parameter) for module in embeddings for parameter in module.parameters(recurse=False)}
    own = {id(p): p.numel() for p in model.parameters() if type(p) is nn.Parameter and p.layout == torch.strided}
    written |= own.keys() if sum(own.values()) <= MOST_COPIED else set()

    def convert(tensor: Tensor) -> Tensor:
        """Share a parameter that stays as it is."""
        if not isinstance(tensor, nn.Parameter):
            return shared(tensor)
        if id(tensor) in written or not (tensor.requires_grad or tensor.numel() > FROZEN):
            return nn.Parameter(tensor.detach().clone(), tensor.requires_grad)
        return tensor

    return convert


def _rebind(twin: nn.Module, memo: Mapping[int, Any]) -> None:
    """Bind functions among the attributes and hooks of a copy's modules to the copy."""
    for module in twin.modules():
        attributes = vars(module)
        for name, value in attributes.items():
            if isinstance(value, types.FunctionType):
                attributes[name] = _bound(value, memo)
        for name in HOOKS:
            hooks = attributes.get(name) or {}
            for key, hook in hooks.items():
                if isinstance(hook, types.FunctionType):
                    hooks[key] = _bound(hook, memo)


def _bound(value: Any, memo: Mapping[int, Any], outer: tuple[Any, ...] = ()) -> Any:
    """Return `value` with the originals that it refers to replaced by their copies; itself where there are none.

    Args:
        value: A module, tensor, method, partial or function, or anything else, which is returned as it is.
        memo: Copy by the identity of its original.
        outer: The functions that enclose `value`: one that refers to itself is followed once.
    """
    if isinstance(value, nn.Module | Tensor):
        return memo.get(id(value), value)
    if isinstance(value, types.MethodType):
        owner = _bound(value.__self__, memo, outer)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if isinstance(value, functools.partial):
        function, args = _bound(value.func, memo, outer), [_bound(part, memo, outer) for part in value.args]
        return functools.partial(function, *args, **{k: _bound(v, memo, outer) for k, v in value.keywords.items()})
    if isinstance(value, types.FunctionType) and value not in outer:
        return _bound_function(value, memo, (*outer, value))
    return value


def _bound_function(
    function: types.FunctionType, memo: Mapping[int, Any], outer: tuple[Any, ...]
) -> types.FunctionType:
    cells = [_cell_content(cell) for cell in function.__closure__ or ()]
    enclosed = [_bound(content, memo, outer) for content in cells]
    defaults = tuple(_bound(value, memo, outer) for value in function.__defaults__ or ())
    keywords = {key: _bound(value, memo, outer) for key, value in (function.__kwdefaults__ or {}).items()}
    before = [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if all(new is old for new, old in zip([*enclosed, *defaults, *keywords.values()], before, strict=True)):
        return function
    closure = tuple(types.CellType(content) for content in enclosed)
    bound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, defaults or None, closure or None
    )
    bound.__kwdefaults__ = keywords or None
    bound.__dict__.update(function.__dict__)
    return bound


def _cell_content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


# ----------------------------------------------------------------------------------------------------------------
# running without a trace
# ----------------------------------------------------------------------------------------------------------------


def is_part_of_the_model(hook: object) -> bool:
    """Return whether a hook is PyTorch's own and computes a weight (weight norm, spectral norm, pruning masks)."""
    return type(hook).__module__.startswith("torch.nn.utils.")


def _is_of_a_library(hook: object) -> bool:
    """Return whether a hook is PyTorch's own, or one by which transformers (Hugging Face) keeps hidden states."""
    return is_part_of_the_model(hook) or getattr(hook, "__module__", "") == "transformers.utils.output_capturing"


def _only_checks(hook: object) -> bool:
    """Return whether a hook is PyTorch's own and looks at inputs only (of what `torch.export` returned)."""
    return str(getattr(hook, "__module__", "")).startswith("torch.export.")


def _is_kept(hook: object, owners: Container[int]) -> bool:
    """Return whether a hook is the network's own code, whose results forward reads.

    It is where it is a method of a module around the hooked one, or of an object that such a module holds, or encloses
    one of these.

    Args:
        hook: The hook.
        owners: Identities of the modules around the hooked one, and of what they hold.
    """
    if _is_of_a_library(hook) or id(hook) in owners:
        return True
    if isinstance(hook, types.MethodType):
        return id(hook.__self__) in owners
    if isinstance(hook, functools.partial):
        return any(_is_kept(part, owners) for part in (hook.func, *hook.args, *hook.keywords.values()))
    if isinstance(hook, types.FunctionType):
        enclosed = [*map(_cell_content, hook.__closure__ or ()), *(hook.__defaults__ or ())]
        return any(id(value) in owners for value in enclosed)
    return False


def _owners(model: nn.Module) -> dict[str, set[int]]:
    """Return, for each module that has hooks, the identities of the modules around it and of what these hold."""
    modules = dict(model.named_modules())
    around = {
        name: ["", *(name[:end] for end, letter in enumerate(name) if letter == "."), name][: -1 if name else None]
        for name, module in modules.items()
        if any(getattr(module, store, None) for store in HOOKS)
    }
    held = {
        name: {id(modules[name]), *(id(value) for value in vars(modules[name]).values() if _is_held(value))}
        for name in set().union(*around.values()) & modules.keys()
    }
    return {name: set().union(*(held.get(above, ()) for above in above_it)) for name, above_it in around.items()}


def _is_held(value: object) -> bool:
    """Return whether an attribute is an object that only the module and its own code have: no number, no shared one."""
    return isinstance(value, CONTAINERS) or (hasattr(value, "__dict__") and not isinstance(value, type | nn.Module))


def hooked_modules(model: nn.Module) -> list[str]:
    """Return the names of the modules with hooks of a user that may change what goes in or comes out."""
    stores, owners = [name for name in HOOKS if "backward" not in name], _owners(model)
    return [
        name
        for name, module in model.named_modules()
        if any(
            not (_is_kept(hook, owners[name]) or _only_checks(hook))
            for store in stores
            for hook in getattr(module, store, {}).values()
        )
    ]


@contextmanager
def hooks_off(model: nn.Module) -> Iterator[None]:
    """Take off the users' hooks, of every module and the global ones; they are back on leaving.

    Hooks that are the network's own code stay.
    """
    owners = _owners(model)
    stores = [
        (getattr(module, store, None), owners.get(name, set()))
        for name, module in model.named_modules()
        for store in HOOKS
    ]
    stores += [(getattr(module_state, name, None), set()) for name in GLOBAL_HOOKS]
    saved = [(store, dict(store), own) for store, own in stores if store]
    try:
        for store, hooks, own in saved:
            store.clear()
            store.update({key: hook for key, hook in hooks.items() if _is_kept(hook, own)})
        yield
    finally:
        for store, hooks, _ in saved:
            store.clear()
            store.update(hooks)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module the attributes back on leaving that it had: counters, caches, lists that a forward grew."""
    saved = [(module, dict(vars(module)), _containers(module)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, containers in saved:
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in containers:
                if content or len(container):  # most are empty before and after
                    _refill(container, content)


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    return [(value, _content(value)) for value in vars(module).values() if isinstance(value, CONTAINERS)]


def _content(container: Any) -> Any:
    """Return a copy of what a container holds, in a type of Python's own: a copy of its own may cost or do more."""
    return dict(container) if isinstance(container, dict) else list(container)


def _refill(container: Any, content: Any) -> None:
    """Put the content of a container back, unless it is still what it was: some refuse every change (diffusers')."""
    if len(container) == len(content) and all(map(operator.is_, _parts(container), _parts(content))):
        return
    container.clear()
    if isinstance(container, list | deque):
        container.extend(content)
    else:
        container.update(content)


def _parts(container: Any) -> Iterator[Any]:
    return chain(container, container.values()) if isinstance(container, dict) else iter(container)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what `torch.compile` made of parts of a network as the code that it was made of: nothing is compiled here."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and the import would take a second
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Give a form of a network that can be run in evaluation mode while the network stays as it is.

    It shares the network's parameters, holds copies of its buffers and has none of the users' hooks: counters, caches,
    statistics and parameters that a forward pass changes are its own (but trained ones of a network of more than 2**28
    that it changes in place). Where the network cannot be copied, it is the network itself, whose attributes, buffers,
    hooks and modes are put back on leaving. The random state is put back as well.
    """
    try:
        twin = copy_model(model, _shared_but_written(model))
    except ValueError:
        with as_it_was(model):
            yield model
        return
    with generators_kept(model), values_kept(twin), hooks_off(twin), uncompiled():
        yield twin.eval()


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode without users' hooks, and make it what it was on leaving."""
    with (
        generators_kept(model),
        values_kept(model),
        hooks_off(model),
        buffers_kept(model),
        attributes_kept(model),
        mode(model, training=False),
        uncompiled(),
    ):
        yield
