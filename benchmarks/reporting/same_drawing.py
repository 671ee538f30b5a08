"""Whether two files show the same drawing: equal but for the last digits of places, which processors round differently.

NumPy has other kernels for other instruction sets, whose logarithms differ in the last bit; on a logarithmic axis that
moves a place by a millionth of a point. A figure that was drawn on one machine holds on all others all the same.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

POINTS = 1e-4  # of a place or a size, 1/72 inch: far below what anybody sees, far above a last digit
SHADES = 8  # of 255: what smoothing an edge makes of that
PIXELS = 1e-3  # share of those that may differ by more: a letter is put on whole pixels, and may go to the next one

_NUMBER = re.compile(
    rb"-?\d+\.?\d*"
)  # without exponents: Matplotlib writes none into drawings, and colours look like them
_NAME = re.compile(rb"[0-9a-f]{10}(?=[\"')])")  # Matplotlib names paths of an SVG by hashes of their places
_STREAM = re.compile(rb"stream\r?\n(.*?)\r?\nendstream", re.DOTALL)
_LENGTH = re.compile(rb"\d+ 0 obj\n\d+\nendobj|/Length \d+|\nxref\n.*", re.DOTALL)


def same_drawing(kind: str, one: bytes, other: bytes) -> bool:
    """Return whether two files hold the same drawing, or the same bytes.

    Args:
        kind: Ending of the files' names, with its dot: `".svg"`, `".pdf"` or `".png"`. Others need the same bytes.
        one: A file's content.
        other: The other's.
    """
    if one == other:
        return True
    if kind == ".svg":
        return _same_numbers(_with_ordinals(one), _with_ordinals(other))
    if kind == ".pdf":
        pieces = list(_pdf_pieces(one)), list(_pdf_pieces(other))
        return len(pieces[0]) == len(pieces[1]) and all(map(_same_numbers, *pieces))
    return kind == ".png" and _same_pixels(one, other)


def _same_numbers(one: bytes, other: bytes) -> bool:
    if one == other:
        return True
    if _NUMBER.split(one) != _NUMBER.split(other):
        return False
    first, second = (np.array(_NUMBER.findall(text), dtype=np.float64) for text in (one, other))
    return bool(np.allclose(first, second, rtol=0.0, atol=POINTS))


def _with_ordinals(svg: bytes) -> bytes:
    """Return an SVG whose hashed names are replaced by their order of appearance."""
    order: dict[bytes, bytes] = {}
    return _NAME.sub(lambda found: order.setdefault(found[0], b"name%d" % len(order)), svg)


def _pdf_pieces(pdf: bytes) -> Iterator[bytes]:
    """Yield a PDF's objects without lengths and offsets, then its streams, unpacked; lines are broken by length."""
    yield _LENGTH.sub(b"", _STREAM.sub(b"", pdf))
    for stream in _STREAM.findall(pdf):
        try:
            yield b" ".join(zlib.decompress(stream).split())
        except zlib.error:
            yield stream


def _same_pixels(one: bytes, other: bytes) -> bool:
    try:
        images = [_pixels(content) for content in (one, other)]
    except OSError:  # one of them is no image
        return False
    if images[0].shape != images[1].shape:
        return False
    far = (np.abs(images[0] - images[1]) > SHADES).any(axis=-1)
    return bool(far.mean() <= PIXELS)


def _pixels(png: bytes) -> NDArray[np.int16]:
    """Return the shades of a PNG, of shape `(height, width, 4)`."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.int16)
