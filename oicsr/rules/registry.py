"""Registration of rules: how channels pass through an operator, or through a class of modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from torch import Tensor, fx, nn

from oicsr.rules.calls import gives_many, source_of
from oicsr.rules.modules import ModuleCall
from oicsr.rules.table import LEAF_CLASSES, RULES, LeafClass
from oicsr.rules.table import Result as Result
from oicsr.rules.table import Value as Value
from oicsr.rules.table import aten as aten
from oicsr.rules.tracer import Tracer

Rule = Callable[[Tracer, fx.Node], Result]
ModuleRule = Callable[[Tracer, ModuleCall], Result]
AnyRule = TypeVar("AnyRule", Rule, ModuleRule)


@overload
def register_rule(*targets: str, replace: bool = False) -> Callable[[Rule], Rule]: ...


@overload
def register_rule(
    *targets: type[nn.Module], replace: bool = False, outputs: Callable[..., Any] | None = None
) -> Callable[[ModuleRule], ModuleRule]: ...


def register_rule(
    *targets: str | type[nn.Module], replace: bool = False, outputs: Callable[..., Any] | None = None
) -> Callable[[Any], Any]:
    """Register how channels pass through an operator, or through a class of modules; a decorator.

    `docs/custom_operators.md` explains what a rule gets and gives. A rule whose ids do not fit the operator's output
    is an error when a model is traced.

    Args:
        targets: Operators as `"library::operator"`, without overload, such as `"aten::relu"`: the in-place variant
            (`"aten::relu_"`) has the same rule unless it gets one of its own. Or classes of modules: tracing does
            not look into modules of these classes (nor of classes derived from them, unless these have a rule).
        replace: Take the place of the rule that a target already has.
        outputs: For classes of modules: `(module, *args, **kwargs)` to tensors of the shapes and types of the
            module's outputs, where its `forward` branches on values and cannot be run for shapes alone.

    Returns:
        A decorator for the rule: `(tracer, node)` for an operator, `(tracer, call)` for a module, to a `Value`, or to
        a list of them for several outputs.

    Raises:
        ValueError: A name is not of the form `"library::operator"`, or a target has a rule and `replace` is false.
        TypeError: A target is neither a name nor a class of modules.
    """
    for target in targets:
        _check_target(target, replace)

    def register(rule: Any) -> Any:
        """Put the rule into the table."""
        for target in targets:
            if isinstance(target, str):
                RULES[target] = rule
            else:
                LEAF_CLASSES[target] = LeafClass(rule, outputs)
        return rule

    return register


def _check_target(target: str | type[nn.Module], replace: bool) -> None:
    if isinstance(target, str):
        library, _, operator = target.partition("::")
        if not library or not operator or "." in target:
            raise ValueError(f"operator {target!r} must be named as 'library::operator', without an overload")
    elif not (isinstance(target, type) and issubclass(target, nn.Module)):
        raise TypeError(f"a rule is for 'library::operator' or for a class of modules, not for {target!r}")
    if (target in RULES or target in LEAF_CLASSES) and not replace:
        name = target if isinstance(target, str) else target.__qualname__
        raise ValueError(f"{name!r} already has a rule; pass replace=True to put another in its place")


Following = Callable[[Tracer, fx.Node, Tensor], Tensor | Result]


def follows(*operators: str, replace: bool = False) -> Callable[[Following], Rule]:
    """Register a rule `(tracer, node, ids)` that is asked only where the channels of the first argument are followed.

    `ids` are those of the first argument. The rule may return ids alone. Where the argument's channels are not
    followed, those of the result are not either, for the same reason. What comes back is a rule `(tracer, node)`; see
    `register_rule` for the arguments.
    """

    def register(following: Following) -> Rule:
        """Wrap a function of ids as a rule, and put it into the table."""

        def rule(tracer: Tracer, node: fx.Node) -> Result:
            """Ask the wrapped function where there are channels to follow."""
            source = source_of(node)
            ids = tracer.ids(source)
            if ids is None:
                nothing = Value(None, tracer.reason(source))
                return [nothing] * len(node.meta["val"]) if gives_many(node) else nothing
            result = following(tracer, node, ids)
            return Value(result) if isinstance(result, Tensor) else result

        rule.__name__, rule.__doc__ = following.__name__, following.__doc__
        vars(rule)["following"] = following  # weights are followed axis by axis (`oicsr.rules.axes`)
        return register_rule(*operators, replace=replace)(rule)

    return register
