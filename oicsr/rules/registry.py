"""The table of rules, and what a rule reads off a call in the graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

if TYPE_CHECKING:
    from oicsr.rules.tracer import Tracer


@dataclass(frozen=True)
class Value:
    """What is known of a value in the graph: the channel of each element, or why there are none."""

    ids: Tensor | None
    reason: str = ""
    depends_on_input: bool = True


Result = Value | list[Value]
Rule = Callable[["Tracer", fx.Node], "Result"]
RULES: dict[str, Rule] = {}


def register_rule(*operators: str, replace: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule for operators; the decorated function becomes the rule of each.

    Args:
        operators: Names as `"library::operator"`, without overload: `"aten::relu"`. The in-place variant
            (`"aten::relu_"`) has the same rule unless it gets one of its own.
        replace: Take the place of the rule that an operator already has.

    Raises:
        ValueError: A name has no library, or an operator has a rule already and `replace` is false.
    """

    def register(rule: Rule) -> Rule:
        """Put a rule into the table."""
        for name in operators:
            library, _, operator = name.partition("::")
            if not library or not operator or "." in name:
                raise ValueError(f"operator {name!r} must be named as 'library::operator', without an overload")
            if name in RULES and not replace:
                raise ValueError(f"operator {name!r} already has a rule; pass replace=True to put another in its place")
        RULES.update(dict.fromkeys(operators, rule))
        return rule

    return register


def aten(names: str) -> list[str]:
    """Return the full names of ATen operators, given their short names with blanks between."""
    return [f"aten::{name}" for name in names.split()]


def find_rule(node: fx.Node) -> Rule | None:
    """Return the rule of a call, or None where its operator has none."""
    name = operator_name(node)
    return RULES.get(name) or RULES.get(name.rstrip("_"))


def operator_name(node: fx.Node) -> str:
    """Return the name of the operator that is called, without overload: `aten::relu`."""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name) if schema is not None else f"python::{getattr(node.target, '__name__', node.target)}"


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the static shape of the value that `node` produces."""
    return tuple(int(size) for size in node.meta["val"].shape)


def gives_many(node: fx.Node) -> bool:
    """Return whether a call gives a list or tuple of tensors."""
    return isinstance(node.meta.get("val"), list | tuple)


def argument(node: fx.Node, position: int, default: Any = None) -> Any:
    """Return an argument of a call by its position in the operator's schema, given by position or by name."""
    if len(node.args) > position:
        return node.args[position]
    schema = getattr(node.target, "_schema", None)
    if schema is None or position >= len(schema.arguments):
        return default
    return node.kwargs.get(schema.arguments[position].name, default)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that `node` reads and that hold one tensor."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def source_of(node: fx.Node) -> fx.Node:
    """Return the node of a call's first argument, which is a tensor."""
    source = argument(node, 0)
    assert isinstance(source, fx.Node)
    return source


Following = Callable[["Tracer", fx.Node, Tensor], "Tensor | Result"]


def follows(*operators: str, replace: bool = False) -> Callable[[Following], Following]:
    """Register a rule `(tracer, node, ids)` that is asked only where the channels of the first argument are followed.

    `ids` are those of the first argument. The rule may return ids alone. Where the argument's channels are not
    followed, those of the result are not either, for the same reason. See `register_rule` for the arguments.
    """

    def register(following: Following) -> Following:
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
        register_rule(*operators, replace=replace)(rule)
        return following

    return register
