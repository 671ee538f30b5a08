"""Size and cost of a network.

MACs (the paper's FLOPs) are the multiply-accumulates of convolutions and linear layers for one input (batch 1),
without bias, normalisation, activation and pooling: the convention of the authors' own counter. A recurrent layer is
the linear layers that it is made of, at each step. Products of activations
with activations (both of attention) count as well; the paper's networks have none. torchvision's
ResNet-50 at 224x224 has 4,089,184,256 of them and 25,557,032 parameters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.nn import functional

from oicsr.arguments import check_call, check_model, check_open
from oicsr.contractions import (
    chain_macs,
    einsum_macs,
    factors_of,
    is_plain,
    plain_steps,
    tensordot_axes,
    tensordot_equation,
)
from oicsr.networks.batches import SeenBatch
from oicsr.networks.copying import undisturbed
from oicsr.networks.grouped import GROUPED
from oicsr.networks.inputs import ExampleInputs, as_inputs
from oicsr.networks.modes import FLEX_ATTENTION, Mode
from oicsr.networks.state import one_at_a_time
from oicsr.networks.wrapping import unwrap
from oicsr.parametrized import make_plain

CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}  # function -> spatial axes
SUMMED = {  # those that add a product: where its factors stand
    **dict.fromkeys((torch.addmm, Tensor.addmm, Tensor.addmm_), ((1, "mat1"), (2, "mat2"))),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_), ((1, "batch1"), (2, "batch2"))),
    **dict.fromkeys((torch.addbmm, Tensor.addbmm, Tensor.addbmm_), ((1, "batch1"), (2, "batch2"))),
}
OVER_BATCH = {torch.addbmm, Tensor.addbmm, Tensor.addbmm_}  # those that sum over axis 0 as well
CHAINS = {torch.linalg.multi_dot, torch.chain_matmul}  # of many matrices
MULTIPLYING = {
    torch.matmul,
    torch.linalg.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
    torch.mm,
    Tensor.mm,
    torch.bmm,
    Tensor.bmm,
    torch.mv,
    Tensor.mv,
    torch.inner,
    Tensor.inner,
    torch.tensordot,
    torch.einsum,
    GROUPED,
    *CHAINS,
    *SUMMED,
}
ATTENTIONS = {functional.scaled_dot_product_attention, FLEX_ATTENTION}
RECURRENT = {
    f"{name}{end}" for name in ("lstm", "gru", "rnn_tanh", "rnn_relu") for end in ("", "_cell")
}  # linear layers, one step after the other
TRANSPOSED = {torch.conv_transpose1d: 1, torch.conv_transpose2d: 2, torch.conv_transpose3d: 3}
CONVOLVED = {axes: function for function, axes in CONVOLUTIONS.items()}
DECONVOLVED = {axes: function for function, axes in TRANSPOSED.items()}
CONTRACTIONS = {torch.inner, Tensor.inner, torch.tensordot}  # that are followed as the `einsum` that they are
UNNUMBERED = {*CONTRACTIONS, *CHAINS}  # none of them is followed in another form
CALLED = {*CONVOLUTIONS, *TRANSPOSED, *MULTIPLYING}
DEFORMED = "torchvision::deform_conv2d"  # a convolution like any other, by its cost; its offsets are no part of it
WRITING = {"__setitem__", "__set__", *(f"__i{name}__" for name in "add sub mul truediv floordiv mod pow".split())}
LIKENED = {Tensor.to, Tensor.type_as}
OPERATORS = {  # what code that calls operators by their own names means by them, graphs of `torch.export` among it
    "linear": functional.linear,
    "scaled_dot_product_attention": functional.scaled_dot_product_attention,
    "linalg_matmul": torch.linalg.matmul,
    "linalg_multi_dot": torch.linalg.multi_dot,
    "convolution": torch.convolution,
    "bilinear": functional.bilinear,
    **{name: function for name, function in vars(torch).items() if callable(function) and function in CALLED},
}


class Positions(Mode):
    """Note, for each weight, at how many positions it is applied, and the size of the batch that the first layer sees.

    Attributes:
        calls: Weight and number of positions, one entry per call.
        alone: Which calls read a table (of positions), whatever the batch, by their places in `calls`.
        products: MACs of each product of two activations, in the order of the calls; attention has two. A layer
            whose weight is computed counts as such a product.
        unfollowed: MACs of products in forms that channels are not followed through.
        seen: The batch, as the first layers see it.
    """

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, int]] = []
        self.alone: set[int] = set()
        self.products: list[int] = []
        self.unfollowed: list[int] = []
        self._weights = {id(weight) for weight in weights}
        self._derived: dict[int, tuple[Tensor, bool]] = {}
        self.seen = SeenBatch()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.multi_head_attention_forward:  # its own layers and products are looked into
            self.seen.note_attention(_argument(args, kwargs or {}, 0, "query"))
            with self, plain_attention():
                return func(*args, **(kwargs or {}))
        steps = plain_steps(args) if _meant(func, args) is torch.einsum else []
        if steps:
            result, *others = factors_of(args)
            for number, step in enumerate(steps):
                factors = (result, *others[number : number + 1])
                result = self.__torch_function__(torch.einsum, types, (step, *factors))
            return result
        result = func(*args, **(kwargs or {}))
        self._note_derived(func, args, kwargs or {}, result)
        if func is Tensor.transpose and {*args[1:], *(kwargs or {}).values()} == {0, 1}:
            self.seen.note_swapped(result)
        called = _meant(func, args)
        if getattr(called, "__name__", "").partition(".")[0] in RECURRENT:
            self._note_recurrent(args)
        if called in MULTIPLYING or called in ATTENTIONS:
            self._note_product(called, args, kwargs or {}, result)
        if called is functional.bilinear:
            weight = _argument(args, kwargs or {}, 2, "weight")
            self._note_weight(weight, result.numel() // weight.shape[0])
        if called in CONVOLUTIONS or called in TRANSPOSED or called in (functional.linear, DEFORMED):
            source, weight = (_argument(args, kwargs or {}, *where) for where in ((0, "input"), (1, "weight")))
            values = source if called in TRANSPOSED else result
            spatial = 2 if called == DEFORMED else CONVOLUTIONS.get(called) or TRANSPOSED.get(called) or 0
            table = self._is_derived(source) is not None
            if table:
                self.alone.add(len(self.calls))
            # every weight is used once per value of the output that belongs to one output channel
            outputs = weight.shape[0] if weight.ndim > 1 else 1
            self._note_weight(weight, values.numel() // outputs)
            if not table:
                self.seen.note_layer(source, spatial)
        return result

    def _note_derived(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        """Remember what is computed from weights alone, or from nothing: it is made once, whatever the inputs."""
        if func in LIKENED:  # to the type and device of another tensor, which gives no values
            args, kwargs = args[:1], {}
        sources = [
            v for value in (*args, *kwargs.values()) for v in (value if type(value) in (list, tuple) else [value])
        ]
        known = [self._is_derived(value) for value in sources if isinstance(value, Tensor)]
        if None in known:
            for written in (kwargs.get("out"), *(args[:1] if _writes(func) else ())):
                if isinstance(written, Tensor):
                    self._forget(written)
        if None not in known:
            for value in result if isinstance(result, list | tuple) else [result]:
                if isinstance(value, Tensor):
                    self._derived[id(value)] = value, any(known)

    def _forget(self, written: Tensor) -> None:
        """Take a tensor that something of the inputs was written into, and its views, for such from now on."""
        memory = _memory(written)
        if memory is not None:
            for key in [key for key, (value, _) in self._derived.items() if _memory(value) == memory]:
                del self._derived[key]

    def _is_derived(self, tensor: Tensor) -> bool | None:
        """Return whether a tensor is computed from weights, or else from nothing; None where it is from the inputs."""
        if id(tensor) in self._weights:
            return True
        return self._derived[id(tensor)][1] if id(tensor) in self._derived else None

    def _note_recurrent(self, args: Sequence[Any]) -> None:
        """Note that each weight of a recurrent layer is used once per input and step."""
        flat = [tensor for value in args for tensor in (value if isinstance(value, list | tuple) else [value])]
        for tensor in flat:
            if isinstance(tensor, Tensor) and tensor.ndim == 2 and id(tensor) in self._weights:
                self.calls.append((tensor, args[0].numel() // args[0].shape[-1]))
        self.seen.note_recurrent(args)

    def _note_product(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], result: Tensor
    ) -> None:
        if func in ATTENTIONS:
            query, key, value = (_argument(args, kwargs, i, name) for i, name in enumerate(("query", "key", "value")))
            mixed = result if isinstance(result, Tensor) else result[0]  # a query may be spread over the others' batch
            pairs = mixed.numel() // max(mixed.shape[-1], 1) * key.shape[-2]
            self.products += [pairs * query.shape[-1], pairs * value.shape[-1]]
            return
        if func is GROUPED:
            self.products.append(result.numel() * args[0].shape[-1])
            return
        factors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if func is torch.linalg.multi_dot:
            factors = list(_argument(args, kwargs, 0, "tensors"))
        if func is torch.einsum:
            factors = factors_of(args)
        elif func in SUMMED:
            factors = [_argument(args, kwargs, i, name) for i, name in SUMMED[func]]
        elif func in CONTRACTIONS and (equation := _equation(func, args, kwargs)):
            func, factors = torch.einsum, factors[:2]
            args = (equation, *factors)
        derived = [self._is_derived(factor) for factor in factors]
        if not any(derived) and any(factor.layout != torch.strided for factor in factors):
            return  # a sum along the edges of a graph
        if len(factors) < 2 or (None not in derived and any(derived)):
            return
        if func is torch.einsum:
            macs = einsum_macs(args)
        elif func is torch.tensordot:  # each number of the result sums over what the result lacks
            macs = math.isqrt(result.numel() * factors[0].numel() * factors[1].numel())
        elif func in CHAINS:
            macs = chain_macs([factor.shape for factor in factors])
        else:
            macs = result.numel() * (factors[0].shape[-1] if factors[0].ndim else 1)
        macs *= len(factors[0]) if func in OVER_BATCH else 1
        weights = [factor for factor in factors if id(factor) in self._weights]
        if len(factors) == 2 and weights and weights[-1].numel():
            self._note_weight(weights[-1], macs // weights[-1].numel())
        elif self._is_followed(func, args, factors):
            self.products.append(macs)
        else:
            self.unfollowed.append(macs)

    @staticmethod
    def _is_followed(func: Callable[..., Any], args: Sequence[Any], factors: Sequence[Tensor]) -> bool:
        """Return whether a product is one of those that are numbered where channels are followed.

        Those are `oicsr.rules.products` and, of computed weights, `oicsr.rules.weighted`.
        """
        if func in UNNUMBERED or len(factors) != 2:
            return False
        return func is not torch.einsum or is_plain(args[0])

    def _note_weight(self, weight: Tensor, count: int) -> None:
        """Note how often a weight is used; one that is computed is none whose name is known, but a product."""
        if id(weight) in self._weights:
            self.calls.append((weight, count))
        else:
            self.products.append(count * weight.numel())


def _memory(tensor: Tensor) -> int | None:
    """Return what tells the memory of a tensor from others; None where it has none of its own."""
    if tensor.layout != torch.strided or is_batchedtensor(tensor):
        return None
    return int(tensor.untyped_storage()._cdata)


def _writes(func: Callable[..., Any]) -> bool:
    """Return whether a function writes to its first argument."""
    name = getattr(func, "__name__", "").partition(".")[0]
    return name in WRITING or (name.endswith("_") and not name.endswith("__"))


def _equation(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return the plain equation of a product that sums over pairs of axes; empty where it has none."""
    if func is torch.tensordot:
        first, second = (_argument(args, kwargs, i, name) for i, name in enumerate("ab"))
        given = args[2] if len(args) > 2 else kwargs.get("dims", 2)
        dims = tensordot_axes(args[2:4] if len(args) > 3 else given, first.ndim)  # the operator takes those of both
    else:
        first, second = (_argument(args, kwargs, i, name) for i, name in enumerate(("input", "other")))
        dims = ([-1], [-1])
    return tensordot_equation(first.shape, second.shape, dims) if first.ndim and second.ndim else ""


def _meant(func: Callable[..., Any], args: Sequence[Any]) -> Any:
    """Return the function that an operator called by its own name, `torch.ops.aten.conv2d.default`, stands for."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        space, name, *_ = str(func).split(".")
        if f"{space}::{name}" == DEFORMED:
            return DEFORMED
        func = OPERATORS.get(name, func) if space == "aten" else func
    if func is torch.convolution:
        return (DECONVOLVED if args[6] else CONVOLVED)[args[0].ndim - 2]
    return func


@contextmanager
def plain_attention() -> Iterator[None]:
    """Let `multi_head_attention_forward` run its own code, whatever looks on."""
    functions = vars(functional)
    checked = functions["has_torch_function"]
    functions["has_torch_function"] = lambda tensors: False
    try:
        yield
    finally:
        functions["has_torch_function"] = checked


def _argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs[name]


@dataclass(frozen=True)
class Work:
    """What a network does with one input.

    Attributes:
        positions: How often each element of each weight is used (for a convolution: output height times width).
        others: MACs of weights whose names are not known, and of products in forms that no channels go through.
        products: MACs of each product of two activations, in the order of the calls; attention has two. A layer whose
            weight is computed from parameters counts as such a product.
        calls: How often each call of a weight uses each of its elements, in the order of the calls.
    """

    positions: dict[str, int]
    others: int
    products: tuple[int, ...]
    calls: Mapping[str, Sequence[int]]


def weight_positions(model: nn.Module, example_inputs: ExampleInputs) -> tuple[dict[str, int], int]:
    """Return how often each element of each weight is used for one input, and the MACs of everything else.

    See `count_work`, whose products of activations are part of the rest here.
    """
    work = count_work(model, example_inputs)
    return work.positions, work.others + sum(work.products)


@one_at_a_time()
def count_work(model: nn.Module, example_inputs: ExampleInputs) -> Work:
    """Return how often each element of each weight is used for one input, and what products of activations take.

    Args:
        model: A network; run once, in evaluation mode, without gradient, and left as it is. (A run for shapes alone, on
            the meta device, takes longer: there, normalisation layers are traced in Python.)
        example_inputs: The arguments of one forward call (see `find_couplings`). The batch is found by what the first
            layer reads: it need not lie on the first input, nor be there at all.

    Returns:
        Positions and MACs. A weight that is a parameter or a buffer goes by its name; one with a parametrization by
        that of the parameter of its shape.
    """
    check_call(model, example_inputs)
    model, inputs = unwrap(model), as_inputs(example_inputs)
    check_open(model)
    for tensor in inputs.tensors():
        if tensor.ndim and not tensor.shape[0]:
            raise ValueError(f"example_inputs have shape {tuple(tensor.shape)}; at least one input is needed")
    with undisturbed(model) as twin, torch.no_grad():
        carriers = {name: entry.carrier for name, entry in make_plain(twin).items()} if twin is not model else {}
        counter = Positions([*twin.parameters(), *twin.buffers()])
        with counter:
            inputs.call(twin)
        tensors = chain(twin.named_parameters(), twin.named_buffers())  # the kernel of a blur is a buffer
        names = {id(tensor): carriers.get(name, name) for name, tensor in tensors}
    used: dict[str, list[int]] = defaultdict(list)
    others = []
    for weight, count in counter.calls:
        if id(weight) in names:
            used[names[id(weight)]].append(count)
        else:
            others.append((count, weight.numel()))
    asked = (entry for place, entry in enumerate(counter.calls) if place not in counter.alone)
    works = [(count, count * weight.numel()) for weight, count in asked]
    batch = counter.seen.find(inputs, [*works, *((macs, macs) for macs in (*counter.products, *counter.unfollowed))])
    calls = {name: batch.shares(counts) for name, counts in used.items()}
    rest = sum(batch.shares(counter.unfollowed))
    for count, (_, size) in zip(batch.shares([count for count, _ in others]), others, strict=True):
        rest += count * size
    positions = {name: sum(counts) for name, counts in calls.items()}
    return Work(positions, rest, tuple(batch.shares(counter.products)), calls)


def count_macs(model: nn.Module, example_inputs: ExampleInputs) -> int:
    """Return the multiply-accumulates of all convolutions, linear layers and attention products for one input.

    The paper's FLOPs: no bias, normalisation, activation or pooling.

    Args:
        model: A network, wrapped or not; left as it is, counters and caches included.
        example_inputs: The arguments of one forward call (see `find_couplings`).

    Returns:
        The number for one element of the batch.

    Raises:
        TypeError: `model` is not a module.
        Exception: What the network's own code raises.
    """
    model = unwrap(model)
    positions, others = weight_positions(model, example_inputs)
    return others + sum(count * find_tensor(model, name).numel() for name, count in positions.items())


def find_tensor(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its qualified name."""
    path, _, local = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = module._parameters.get(local)
    return module.get_buffer(local) if tensor is None else tensor


def count_params(model: nn.Module) -> int:
    """Return the number of parameters (buffers, such as running statistics, are none)."""
    check_model(model)
    return sum(parameter.numel() for parameter in model.parameters())
