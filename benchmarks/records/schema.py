"""What a record may hold: names that are safe in paths, numbers of the right range, texts that can be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from benchmarks.config import LARGEST, check_name, run_name
from benchmarks.records.rows import PHASES

logger = logging.getLogger(__name__)

COMPLETE = "complete"  # the status of a run that finished

SHOWN = 3  # problems that an error names

DEEPEST = 20  # dictionaries and lists inside one another

SURROGATES = ("\ud800", "\udfff")


class RecordError(ValueError):
    """A record cannot be read, or does not belong where it is."""


class NewerRecordError(RecordError):
    """A record is of a newer version of this suite: nothing is wrong with it, and nothing may take its place."""


@cache
def _checker() -> Callable[[dict[str, Any]], list[str]] | None:
    """Return what finds wrong values; None, and a warning, where pydantic is missing (a machine that only trains)."""
    try:
        from benchmarks.records.values import problems_of
    except ModuleNotFoundError as error:
        if error.name != "pydantic":
            raise
        logger.warning("pydantic is not installed: the values of records are read unchecked, and merge refuses to")
        return None
    return problems_of


def need_checker() -> None:
    """Refuse to read records of others where their values cannot be checked.

    Raises:
        ValueError: pydantic is not installed.
    """
    if _checker() is None:
        raise ValueError("records from elsewhere are not taken without a check of their values: install pydantic")


def check_values(data: dict[str, Any], where: str) -> None:
    """Refuse values that no run of this suite writes.

    Args:
        data: The fields of a record.
        where: Named in errors.

    Raises:
        RecordError: A name cannot be a file name, the run has another name, a value is not a number or is out of range,
            or a text cannot be written.
    """
    for problem in _odd(data, "", 0):
        raise RecordError(f"{where}: {problem}")
    find = _checker()
    problems = find(data) if find else []
    if problems:
        more = f" (and {len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise RecordError(f"{where}: {'; '.join(problems[:SHOWN])}{more}")
    for kind in ("experiment", "profile", "method"):
        try:
            check_name(kind, data[kind])
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error
    called = run_name(data["profile"], data["method"], data["macs_kept"], data["seed"])
    if data["run_id"] != called:
        raise RecordError(f"{where} holds the run {called!r}, which it calls {data['run_id'][:100]!r}")
    counted = data["compute"] or data["status"] == COMPLETE
    if set(data["epochs"]) - set(PHASES) or (counted and "total" not in data["compute"]):
        raise RecordError(f"{where}: epochs are of {', '.join(PHASES)}, and compute has a total")


def _odd(value: Any, place: str, depth: int) -> Iterator[str]:
    """Yield every value that cannot be written, drawn or compared."""
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
