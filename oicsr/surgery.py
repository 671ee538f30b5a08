"""Surgery: a smaller, plain network from a plan, and files that hold it without pickle."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from oicsr.absorption import absorb_constants
from oicsr.arguments import as_optimizers, check_open, check_plan, check_plan_fits
from oicsr.changes import drop_caches, scale_slices, set_attributes
from oicsr.heads import Head
from oicsr.networks.copying import copy_model
from oicsr.networks.inputs import ExampleInputs
from oicsr.networks.state import trainable
from oicsr.networks.warned import warn
from oicsr.networks.wrapping import unwrap
from oicsr.opened.attention import opened_modules
from oicsr.optimizers.held import held_optimizers
from oicsr.optimizers.rebinding import check_optimizer, rebind, select_slices, slices_by_name
from oicsr.parametrized import computed_weights, refresh
from oicsr.plan import PruningPlan, Slice
from oicsr.twins import UntiedWarning, said_of_untied

RECURRENT = (nn.RNNBase, nn.RNNCellBase)
WIDTHS = {"input_size": "ih", "hidden_size": "hh"}  # of recurrent layers: the weights whose columns they count
FILE_FORMAT = "oicsr-pruned-1"
UNHELD = (torch.complex128, torch.complex32)  # types that safetensors knows no name of


@trainable()
def remove_channels(
    model: nn.Module,
    plan: PruningPlan,
    *,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    absorb: bool = False,
    example_inputs: ExampleInputs | None = None,
) -> nn.Module:
    """Return a smaller network of the same class; `model` is left as it is.

    `requires_grad`, gradients, the training mode and marks on parameters (`weight._no_weight_decay = True`) stay.
    Optimisers and lists of parameters that the network itself holds (`self.opt = Adam(self.parameters())`) follow in
    its place; hooks on parameters stay with the original's. The same plan prunes a moving average of the weights. Of a
    wrapped network (`DistributedDataParallel`, `AveragedModel`, `torch.compile`), the network inside is returned,
    without the wrapper.

    Args:
        model: The network that the plan was made for.
        plan: Which channels stay.
        optimizer: An optimiser over the parameters of `model`: from now on it holds those of the smaller network,
            and state of a parameter's shape (momentum, Adam's moments) is sliced as the parameter was, but not
            multiplied where the plan multiplies weights (`PruningPlan.scalings`): it adapts within steps. Parameters
            of other modules that it holds (a loss with weights, a temperature) stay in it. Several that share the
            parameters between them (Muon and AdamW) come as a list.
        absorb: Add what removed channels contribute as constants, their scale taken as zero, to the bias or the
            running mean of the layers that read them (see `plan_absorption`).
        example_inputs: Inputs of one forward call; `absorb` needs them.

    Raises:
        TypeError: `model` is not a module, `plan` is not a plan, or `optimizer` is neither an
            optimiser nor a list of them.
        ValueError: The plan does not fit the model, the model cannot be copied, `absorb` lacks inputs, or the
            optimiser holds none of the model's parameters, or one given or held keeps a state that cannot be sliced
            (L-BFGS, Shampoo); the message says which. Nothing is changed then.

    Warns:
        AbsorptionWarning: Some constants are not absorbed, or not exactly; the message names layers and reasons.
        UntiedWarning: A moving average that the network runs (a teacher) loses other channels than its original.
    """
    check_plan(model, plan)
    optimizers = as_optimizers(optimizer)
    model = unwrap(model)
    check_open(model)
    check_plan_fits(model, plan)
    for said in said_of_untied(model, plan.slices):
        warn(said, UntiedWarning)
    before = dict(model.named_parameters())
    for one in optimizers:  # all of them, before anything is changed
        check_optimizer(one, before, plan)
    memo: dict[int, Any] = {id(one): one for one in optimizers}  # it is not copied where the network holds it
    small = copy_model(model, memo=memo)
    held, own = held_optimizers(model, small, memo), dict(small.named_parameters())
    for attribute, one in held:
        check_optimizer(one, own, plan, attribute)
    for name, parameter in small.named_parameters():  # a deep copy leaves gradients and marks behind
        grad = before[name].grad
        parameter.grad = None if grad is None else grad.clone()
        vars(parameter).update(_marks(before[name]))
    if absorb:
        absorb_constants(small, plan, example_inputs)
    for _, one in held:
        rebind(one, own, own, plan)
    with _same_tensors(small):
        apply_plan(small, plan)
    for one in optimizers:
        rebind(one, before, dict(small.named_parameters()), plan)
    return small


@contextmanager
def _same_tensors(model: nn.Module) -> Iterator[None]:
    """Let the parameters and buffers of `model` be the objects that they were, with new values, on leaving.

    The model may hold them in other places as well: in its own optimiser, in a list of what has no weight decay.
    """
    stores: list[dict[str, Any]] = [s for module in model.modules() for s in (module._parameters, module._buffers)]
    before = [(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]
    yield
    for store, name, tensor in before:
        new = store.get(name)
        if new is not None and new is not tensor:
            tensor.grad, grad = None, new.grad
            tensor.data = new.data
            tensor.grad, store[name] = grad, tensor
    for module in model.modules():
        if isinstance(module, nn.RNNBase):
            _flatten(module)


def apply_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Do what a plan says to `model`, in place: multiply and slice its tensors, and set numbers on its modules.

    Parameters are replaced, not changed: those that the network shares with another one stay as they are.
    """
    scale_slices(model, plan.scalings)
    slice_module(model, plan.slices)
    set_attributes(model, plan.attributes)
    drop_caches(model, {entry.parameter for entry in plan.slices})


def slice_module(model: nn.Module, slices: Iterable[Slice]) -> None:
    """Slice parameters and buffers of `model` in place, and bring its modules' attributes in line."""
    by_name = slices_by_name(slices)
    carriers = {entry.carrier: entry.owner for name, entry in computed_weights(model).items() if _is_weight(name)}
    head = Head.of(model)
    shared: dict[int, tuple[nn.Parameter, list[Slice]]] = {}  # a tied parameter is sliced once
    touched: dict[nn.Module, list[Slice]] = defaultdict(list)
    for prefix, module in model.named_modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                key = f"{prefix}.{name}" if prefix else name
                if tensor is None or not (key in by_name or id(tensor) in shared):
                    continue
                if id(tensor) not in shared:
                    shared[id(tensor)] = _sliced(tensor, by_name[key]), by_name[key]  # type: ignore[assignment]
                store[name], done = shared[id(tensor)]
                shapes_it = name == "weight" or key in carriers or isinstance(module, RECURRENT)
                touched[carriers.get(key, module)] += done if shapes_it else []
    refresh(model)
    for module, done in touched.items():
        fix_attributes(module, done)
    head.follow()


def _is_weight(name: str) -> bool:
    return name.rpartition(".")[2] == "weight"


def _sliced(tensor: Tensor, slices: list[Slice]) -> Tensor:
    data, grad = tensor.detach(), tensor.grad
    for entry in slices:
        data = select_slices(data, entry)
        grad = None if grad is None else select_slices(grad, entry)
    if not isinstance(tensor, nn.Parameter):
        return data
    parameter = nn.Parameter(data, requires_grad=tensor.requires_grad)
    parameter.grad = grad
    vars(parameter).update(_marks(tensor))
    return parameter


def _marks(parameter: Tensor) -> dict[str, Any]:
    """Return what users noted on a parameter for their optimisers, such as `_no_weight_decay = True`."""
    return {name: value for name, value in vars(parameter).items() if isinstance(value, bool | int | float | str)}


def fix_attributes(module: nn.Module, slices: Iterable[Slice]) -> None:
    """Bring the attributes of a layer in line with the shapes of its parameters; `slices`: those of its weight."""
    if isinstance(module, _ConvNd):
        _fix_convolution(module, slices)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Embedding | nn.EmbeddingBag):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, _NormBase):
        vector = module.weight if module.weight is not None else module.running_mean
        if vector is not None:
            module.num_features = len(vector)
    elif isinstance(vars(module).get("normalized_shape"), tuple):  # of LayerNorm, RMSNorm and those like them
        vars(module)["normalized_shape"] = tuple(module._parameters["weight"].shape)  # type: ignore[union-attr]
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        per_group = module.num_channels // module.num_groups  # groups go as a whole, unless there is one alone
        module.num_channels = len(module.weight)
        module.num_groups = max(1, module.num_channels // per_group)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.Bilinear):
        sizes = zip(("out_features", "in1_features", "in2_features"), module.weight.shape, strict=True)
        vars(module).update(sizes)
    elif isinstance(module, nn.RNNBase | nn.RNNCellBase):
        _fix_recurrent(module)
    elif all(type(vars(module).get(name)) is int for name in ("in_channels", "out_channels", "groups")):
        _fix_like_convolution(module, slices)


def _fix_recurrent(module: nn.RNNBase | nn.RNNCellBase) -> None:
    end = "_l0" if isinstance(module, nn.RNNBase) else ""
    widths = {name: module.get_parameter(f"weight_{which}{end}").shape[1] for name, which in WIDTHS.items()}
    vars(module).update(widths)
    if isinstance(module, nn.RNNBase):
        if module.proj_size:
            module.proj_size, module.hidden_size = module.get_parameter("weight_hr_l0").shape
        _flatten(module)


def _flatten(module: nn.RNNBase) -> None:
    vars(module)["_flat_weights"] = [module._parameters.get(name) for name in module._flat_weights_names]


def _fix_convolution(module: _ConvNd, slices: Iterable[Slice]) -> None:
    first, second = module.weight.shape[:2]
    for entry in slices:
        if entry.dim == 0:  # of filters, or of the inputs of a transposed convolution, group after group
            module.groups = _groups_left(entry, module.groups)
    if isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.out_channels, module.in_channels = first, second * module.groups


def _fix_like_convolution(module: nn.Module, slices: Iterable[Slice]) -> None:
    """Treat a convolution of another library like PyTorch's, if its numbers say that its weight has the same axes."""
    weight: Tensor = getattr(module, "weight")  # noqa: B009 (a parameter, a buffer, or computed)
    shape, numbers = weight.shape, vars(module)
    rows = {entry.dim: entry for entry in slices}
    before = dict(enumerate(shape)) | {dim: entry.size for dim, entry in rows.items()}
    if (before[0], before.get(1, 0) * numbers["groups"]) == (numbers["out_channels"], numbers["in_channels"]):
        groups = _groups_left(rows[0], numbers["groups"]) if 0 in rows else numbers["groups"]
        numbers.update(out_channels=shape[0], in_channels=shape[1] * groups, groups=groups)


def _groups_left(rows: Slice, groups: int) -> int:
    """Return how many groups keep rows: groups go as a whole, or lose the same rows each."""
    return len({row // (rows.size // groups) for row in rows.kept})


# ----------------------------------------------------------------------------------------------------------------
# files
# ----------------------------------------------------------------------------------------------------------------


def save_pruned(path: str | Path, model: nn.Module, plan: PruningPlan) -> None:
    """Write a pruned network: its tensors as safetensors, its plan as JSON in the same file's header. No pickle.

    Args:
        path: The file, usually `*.safetensors`.
        model: The pruned network.
        plan: The plan from the network that `load_pruned` will be given a constructor of, to `model`
            (`PruningPlan.then` joins several).

    Raises:
        TypeError: `model` is not a module, or `plan` is not a plan.
        FileNotFoundError: There is no folder for the file.
        ValueError: The plan does not lead to the shapes of `model`, a tensor is sparse or of a type that safetensors
            does not hold, or a module keeps an extra state (`get_extra_state`) that JSON cannot hold; the message names
            it.
    """
    check_plan(model, plan)
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"no such folder: {Path(path).parent}")
    state, extra = _split_state(unwrap(model).state_dict())
    for entry in plan.slices:
        shape = tuple(state[entry.parameter].shape) if entry.parameter in state else None
        # non-persistent buffers are not in the state, and are rebuilt from the plan
        if shape is not None and shape[entry.dim] != len(entry.kept):
            raise ValueError(
                f"the plan keeps {len(entry.kept)} slices on axis {entry.dim} of {entry.parameter!r}, "
                f"whose shape in the model is {shape}: it is not this model's plan"
            )
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    text = plan.to_json()
    cut = [f".{entry.parameter}" for entry in plan.slices]
    around = opened_modules(unwrap(model)).items()
    names = [name for name, whole in around if any(path.startswith(f".{whole}." if whole else ".") for path in cut)]
    opened = json.dumps(names) if names else ""
    metadata = {"format": FILE_FORMAT, "plan": text, "sha256": _checksum(tensors, text + extra + opened)}
    optional = {"extra": extra, "opened": opened}
    save_file(tensors, str(path), metadata=metadata | {key: value for key, value in optional.items() if value})


def _split_state(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a state, and the rest (extra states of modules) as JSON, empty where there is none."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    extra = {name: value for name, value in state.items() if name not in tensors}
    sparse = [name for name, tensor in tensors.items() if tensor.layout != torch.strided]
    if sparse:
        raise ValueError(
            f"{sparse[0]!r} is a sparse tensor, which safetensors does not hold: register it with persistent=False, or "
            "keep its indices and values as buffers"
        )
    unheld = [name for name, tensor in tensors.items() if tensor.dtype in UNHELD]
    if unheld:
        raise ValueError(
            f"{unheld[0]!r} is of type {tensors[unheld[0]].dtype}, which safetensors does not hold: convert it to "
            "torch.complex64, or keep its real and imaginary parts as tensors of their own"
        )
    for name, value in extra.items():
        try:
            survives = json.loads(json.dumps(value)) == value
        except (TypeError, ValueError):
            survives = False
        if not survives:
            raise ValueError(
                f"the extra state {name!r} is a {type(value).__name__} that JSON does not hold; a file without pickle "
                "takes tensors, numbers, texts, lists and dictionaries with texts as keys: let get_extra_state return "
                "such"
            )
    return tensors, json.dumps(extra, sort_keys=True) if extra else ""


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 over the texts of the header and all names, types, shapes and values."""
    total = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


@trainable()
def load_pruned(path: str | Path, build_model: Callable[[], nn.Module]) -> nn.Module:
    """Rebuild a network that `save_pruned` wrote, in evaluation mode. Nothing in the file is executed.

    It is on the device on which `build_model` builds, and those of its parameters are frozen that are so there.
    Weights are of the types that they were saved in (half precision, float64), whatever `build_model` builds.

    Args:
        path: The file.
        build_model: Builds the network before pruning, with any weights.

    Raises:
        TypeError: `build_model` is not a function.
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is not one of `save_pruned`'s, or does not fit the model; says which. What
            `build_model` raises comes through as it is.
    """
    if isinstance(build_model, nn.Module) or not callable(build_model):
        raise TypeError(
            f"build_model is a {type(build_model).__name__}; it must be a function that builds the network before "
            "pruning, such as lambda: resnet18(num_classes=10)"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != FILE_FORMAT or "plan" not in metadata:
        raise ValueError(f"{path} was not written by save_pruned: its format is {metadata.get('format')!r}")
    extra, opened = metadata.get("extra", ""), metadata.get("opened", "")
    if metadata.get("sha256") != _checksum(tensors, metadata["plan"] + extra + opened):
        raise ValueError(f"{path} was changed after it was written: its checksum is wrong")
    try:
        plan, others = PruningPlan.from_json(metadata["plan"]), json.loads(extra or "{}")
        names = json.loads(opened or "[]")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} holds no plan and extra states that can be read: {error}") from error
    if not isinstance(others, dict):
        raise ValueError(f"{path} holds a {type(others).__name__} where extra states by name are due")
    if not isinstance(names, list):
        raise ValueError(f"{path} holds a {type(names).__name__} where names of modules are due")
    built = build_model()
    try:
        model = remove_channels(built, plan)
        _check_opened(model, names)
        _take_types(model, tensors)
        model.load_state_dict({**tensors, **others})
    except (ValueError, RuntimeError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path} does not fit the model that build_model() gives: {error}") from error
    return model.eval()


def _check_opened(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse a network whose attention was not opened, where that of the pruned one was: its code fixes the widths."""
    there = opened_modules(unwrap(model))
    missing = next((name for name in names if name not in there), None)
    if missing is not None:
        raise ValueError(
            f"the attention {missing!r} was opened before it was pruned: call oicsr.open_attention on the network in "
            "build_model"
        )


def _take_types(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Bring the floating-point tensors of `model` to the types of those that it is about to load.

    A buffer that files do not hold (`persistent=False`) follows where all tensors of its type go to one other.
    """
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    own = {name: tensor for name, tensor in named if tensor.is_floating_point()}
    meta = next((name for name, tensor in own.items() if tensor.is_meta), None)
    if meta is not None:
        raise ValueError(f"{meta!r} is on the meta device, which holds no numbers: build the network on the CPU")
    wanted = {name: tensors[name].dtype for name in own if name in tensors and tensors[name].is_floating_point()}
    moves: dict[torch.dtype, set[torch.dtype]] = defaultdict(set)
    for name, dtype in wanted.items():
        moves[own[name].dtype].add(dtype)
    for name, tensor in own.items():
        (other, *others) = moves[tensor.dtype] or (tensor.dtype,)
        if name in wanted or not (name in tensors or others):
            tensor.data = tensor.data.to(wanted.get(name, other))
