"""Attention that is written out in a module's own code, with inner widths of its own.

Such code often reshapes to a width that it knows from its input: `x.transpose(1, 2).reshape(B, N, C)`. There, -1 takes
the place of the width. As the other sizes fix it, the outputs stay for as long as nothing is removed, and the shapes
follow what is left afterwards.
"""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Sequence
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

Kind = type[nn.Module]
Place = tuple[str, int]  # the name and the first line of a function
ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)  # in the name of a class
ATTENDS = {"softmax", "Softmax", "scaled_dot_product_attention"}  # in its code
RESHAPES = {"reshape", "view", "unflatten"}
CHANNELS = set(
    "c ch chan chans channel channels dim dims emb embed embed_dim n_embd d_model hidden hidden_size".split()
)
SHORT = {"d", "e"}  # a depth may be called so, too
LEAST = 8  # a number in the code from here on may be a width
_KNOWN: dict[type, Any] = {}  # classes to those in their place, which pickles need to find again


def freed(module: nn.Module) -> Kind | None:
    """Return a class that computes what a module's class does, at any inner widths; None where nothing can be freed.

    The module becomes one of that class by its `__class__`. It is a subclass with the name of its source; its instances
    can be copied and pickled, and hold what they held.
    """
    ready = isinstance(module, fx.GraphModule | torch.jit.ScriptModule) or parametrize.is_parametrized(module)
    if ready or "forward" in vars(module) or is_freed(module) or not _attends(type(module)):
        return None
    kind: Kind | None = _freed(type(module))
    return kind


def is_freed(module: nn.Module) -> bool:
    """Return whether a module is of a class that `freed` returned."""
    return "_source_of_freed" in vars(type(module))


def _attends(kind: type) -> bool:
    """Return whether the name or the code of a class says that it is an attention."""
    bases = [base for base in kind.__mro__ if _is_own(base)]
    names = {name for base in bases for function in _methods(base).values() for name in function.__code__.co_names}
    return any(ATTENTION.search(base.__name__) for base in bases) or not ATTENDS.isdisjoint(names)


def _is_own(kind: type) -> bool:
    return kind is not object and kind.__module__.partition(".")[0] != "torch"


def _methods(kind: type) -> dict[str, FunctionType]:
    return {name: value for name, value in vars(kind).items() if isinstance(value, FunctionType)}


def _freed(kind: type) -> Any:
    """Return the class for another one; it has those for its bases behind it, so that `super()` finds them."""
    if kind in _KNOWN:
        return _KNOWN[kind]
    bases = [new for base in kind.__bases__ if _is_own(base) and (new := _freed(base)) is not None]
    made = {name: new for name, method in _methods(kind).items() if (new := _rewritten(method)) is not None}
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    mark = {"_source_of_freed": kind, "__reduce_ex__": _reduce}
    _KNOWN[kind] = type(kind)(kind.__name__, (kind, *bases), {**made, **own, **mark}) if made or bases else None
    return _KNOWN[kind]


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickle by the class in whose place the module's stands, as that one has an address."""
    reduced = tuple(object.__reduce_ex__(self, max(protocol, 2)))
    return _blank, (self._source_of_freed,), *reduced[2:]


def _blank(source: Kind) -> nn.Module:
    """Return a module without state, of the class with free widths.

    Raises:
        ValueError: The class has other code now.
    """
    kind: Kind | None = _freed(source)
    if kind is None:
        raise ValueError(
            f"the code of {source.__qualname__} holds no widths to free: it is not the one that the network was opened "
            "with (oicsr.open_attention)"
        )
    return kind.__new__(kind)


# ----------------------------------------------------------------------------------------------------------------
# its functions
# ----------------------------------------------------------------------------------------------------------------


def _rewritten(function: FunctionType) -> FunctionType | None:
    """Return a method with -1 in the place of widths that it reshapes to; None where there are none.

    So it is where its source is not at hand, and where its file does not say any more what runs.
    """
    code = function.__code__
    now, new = _codes(code.co_filename).get((code.co_name, code.co_firstlineno), (None, None))
    if new is None or now != code or new == code:
        return None
    made = FunctionType(new, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, function.__annotations__
    return made


@cache
def _codes(path: str) -> dict[Place, tuple[CodeType, CodeType]]:
    """Return the code of every function in a file as it is, and with -1 in the place of widths. Nothing is run."""
    try:
        text = "".join(linecache.getlines(path))
        now = compile(text, path, "exec", dont_inherit=True)
        tree = ast.fix_missing_locations(_Writer().visit(ast.parse(text)))
        new = compile(tree, path, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return {}
    later = _functions(new)
    return {place: (code, later[place]) for place, code in _functions(now).items() if place in later}


def _functions(code: CodeType) -> dict[Place, CodeType]:
    found, todo = dict[Place, CodeType](), [code]
    while todo:
        code = todo.pop()
        found[code.co_name, code.co_firstlineno] = code
        todo += [part for part in code.co_consts if isinstance(part, CodeType)]
    return found


class _Writer(ast.NodeTransformer):
    """Puts -1 where a call reshapes to a width."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in RESHAPES or node.keywords:
            return node
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        first = of_torch + (node.func.attr == "unflatten")  # behind the tensor, and the axis
        sizes, given = node.args, node.args[first:]
        if len(given) == 1 and _is_shape(given[0]):
            others = ast.Subscript(given[0], ast.Slice(upper=_minus_one()), ast.Load())
            sizes[first] = ast.copy_location(
                ast.Tuple([ast.Starred(others, ast.Load()), _minus_one()], ast.Load()), given[0]
            )
            return node
        if len(given) == 1 and isinstance(given[0], ast.Tuple | ast.List):
            sizes, first = given[0].elts, 0
        place = _place_of_width(sizes[first:])
        if place is not None:
            sizes[first + place] = ast.copy_location(_minus_one(), sizes[first + place])
        return node


def _minus_one() -> ast.expr:
    return ast.UnaryOp(ast.USub(), ast.Constant(1))


def _place_of_width(sizes: Sequence[ast.expr]) -> int | None:
    """Return which size of a reshape is a width; None where none is known to be one, or one of them is -1 already."""
    if len(sizes) < 2 or any(isinstance(size, ast.Starred | ast.UnaryOp) for size in sizes):
        return None
    for is_width in (_is_share, _is_channels, _is_last_size, _is_short, _is_number):
        places = [place for place, size in enumerate(sizes) if is_width(size)]
        if places:
            return places[-1]
    return None


def _names(size: ast.expr) -> set[str]:
    return {part.id.lower() for part in ast.walk(size) if isinstance(part, ast.Name)}


def _is_share(size: ast.expr) -> bool:
    """Return whether a size is the width of one head: `C // self.num_heads`."""
    shared = any(isinstance(part, ast.FloorDiv) for part in ast.walk(size))
    return shared and (not _names(size).isdisjoint(CHANNELS) or any(map(_is_last_size, ast.walk(size))))


def _is_channels(size: ast.expr) -> bool:
    return not _names(size).isdisjoint(CHANNELS)


def _is_short(size: ast.expr) -> bool:
    return not _names(size).isdisjoint(SHORT)


def _is_number(size: ast.expr) -> bool:
    return isinstance(size, ast.Constant) and type(size.value) is int and size.value >= LEAST


def _is_last_size(size: ast.AST) -> bool:
    """Return whether a size is the last one of a tensor: `x.shape[-1]`, `x.size(-1)`."""
    if isinstance(size, ast.Subscript):
        return _is_shape(size.value) and ast.unparse(size.slice) == "-1"
    return isinstance(size, ast.Call) and ast.unparse(size).endswith(".size(-1)")


def _is_shape(value: ast.expr) -> bool:
    """Return whether an expression is all sizes of a tensor: `x.shape`, `x.size()`."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Attribute) and value.func.attr == "size" and not value.args
    return isinstance(value, ast.Attribute) and value.attr == "shape"
