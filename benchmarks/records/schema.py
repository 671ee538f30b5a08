"""What a record may hold: names that are safe in paths, numbers where numbers are due, texts that can be written."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import (
    Annotated,
    Any,
    NotRequired,  # typing's own is not enough for pydantic before Python 3.12
)

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from benchmarks.config import LARGEST, check_name, run_name
from benchmarks.records.rows import CURVE_POINTS, PHASES

SHOWN = 3  # problems that an error names

DEEPEST = 20  # dictionaries and lists inside one another

SURROGATES = ("\ud800", "\udfff")


class RecordError(ValueError):
    """A record cannot be read, or does not belong where it lies."""


Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Curve = Annotated[list[Number], Field(min_length=CURVE_POINTS, max_length=CURVE_POINTS)]


class State(TypedDict):
    """A network as it was measured: accuracies, and sizes in multiply-accumulates and parameters."""

    top1: Share
    val_top1: Share
    macs: Size
    macs_with_norm_pool: Size
    params: Size


class Structure(TypedDict):
    """How the energy lies over the channels of a network."""

    near_zero: Share
    concentration: Number
    cumulative: Curve


class Removal(TypedDict):
    """One removal of channels."""

    step: Count
    macs: Size
    val_top1_before: Share
    val_top1_after: Share


class Failure(TypedDict):
    """Why a run failed."""

    reason: str
    traceback: NotRequired[str]


class Provenance(TypedDict):
    """Where a run was done."""

    commit: NotRequired[str | None]
    device: NotRequired[str]
    device_type: NotRequired[str]
    versions: NotRequired[dict[str, str]]
    record_sha256: NotRequired[str]
    history_sha256: NotRequired[str]
    channels_sha256: NotRequired[str]


class Values(TypedDict):
    """The fields of a record whose values are more than a text; what else they hold is free."""

    strength: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    seed: Count
    macs_kept: Annotated[float, Field(gt=0, le=1)]
    config: dict[str, Any]
    states: dict[str, State]
    widths: dict[str, Annotated[list[Size], Field(min_length=2, max_length=2)]]
    structure: dict[str, Structure]
    removals: list[Removal]
    epochs: dict[str, Count]
    compute: dict[str, Count]
    timing: dict[str, Number]
    provenance: Provenance
    failure: NotRequired[Failure | None]
    protocol: NotRequired[int]


@cache
def _adapter() -> TypeAdapter[Values]:
    return TypeAdapter(Values)


def check_values(data: dict[str, Any], where: str) -> None:
    """Refuse values that no run of this suite writes.

    Args:
        data: The fields of a record.
        where: Named in errors.

    Raises:
        RecordError: A name cannot be one of a file, the run is called otherwise, a number is none or out of range, or a
            text cannot be written.
    """
    for problem in _odd(data, "", 0):
        raise RecordError(f"{where}: {problem}")
    try:
        _adapter().validate_python(data, strict=True)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {str(e['input'])[:40]!r}" for e in error.errors()]
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise RecordError(f"{where}: {'; '.join(problems[:SHOWN])}{more}") from error
    for kind in ("experiment", "profile", "method"):
        try:
            check_name(kind, data[kind])
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error
    called = run_name(data["profile"], data["method"], data["macs_kept"], data["seed"])
    if data["run_id"] != called:
        raise RecordError(f"{where} holds the run {called!r}, which it calls {data['run_id'][:100]!r}")
    if set(data["epochs"]) - set(PHASES) or (data["compute"] and "total" not in data["compute"]):
        raise RecordError(f"{where}: epochs are of {', '.join(PHASES)}, and compute has a total")


def _odd(value: Any, place: str, depth: int) -> Iterator[str]:
    """Yield what cannot be written, drawn or compared, wherever it is."""
    match value:
        case _ if depth > DEEPEST:
            yield f"{place[:100]!r} is nested more than {DEEPEST} deep"
        case dict():
            for name, item in value.items():
                yield from _odd(name, place, depth)
                yield from _odd(item, f"{place}.{name}" if place else str(name), depth + 1)
        case list():
            for position, item in enumerate(value):
                yield from _odd(item, f"{place}.{position}", depth + 1)
        case str() if "\0" in value or any(SURROGATES[0] <= character <= SURROGATES[1] for character in value):
            yield f"{place[:100]!r} is {value[:40]!r}, a text with characters that cannot be written"
        case int() if abs(value) > LARGEST:
            yield f"{place[:100]!r} is a number of {len(hex(value)) - 2} hexadecimal digits; {LARGEST} is the largest"
        case float() if value != value or abs(value) == float("inf"):
            yield f"{place[:100]!r} is {value!r}; a finite number is needed"
