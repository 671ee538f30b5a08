"""The shape of a record's values, for pydantic."""

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

from benchmarks.records.rows import CURVE_POINTS

Number = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Curve = Annotated[list[Share], Field(min_length=CURVE_POINTS, max_length=CURVE_POINTS)]


class State(TypedDict):
    """A network as it was measured: accuracies, and sizes in multiply-accumulates and parameters."""

    top1: Share
    val_top1: Share
    macs: Size
    macs_with_norm_pool: Size
    params: Size
    loss: NotRequired[Annotated[float, Field(ge=0, allow_inf_nan=False)]]


class Structure(TypedDict):
    """How energy is distributed over the channels of a network."""

    near_zero: Share
    concentration: Annotated[float, Field(ge=-1, le=1)]
    cumulative: Curve
    imbalance: NotRequired[Number]


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


class Config(TypedDict):
    """The values of a configuration that tables, verdicts and exports read."""

    model: NotRequired[str]
    dataset: NotRequired[str]
    weights: NotRequired[str | None]
    precision: NotRequired[str | None]
    rescale: NotRequired[str]
    steps: NotRequired[Size]
    batch_size: NotRequired[Size]
    train_images: NotRequired[Size | None]
    validation_images: NotRequired[Size | None]
    test_images: NotRequired[Size | None]
    dense: NotRequired[dict[str, Any]]
    regularized: NotRequired[dict[str, Any]]
    finetune: NotRequired[dict[str, Any]]


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
    config: Config
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


def problems_of(data: dict[str, Any]) -> list[str]:
    """Return what is wrong with the values of a record, one line each."""
    try:
        _adapter().validate_python(data, strict=True)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}, not {str(e['input'])[:40]!r}" for e in error.errors()]
    return list(_contradictions(data))


def _contradictions(data: dict[str, Any]) -> Iterator[str]:
    """Yield what cannot be true together: pruning adds nothing to a network."""
    states = data["states"]
    for name, state in states.items():
        if "dense" in states and state["macs"] > states["dense"]["macs"]:
            yield f"states.{name}.macs: {state['macs']}, more than the {states['dense']['macs']} of the dense network"
    for layer, (before, after) in data["widths"].items():
        if after > before:
            yield f"widths.{layer}: {after} channels after pruning, more than the {before} before"
