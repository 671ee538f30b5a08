"""Means of squares over channels (RMSNorm): a channel that is zero everywhere goes exactly.

Where m of n channels stay, the mean of squares grows by n / m, and with it the epsilon has to grow. The output is then
smaller by sqrt(m / n), which the weight makes up for: it is multiplied by sqrt(n / m), old over new width. Weight and
epsilon have to be found for this: a parameter that the result is multiplied with, and a number on the module.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from oicsr.rules.calls import argument, axes_of, module_path, operator_name, shape_of, source_of
from oicsr.rules.notes import Norm
from oicsr.rules.registry import Result, aten, follows
from oicsr.rules.tracer import Tracer

CONVERSIONS = frozenset(aten("to _to_copy type_as float half clone contiguous"))
LENGTHS = frozenset(aten("rsqrt sqrt reciprocal pow"))  # from the mean of squares to what the values are divided by
SCALINGS = frozenset(aten("mul multiply div divide true_divide"))
VIEWS = CONVERSIONS | frozenset(aten("view reshape unsqueeze expand"))


@follows("aten::rms_norm")
def rms_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels on other axes; those that it runs over go where weight and epsilon can follow."""
    axes = list(range(ids.ndim - len(argument(node, 1)), ids.ndim))
    kept = tracer.whole(ids, axes)
    if kept is not None:
        return kept
    weight, eps = argument(node, 2), argument(node, 3)
    if len(axes) > 1 or weight not in tracer.parameters:
        return tracer.opaque(node, "normalises over the channels: only over one axis and with a weight it adapts")
    if eps is None:
        return tracer.opaque(
            node,
            "normalises over the channels with eps=None, which has to change with the width: set it on the module "
            "(torch.finfo(torch.float32).eps is what PyTorch takes for float32)",
        )
    why = _note(tracer, node, weight, ids.flatten(), eps)
    if why:
        return tracer.opaque(node, why)
    tracer.follow_vector(weight, ids.flatten(), "norm", counts=True)
    return ids


def written_out(tracer: Tracer, node: fx.Node, ids: Tensor) -> str | None:
    """Note the mean of squares over channels that an RMSNorm begins with where it is written out in the code.

    Args:
        tracer: The tracer.
        node: A mean over the channels.
        ids: The channels of what it is taken of.

    Returns:
        None where it is no RMSNorm; otherwise why it does not follow its channels, and an empty text where it does.
    """
    axes = axes_of(node, ids.ndim)
    squares = source_of(node)
    if len(axes) != 1 or not argument(node, "keepdim") or not _is_square(squares):
        return None
    found = _weight_behind(tracer, node)
    if found is None:
        return None
    weight, eps = found
    vector = tracer.channels(ids, next(iter(axes)), shape_of(squares)[next(iter(axes))])
    return None if vector is None else _note(tracer, node, weight, vector, eps)


def _is_square(node: fx.Node) -> bool:
    while operator_name(node) in CONVERSIONS:
        node = source_of(node)
    name = operator_name(node)
    if name == "aten::mul":
        return argument(node, 0) is argument(node, 1)
    return name == "aten::square" or (name == "aten::pow" and argument(node, 1) == 2)


def _weight_behind(tracer: Tracer, node: fx.Node) -> tuple[fx.Node, float] | None:
    """Follow a mean of squares to the values that are divided by its root, and to the weight that multiplies these."""
    eps, scaled = 0.0, False
    while True:
        users = [user for user in node.users if operator_name(user) != "aten::_assert_tensor_metadata"]
        if len(users) != 1 or users[0].op != "call_function":
            return None
        user, name = users[0], operator_name(users[0])
        if name == "aten::add" and not scaled and not eps and isinstance(argument(user, 1), int | float):
            eps = float(argument(user, 1))
        elif name in SCALINGS:
            others = [n for n in user.all_input_nodes if n is not node]
            if len(others) != 1:
                return None
            if scaled:
                weight = _parameter(tracer, others[0])
                return None if weight is None or name not in aten("mul multiply") else (weight, eps)
            scaled = True
        elif name not in CONVERSIONS and (scaled or name not in LENGTHS):
            return None
        node = user


def _parameter(tracer: Tracer, node: fx.Node) -> fx.Node | None:
    while node not in tracer.parameters:
        if node.op != "call_function" or operator_name(node) not in VIEWS:
            return None
        node = source_of(node)
    return node


def _note(tracer: Tracer, node: fx.Node, weight: fx.Node, vector: Tensor, eps: float) -> str:
    """Note a mean of squares; return why it cannot follow its channels, empty where it can."""
    path, shape = module_path(node), shape_of(weight)
    wide = [dim for dim, size in enumerate(shape) if size > 1]
    if len(wide) != 1 or shape[wide[0]] != len(vector):
        return "normalises over the channels, and its weight has another shape"
    module = (tracer.modules or {}).get(path)
    held = sorted(
        (name for name, value in vars(module or nn.Module()).items() if value == eps and type(value) is float)
    )
    named = [name for name in held if "eps" in name] or held
    if eps and not named:
        return (
            f"normalises over the channels with {eps:g} added, a number in the code that has to change with the width: "
            "keep it in an attribute of the module"
        )
    if tracer.modes.get(path) == "none":
        return "normalises over channels some of which stay for another reason"
    tracer.norms.append(Norm(path, tracer.parameters[weight], vector, named[0] if eps else "", wide[0]))
    return ""
