"""The letters of an `einsum`, what it costs, and plainer ones in its place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from string import ascii_letters
from typing import Any

from torch import Tensor

Letters = list[Any]  # one per axis: a letter, a number, or for an axis under an ellipsis its place from the right


def is_plain(equation: object) -> bool:
    """Return whether an equation is one that channels are followed through: an arrow, no ellipsis, no diagonal."""
    if not isinstance(equation, str) or "->" not in equation or "." in equation:
        return False
    parts, _ = plain_letters(equation)
    return all(len(set(part)) == len(part) for part in parts)


def plain_letters(equation: str) -> tuple[list[str], str]:
    """Return the letters of each factor and those of the result of a plain equation."""
    inputs, _, out = equation.replace(" ", "").partition("->")
    return inputs.split(","), out


def tensordot_equation(first: Sequence[int], second: Sequence[int], dims: tuple[Sequence[int], Sequence[int]]) -> str:
    """Return the plain equation of `torch.tensordot`; empty where a single slice meets many.

    Args:
        first: The shape of the first factor.
        second: The shape of the second one.
        dims: The axes of each that are summed over, in pairs.
    """
    letters = iter(ascii_letters)
    own, other = [next(letters) for _ in first], [""] * len(second)
    for along, across in zip(*dims, strict=True):
        if first[along] != second[across]:
            return ""
        other[across] = own[along]
    other = [letter or next(letters) for letter in other]
    out = [letter for letter in own + other if (letter in own) != (letter in other)]
    return f"{''.join(own)},{''.join(other)}->{''.join(out)}"


def tensordot_axes(dims: Any, rank: int) -> tuple[list[int], list[int]]:
    """Return the axes that `torch.tensordot` sums over in each factor, the first of a rank, given its `dims`."""
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        return list(range(rank - dims, rank)), list(range(dims))
    return list(dims[0]), list(dims[1])


def factors_of(args: Sequence[Any]) -> list[Tensor]:
    """Return the factors that `einsum` is called with, in any of its three forms."""
    if isinstance(args[0], str):
        rest = args[1:]
        return list(rest[0]) if len(rest) == 1 and isinstance(rest[0], list | tuple) else list(rest)
    return [value for value in args if isinstance(value, Tensor)]


def einsum_macs(args: Sequence[Any]) -> int:
    """Return the multiply-accumulates of an `einsum`; of more than two factors, taken from left to right.

    A product that sums over no axis has none: written with `*`, it would not be counted either.
    """
    factors = factors_of(args)
    letters, result = _letters(args, factors)
    sizes: dict[Any, int] = {}
    for own, factor in zip(letters, factors, strict=True):
        for letter, size in zip(own, factor.shape, strict=True):
            sizes[letter] = max(sizes.get(letter, 1), int(size))
    macs, left = 0, set(letters[0])
    for number, own in enumerate(letters[1:], start=1):
        every = left | set(own)
        left = every & set(result).union(*letters[number + 1 :])
        macs += math.prod(sizes[letter] for letter in every) if left != every else 0
    return macs


def plain_steps(args: Sequence[Any]) -> list[str]:
    """Return plain equations that together give what `einsum` gives, from left to right.

    The first is of the first two factors, each other one of what came before and the next factor. An ellipsis is
    written out. Empty where the equation is plain already and of two factors at most, and where no such equations are
    known (diagonals, axes of one that are repeated).
    """
    factors = factors_of(args)
    letters, result = _letters(args, factors)
    shapes = [factor.shape for factor in factors]
    sizes = {pair for own, shape in zip(letters, shapes, strict=True) for pair in zip(own, shape, strict=True)}
    every = list(dict.fromkeys(letter for own in letters for letter in own))
    if len(sizes) > len(every) or len(every) > len(ascii_letters) or any(len(set(own)) < len(own) for own in letters):
        return []
    if len(factors) < 3 and is_plain(args[0]):
        return []
    names = dict(zip(every, ascii_letters, strict=False))
    parts, out = ["".join(names[letter] for letter in own) for own in letters], "".join(names[n] for n in result)
    steps, left = [], parts[0]
    for number, part in enumerate(parts[1:], start=1):
        needed = set(out).union(*parts[number + 1 :])
        after = "".join(name for name in dict.fromkeys(left + part) if name in needed)
        after = out if number == len(parts) - 1 else after
        steps.append(f"{left},{part}->{after}")
        left = after
    return steps or [f"{left}->{out}"]


def chain_macs(shapes: Sequence[Sequence[int]]) -> int:
    """Return the multiply-accumulates of a product of many matrices in the order that takes the fewest."""
    sizes = [shapes[0][0] if len(shapes[0]) > 1 else 1, *(shape[-1] for shape in shapes)]
    if len(shapes[-1]) == 1:  # a vector, at either end, is a matrix of one row or column
        sizes[-1] = 1
    best = {(i, i): 0 for i in range(len(shapes))}
    for length in range(1, len(shapes)):
        for i in range(len(shapes) - length):
            j = i + length
            best[i, j] = min(best[i, k] + best[k + 1, j] + sizes[i] * sizes[k + 1] * sizes[j + 1] for k in range(i, j))
    return best[0, len(shapes) - 1]


def _letters(args: Sequence[Any], factors: Sequence[Tensor]) -> tuple[list[Letters], Letters]:
    """Return the letters of each factor and of the result, an ellipsis written out."""
    if isinstance(args[0], str):
        inputs, arrow, out = args[0].replace(" ", "").partition("->")
        given: list[Letters] = [_split(part) for part in inputs.split(",")]
        result = _split(out) if arrow else None
    else:  # factors and lists of numbers by turns, and perhaps a list for the result
        given = [list(part) for part in args[1 : 2 * len(factors) : 2]]
        result = list(args[2 * len(factors)]) if len(args) > 2 * len(factors) else None
    letters = [_spread(own, factor.ndim) for own, factor in zip(given, factors, strict=True)]
    every = [letter for own in letters for letter in own]
    wide = sorted((letter for letter in dict.fromkeys(every) if isinstance(letter, tuple)), reverse=True)
    if result is None:
        return letters, wide + sorted(n for n in every if not isinstance(n, tuple) and every.count(n) == 1)
    return letters, [n for letter in result for n in (wide if letter is Ellipsis else [letter])]


def _split(part: str) -> Letters:
    first, dots, last = part.partition("...")
    return [*first, *([Ellipsis] if dots else []), *last]


def _spread(own: Letters, rank: int) -> Letters:
    """Write an ellipsis out: axes under it meet from the right."""
    if Ellipsis not in own:
        return own
    at, count = own.index(Ellipsis), rank - len(own) + 1
    return [*own[:at], *(("...", count - k) for k in range(count)), *own[at + 1 :]]
