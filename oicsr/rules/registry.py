"""The table of rules: one per operator, or per class of modules that is taken as one operator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from torch import Tensor, fx, nn

from oicsr.rules.calls import gives_many, operator_name, source_of

if TYPE_CHECKING:
    from oicsr.rules.modules import ModuleCall
    from oicsr.rules.tracer import Tracer


@dataclass(frozen=True)
class Value:
    """What is known of a value in the graph.

    Attributes:
        ids: The channel of each element: int64, of the value's rank, each axis of the value's size or 1. None where no
            channels are followed.
        reason: Why none are followed; other operators quote it where they cannot go on.
        depends_on_input: Whether the value depends on the model's input (set by the tracer).
    """

    ids: Tensor | None
    reason: str = ""
    depends_on_input: bool = True


Result = Value | list[Value]
Rule = Callable[["Tracer", fx.Node], Result]
ModuleRule = Callable[["Tracer", "ModuleCall"], Result]
AnyRule = TypeVar("AnyRule", Rule, ModuleRule)
RULES: dict[str, Rule] = {}


@dataclass(frozen=True)
class LeafClass:
    """A class of modules with a rule of its own. `outputs`: gives its outputs' shapes where `forward` cannot."""

    rule: ModuleRule
    outputs: Callable[..., Any] | None


LEAF_CLASSES: dict[type[nn.Module], LeafClass] = {}


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


def aten(names: str) -> list[str]:
    """Return the full names of ATen operators, given their short names with blanks between."""
    return [f"aten::{name}" for name in names.split()]


def find_rule(node: fx.Node) -> Rule | None:
    """Return the rule of a call, or None where its operator has none."""
    name = operator_name(node)
    return RULES.get(name) or RULES.get(name.rstrip("_"))


def find_leaf(module: nn.Module) -> LeafClass | None:
    """Return the rule of a module's class, or of the nearest class that it is derived from."""
    return next((LEAF_CLASSES[cls] for cls in type(module).__mro__ if cls in LEAF_CLASSES), None)


Following = Callable[["Tracer", fx.Node, Tensor], "Tensor | Result"]


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
        vars(rule)["following"] = following  # weights are followed axis by axis (`oicsr.rules.weights`)
        return register_rule(*operators, replace=replace)(rule)

    return register
