"""Means of magnitudes over channels (RMSNorm, response norm of ConvNeXt V2): a channel that is zero goes exactly.

Where m of n channels stay, the mean of squares grows by n / m, and with it the epsilon has to grow. The output is then
smaller by sqrt(m / n), which the weight makes up for: it is multiplied by sqrt(n / m), old over new width. Where the
values are divided by the mean itself, as by the mean of the channels' norms in global response normalisation (Woo et
al., "ConvNeXt V2", CVPR 2023), the factor is n / m. Weight and epsilon have to be found for this: a parameter that the
result is multiplied with, and a number on the module. A sum of magnitudes (`F.normalize`) needs none of it.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from oicsr.rules.calls import argument, axes_of, module_path, operator_name, shape_of, source_of
from oicsr.rules.names import DIVISIONS, MULTIPLICATIONS, UNCHANGED, VIEWS
from oicsr.rules.normalization import of_tokens
from oicsr.rules.notes import Norm
from oicsr.rules.registry import Result, aten, follows
from oicsr.rules.tracer import Tracer

POWERS = {name: power for power, names in ((-0.5, "rsqrt"), (0.5, "sqrt"), (-1, "reciprocal")) for name in aten(names)}
NORMS = frozenset(aten("linalg_vector_norm norm"))


@follows("aten::rms_norm")
def rms_norm(tracer: Tracer, node: fx.Node, ids: Tensor) -> Tensor | Result:
    """Keeps channels on other axes; those that it runs over go where weight and epsilon can follow."""
    axes = list(range(ids.ndim - len(argument(node, 1)), ids.ndim))
    ids = of_tokens(tracer, node, ids, axes)
    kept = tracer.whole(ids, axes)
    if kept is not None:
        return kept
    weight, eps = argument(node, 2), argument(node, 3)
    if len(axes) > 1 or weight not in tracer.parameters:
        return tracer.opaque(node, "normalises over the channels: only over one axis and with a weight it adapts")
    # without an epsilon, PyTorch adds the rounding of the type: too little for a change of the width to show
    why = _note(tracer, node, weight, ids.flatten(), eps or 0.0)
    if why:
        return tracer.opaque(node, why)
    tracer.follow_vector(weight, ids.flatten(), "norm", counts=True)
    return ids


def written_out(tracer: Tracer, node: fx.Node, ids: Tensor) -> str | None:
    """Note the mean of magnitudes over channels that an RMSNorm begins with where it is written out in the code.

    Args:
        tracer: The tracer.
        node: A mean over the channels.
        ids: The channels of what it is taken of.

    Returns:
        None where it is no such norm; otherwise why it does not follow its channels, and an empty text where it does.
    """
    axes = axes_of(node, ids.ndim)
    magnitudes = source_of(node)
    if len(axes) != 1 or not argument(node, "keepdim") or not _is_magnitude(magnitudes):
        return None
    found = _weight_behind(tracer, node)
    if found is None:
        return None
    weight, eps, power, eps_power = found
    vector = tracer.channels(ids, next(iter(axes)), shape_of(magnitudes)[next(iter(axes))])
    return None if vector is None else _note(tracer, node, weight, vector, eps, power, eps_power)


def adds_magnitudes(node: fx.Node) -> bool:
    """Whether a reduction adds up magnitudes, so that channels of zeros change nothing: a norm, a sum of squares."""
    name = operator_name(node)
    return name in NORMS or (name == "aten::sum" and _is_magnitude(source_of(node)))


def _is_magnitude(node: fx.Node) -> bool:
    while operator_name(node) in UNCHANGED:
        node = source_of(node)
    name = operator_name(node)
    if name == "aten::mul":
        return argument(node, 0) is argument(node, 1)
    return name in NORMS or name in aten("square abs") or (name == "aten::pow" and argument(node, 1) == 2)


def _weight_behind(tracer: Tracer, node: fx.Node) -> tuple[fx.Node, float, float, float] | None:
    """Follow a mean to the values that a power of it scales and to the weight that multiplies these.

    Returns:
        The weight, what is added to the mean or to a power of it, the power in the end (-0.5 under an RMSNorm) and that
        at which something is added; None where there is no such path.
    """
    eps, power, eps_power, scaled = 0.0, 1.0, 1.0, False
    while True:
        users = [user for user in node.users if operator_name(user) != "aten::_assert_tensor_metadata"]
        if len(users) != 1 or users[0].op != "call_function":
            return None
        user, name = users[0], operator_name(users[0])
        if name == "aten::add" and not scaled and not eps and isinstance(argument(user, 1), int | float):
            eps, eps_power = float(argument(user, 1)), power
        elif name in MULTIPLICATIONS | DIVISIONS or (scaled and name == "aten::addcmul"):
            factors = [argument(user, position) for position in ((1, 2) if name == "aten::addcmul" else (0, 1))]
            others = [factor for factor in factors if factor is not node]
            if len(others) != 1:
                return None
            weight = _parameter(tracer, others[0]) if scaled and name not in DIVISIONS else None
            if weight is not None:
                return weight, eps, power, eps_power
            if name in DIVISIONS and factors[1] is node:
                power = -power
            scaled = scaled or isinstance(others[0], fx.Node)
        elif not scaled and (raised := _power(user)) is not None:
            power *= raised
        elif name not in UNCHANGED:
            return None
        node = user


def _power(node: fx.Node) -> float | None:
    """Return the power that an operator raises its input to, None of any other operator."""
    name = operator_name(node)
    exponent = argument(node, 1) if name == "aten::pow" else POWERS.get(name)
    return float(exponent) if isinstance(exponent, int | float) else None


def _parameter(tracer: Tracer, node: fx.Node | float) -> fx.Node | None:
    while node not in tracer.parameters:
        if not isinstance(node, fx.Node) or node.op != "call_function" or operator_name(node) not in VIEWS | UNCHANGED:
            return None
        node = source_of(node)
    return node


def _note(
    tracer: Tracer,
    node: fx.Node,
    weight: fx.Node,
    vector: Tensor,
    eps: float,
    power: float = -0.5,
    eps_power: float = 1.0,
) -> str:
    """Note a mean of magnitudes; return why it cannot follow its channels, empty where it can."""
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
    name = named[0] if eps else ""
    tracer.norms.append(Norm(path, tracer.parameters[weight], vector, name, wide[0], power=power, eps_power=eps_power))
    return ""
