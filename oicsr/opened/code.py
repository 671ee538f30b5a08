"""Attention that is written out in a module's own code, with inner widths of its own.

Such code often reshapes to a width that it knows from its input: `x.transpose(1, 2).reshape(B, N, C)`. There, -1 takes
the place of the width. As the other sizes fix it, the outputs stay for as long as nothing is removed, and the shapes
follow what is left afterwards.
"""

from __future__ import annotations

import ast
import linecache
import re
from abc import ABCMeta
from collections.abc import Callable, Sequence
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import parametrize

from oicsr.networks.classes import methods, own_bases, quiet_base

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
_KNOWN: dict[type, tuple[Any, Any]] = {}  # classes to their methods and to those in their place, for pickles


def freed(module: nn.Module) -> Kind | None:
    """Return a class that computes what a module's class does, at any inner widths; None where nothing can be freed.

    The module becomes one of that class by its `__class__`. It is a subclass with the name of its source; its instances
    can be copied and pickled, and hold what they held. Classes that decide themselves how their instances are made or
    pickled, or what a class is, are left alone.
    """
    kind = type(module)
    special = (
        isinstance(module, fx.GraphModule | torch.jit.ScriptModule)
        or is_freed(module)
        or parametrize.is_parametrized(module)
        or "forward" in vars(module)
        or type(kind) not in (type, ABCMeta)
        or any(getattr(kind, name) is not getattr(object, name) for name in ("__new__", "__reduce__", "__reduce_ex__"))
    )
    if special or not _attends(kind):
        return None
    found: Kind | None = _freed(kind)
    return found


def is_freed(module: nn.Module) -> bool:
    """Return whether a module is of a class that `freed` returned, or of one made from that."""
    return hasattr(type(module), "_source_of_freed")


def _attends(kind: type) -> bool:
    """Return whether the name or the code of a class says that it is an attention."""
    bases = own_bases(kind)
    names = {name for base in bases for function in methods(base).values() for name in function.__code__.co_names}
    if "__class__" in names:  # such code asks for its class, which will be another one
        return False
    return any(ATTENTION.search(base.__name__) for base in bases) or not ATTENDS.isdisjoint(names)


def _freed(kind: type) -> Any:
    """Return the class for another one; it has those for its bases behind it, so that `super()` finds them."""
    around = own_bases(kind)
    code = [methods(base) for base in around]
    if kind in _KNOWN and _KNOWN[kind][0] == code:  # a method may have been replaced since
        return _KNOWN[kind][1]
    bases = [new for base in kind.__bases__ if base in around and (new := _freed(base)) is not None]
    made = {name: new for name, method in methods(kind).items() if (new := _rewritten(method)) is not None}
    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    mark = {"_source_of_freed": kind, "__reduce_ex__": _reduce}
    new_kind = (
        type(kind)(kind.__name__, (quiet_base(), kind, *bases), {**made, **own, **mark}) if made or bases else None
    )
    _KNOWN[kind] = code, new_kind
    return new_kind


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

    Also None if its source is unavailable, or if its file no longer matches the code that runs.
    """
    code = function.__code__
    linecache.checkcache(code.co_filename)
    codes = _codes(code.co_filename, "".join(linecache.getlines(code.co_filename)))
    now, new = codes.get((code.co_name, code.co_firstlineno), (None, None))
    if new is None or now != code or new == code:
        return None
    cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in new.co_freevars)
    made = FunctionType(new, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__qualname__, made.__module__, made.__doc__ = function.__qualname__, function.__module__, function.__doc__
    made.__kwdefaults__, made.__annotations__ = function.__kwdefaults__, function.__annotations__
    return made


@cache
def _codes(path: str, text: str) -> dict[Place, tuple[CodeType, CodeType]]:
    """Return the code of every function in a file as it is, and with -1 in the place of widths. Nothing is run."""
    try:
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
    """Puts -1 where a call reshapes to a width.

    Attributes:
        itself: The first argument of the method at hand, which may have a method of this name.
        widths: Names that the function gives to a width.
        shares: Names that it gives to the width of one head.
    """

    def __init__(self) -> None:
        self.itself, self.widths, self.shares = "", set[str](), set[str]()
        self._methods = set[int]()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        """Note which functions are methods, whose first argument may have methods of these names."""
        self._methods |= {
            id(part) for part in node.body if isinstance(part, ast.FunctionDef) and not part.decorator_list
        }
        self.generic_visit(node)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Note the widths that a function names, for the calls in it."""
        before = self.itself, self.widths, self.shares
        if id(node) in self._methods and node.args.args:
            self.itself = node.args.args[0].arg
        self.widths, self.shares = self.widths | _widths_of_inputs(node), set(self.shares)
        for part in ast.walk(node):
            if isinstance(part, ast.Assign) and isinstance(part.targets[0], ast.Name) and self._is_share(part.value):
                self.shares.add(part.targets[0].id)
        self.generic_visit(node)
        self.itself, self.widths, self.shares = before
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Put -1 in the place of the width, or leave a call as it is."""
        self.generic_visit(node)
        if not isinstance(node.func, ast.Attribute) or node.func.attr not in RESHAPES or node.keywords or not node.args:
            return node
        if isinstance(node.func.value, ast.Name) and node.func.value.id == self.itself:
            return node
        sizes, last = node.args, node.args[-1]
        if isinstance(last, ast.Tuple | ast.List):  # behind the axis of unflatten, or the tensor of torch.reshape
            sizes = last.elts
        elif _is_shape(last) and len(node.args) < 3 and node.func.attr != "unflatten":
            node.args[-1] = ast.copy_location(self._with_free_end(last), last)
            return node
        place = self._place_of_width(sizes)
        if place is not None:
            sizes[place] = ast.copy_location(_minus_one(), sizes[place])
        return node

    def _with_free_end(self, shape: ast.expr) -> ast.expr:
        """Return `x.shape[:-1] + (-1,)` for `x.shape`, where `x` is a tensor: a name that is not `self`."""
        owner = shape.func.value if isinstance(shape, ast.Call) else shape.value  # type: ignore[attr-defined]
        if not isinstance(owner, ast.Name) or owner.id == self.itself:
            return shape
        others = ast.Subscript(shape, ast.Slice(upper=_minus_one()), ast.Load())
        return ast.BinOp(others, ast.Add(), ast.Tuple([_minus_one()], ast.Load()))

    def _place_of_width(self, sizes: Sequence[ast.expr]) -> int | None:
        """Return which size of a reshape is a width; None where none is known to be one, or there is a -1 already."""
        if len(sizes) < 2 or any(isinstance(size, ast.UnaryOp | ast.Tuple | ast.List) for size in sizes):
            return None
        leading = next((i for i, size in enumerate(sizes) if not _is_part_of_shape(size)), 0)
        if any(isinstance(size, ast.Starred) for size in sizes[leading:]):
            return None
        texts = [ast.unparse(size) for size in sizes]
        end = len(sizes) - 1
        rules: list[Callable[[int], bool]] = [
            lambda i: self._is_share(sizes[i]) or _divides_by(sizes[i], texts[max(i - 1, 0) : i + 2]),
            lambda i: not _names(sizes[i]).isdisjoint(CHANNELS),
            lambda i: i == end and (not _names(sizes[i]).isdisjoint(SHORT | self.widths) or _is_last_size(sizes[i])),
            lambda i: i == end and _is_number(sizes[i]),  # elsewhere, numbers may be those of tokens or heads
        ]
        for is_width in rules:
            places = [i for i in range(leading, len(sizes)) if is_width(i)]
            if places:
                return places[-1]
        return None

    def _is_share(self, size: ast.expr) -> bool:
        """Return whether a size is the width of one head: `C // self.num_heads`, or a name for that."""
        if isinstance(size, ast.Name):
            return size.id in self.shares
        parts = [
            part.left for part in ast.walk(size) if isinstance(part, ast.BinOp) and isinstance(part.op, ast.FloorDiv)
        ]
        return any(
            not _names(part).isdisjoint(CHANNELS) or bool(_exact(part) & self.widths) or _is_last_size(part)
            for part in parts
        )


def _widths_of_inputs(function: ast.FunctionDef) -> set[str]:
    """Return the last of three names that a function gives to sizes (`b, n, features = x.shape`), if none is known."""
    found = set()
    for part in ast.walk(function):
        if not isinstance(part, ast.Assign) or not _is_shape(part.value) or not isinstance(part.targets[0], ast.Tuple):
            continue
        names = [target.id for target in part.targets[0].elts if isinstance(target, ast.Name)]
        if len(names) == 3 and not any(name.lower() in CHANNELS for name in names):
            found.add(names[-1])
    return found


def _minus_one() -> ast.expr:
    return ast.UnaryOp(ast.USub(), ast.Constant(1))


def _names(size: ast.expr) -> set[str]:
    """Return the names in a size, as they are and in small letters."""
    exact = _exact(size)
    return exact | {name.lower() for name in exact}


def _exact(size: ast.expr) -> set[str]:
    return {part.id for part in ast.walk(size) if isinstance(part, ast.Name)}


def _divides_by(size: ast.expr, others: Sequence[str]) -> bool:
    """Return whether a size is divided by the one beside it: `features // heads` beside `heads`."""
    divided = isinstance(size, ast.BinOp) and isinstance(size.op, ast.FloorDiv)
    return divided and ast.unparse(size.right) in others  # type: ignore[attr-defined]


def _is_number(size: ast.expr) -> bool:
    return isinstance(size, ast.Constant) and type(size.value) is int and size.value >= LEAST


def _is_last_size(size: ast.AST) -> bool:
    """Return whether a size is the last one of a tensor of tokens: `x.shape[-1]`, `x.size(-1)`, `x.shape[2]`."""
    if isinstance(size, ast.Subscript):
        return _is_shape(size.value) and ast.unparse(size.slice) in ("-1", "2")
    return isinstance(size, ast.Call) and ast.unparse(size).endswith((".size(-1)", ".size(2)"))


def _is_part_of_shape(size: ast.expr) -> bool:
    """Return whether sizes are the first ones of a tensor: `*x.shape[:2]`."""
    part = size.value if isinstance(size, ast.Starred) else None
    return isinstance(part, ast.Subscript) and isinstance(part.slice, ast.Slice) and _is_shape(part.value)


def _is_shape(value: ast.AST) -> bool:
    """Return whether an expression is all sizes of a tensor: `x.shape`, `x.size()`."""
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Attribute) and value.func.attr == "size" and not value.args
    return isinstance(value, ast.Attribute) and value.attr == "shape"
