"""Surgery: a smaller, plain network from a plan, and files that hold it without pickle."""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from oicsr.plan import PruningPlan, Slice

FILE_FORMAT = "oicsr-pruned-1"


def remove_channels(
    model: nn.Module,
    plan: PruningPlan,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    absorb: bool = False,
    example_inputs: Tensor | Sequence[Tensor] | None = None,
) -> nn.Module:
    """Return a smaller network of the same class; `model` is left as it is.

    `requires_grad`, gradients and the training mode stay. The same plan prunes a moving average of the weights.

    Args:
        model: The network that the plan was made for.
        plan: Which channels stay.
        optimizer: An optimiser over the parameters of `model`: from now on it holds those of the smaller network,
            and state of a parameter's shape (momentum, Adam's moments) is sliced as the parameter was.
        absorb: Add what removed channels contribute as constants, their scale taken as zero, to the bias or the
            running mean of the layers that read them (see `plan_absorption`).
        example_inputs: Inputs of one forward call; `absorb` needs them.

    Raises:
        ValueError: The plan does not fit the model; the message names the parameter. Or `absorb` lacks inputs.

    Warns:
        AbsorptionWarning: Some constants are not absorbed, or not exactly; the message names layers and reasons.
    """
    _check_fits(model, plan)
    small = copy.deepcopy(model)
    before = dict(model.named_parameters())
    for name, parameter in small.named_parameters():  # a deep copy leaves gradients behind
        grad = before[name].grad
        parameter.grad = None if grad is None else grad.clone()
    if absorb:
        from oicsr.absorption import absorb_constants  # it needs the tracer, which imports this module

        absorb_constants(small, plan, example_inputs)
    slice_module(small, plan.slices)
    if optimizer is not None:
        _rebind(optimizer, before, dict(small.named_parameters()), plan)
    return small


def slice_module(model: nn.Module, slices: Iterable[Slice]) -> None:
    """Slice parameters and buffers of `model` in place, and bring its modules' attributes in line."""
    by_name: dict[str, list[Slice]] = defaultdict(list)
    for entry in slices:
        by_name[entry.parameter].append(entry)
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
                touched[module] += done if name == "weight" else []
    for module, done in touched.items():
        fix_attributes(module, done)


def _sliced(tensor: Tensor, slices: list[Slice]) -> Tensor:
    data, grad = tensor.detach(), tensor.grad
    for entry in slices:
        data = _select(data, entry)
        grad = None if grad is None else _select(grad, entry)
    if not isinstance(tensor, nn.Parameter):
        return data
    parameter = nn.Parameter(data, requires_grad=tensor.requires_grad)
    parameter.grad = grad
    return parameter


def _select(tensor: Tensor, entry: Slice) -> Tensor:
    """Return the slices of `tensor` that stay; the memory format (channels_last) stays as well."""
    picked = tensor.index_select(entry.dim, torch.tensor(entry.kept, device=tensor.device))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return picked.contiguous(memory_format=torch.channels_last)
    return picked


def fix_attributes(module: nn.Module, slices: Iterable[Slice]) -> None:
    """Bring the attributes of a layer in line with the shapes of its parameters; `slices`: those of its weight."""
    if isinstance(module, _ConvNd):
        _fix_convolution(module, slices)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        vector = module.weight if module.weight is not None else module.running_mean
        if vector is not None:
            module.num_features = len(vector)
    elif isinstance(module, nn.LayerNorm) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        per_group = module.num_channels // module.num_groups  # groups go as a whole
        module.num_channels = len(module.weight)
        module.num_groups = module.num_channels // per_group
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)


def _fix_convolution(module: _ConvNd, slices: Iterable[Slice]) -> None:
    first, second = module.weight.shape[:2]
    for entry in slices:
        if entry.dim == 0:  # of filters, or of the inputs of a transposed convolution, group after group
            module.groups = _groups_left(entry, module.groups)
    if isinstance(module, _ConvTransposeNd):
        module.in_channels, module.out_channels = first, second * module.groups
    else:
        module.out_channels, module.in_channels = first, second * module.groups


def _groups_left(rows: Slice, groups: int) -> int:
    """Return how many groups keep rows: groups go as a whole, or lose the same rows each."""
    return len({row // (rows.size // groups) for row in rows.kept})


def _check_fits(model: nn.Module, plan: PruningPlan) -> None:
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for entry in plan.slices:
        tensor = tensors.get(entry.parameter)
        if tensor is None:
            raise ValueError(f"the plan slices {entry.parameter!r}, which {type(model).__name__} does not have")
        if entry.dim >= tensor.ndim or tensor.shape[entry.dim] != entry.size:
            raise ValueError(
                f"the plan expects {entry.size} slices on axis {entry.dim} of {entry.parameter!r}, "
                f"whose shape is {tuple(tensor.shape)}"
            )


def _rebind(
    optimizer: torch.optim.Optimizer,
    before: dict[str, nn.Parameter],
    after: dict[str, nn.Parameter],
    plan: PruningPlan,
) -> None:
    """Let an optimiser of the parameters `before` hold those of `after`, its state sliced alike."""
    names = {id(parameter): name for name, parameter in before.items()}
    by_name: dict[str, list[Slice]] = defaultdict(list)
    for entry in plan.slices:
        by_name[entry.parameter].append(entry)
    for group in optimizer.param_groups:
        for position, old in enumerate(group["params"]):
            if id(old) not in names:
                raise ValueError(
                    f"the optimiser holds a parameter of shape {tuple(old.shape)} that is not in the model"
                )
            new = after[names[id(old)]]
            group["params"][position] = new
            if old in optimizer.state:
                state = optimizer.state.pop(old)
                optimizer.state[new] = {
                    key: _sliced_state(value, old, by_name[names[id(old)]]) for key, value in state.items()
                }


def _sliced_state(value: object, parameter: Tensor, slices: list[Slice]) -> object:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    for entry in slices:
        value = _select(value, entry)
    return value


# ----------------------------------------------------------------------------------------------------------------
# files
# ----------------------------------------------------------------------------------------------------------------


def save_pruned(path: str | Path, model: nn.Module, plan: PruningPlan) -> None:
    """Write a pruned network: its tensors as safetensors, its plan as JSON in the same file's header. No pickle.

    Args:
        path: The file, by custom `*.safetensors`.
        model: The pruned network.
        plan: The plan from the network that `load_pruned` will be given a constructor of, to `model`
            (`PruningPlan.then` joins several).

    Raises:
        ValueError: The plan does not lead to the shapes of `model`.
    """
    state = model.state_dict()
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
    metadata = {"format": FILE_FORMAT, "plan": text, "sha256": _checksum(tensors, text)}
    save_file(tensors, str(path), metadata=metadata)


def _checksum(tensors: Mapping[str, Tensor], plan: str) -> str:
    """Return the SHA-256 over the plan and all names, types, shapes and values."""
    total = hashlib.sha256(plan.encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def load_pruned(path: str | Path, build_model: Callable[[], nn.Module]) -> nn.Module:
    """Rebuild a network that `save_pruned` wrote, on the CPU, in evaluation mode. Nothing in the file is executed.

    Args:
        path: The file.
        build_model: Builds the network before pruning, with any weights.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, is not one of `save_pruned`'s, or does not fit the model; says which.
    """
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
    if metadata.get("sha256") != _checksum(tensors, metadata["plan"]):
        raise ValueError(f"{path} was changed after it was written: its checksum is wrong")
    plan = PruningPlan.from_json(metadata["plan"])
    try:
        model = remove_channels(build_model(), plan)
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit the model that build_model() gives: {error}") from error
    return model.eval()
