"""The figures of the fault-injection suite, for RESULTS.md."""

from __future__ import annotations

import json
from pathlib import Path

FILE = "reliability.json"

SCHEMA = "oicsr-reliability-1"


class ReliabilityError(ValueError):
    """The figures cannot be read."""


def reliability_section(results: Path) -> list[str]:
    """Return the lines of RESULTS.md about faults that were tried; none where there are no figures.

    Raises:
        ReliabilityError: The file cannot be read, or is none of this schema.
    """
    path = results / FILE
    if not path.is_file():
        return []
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        rows = [(kind["what"], kind["tried"], kind["survived"]) for kind in data["kinds"].values()]
        known = data["schema"] == SCHEMA
        kills = f"kills of the sweep `{data['sweep']}` ({data['runs']} runs)"
        rest = f"everything else of a sweep of {data['small_runs']} runs"
        origin = f"({data['date']}, {data['device']}; {kills}, {rest})"
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ReliabilityError(f"{path} cannot be read: {error!r}. Run `make faults` again.") from error
    if not known:
        raise ReliabilityError(f"{path} is not of schema {SCHEMA!r}. Run `make faults` again.")
    return [
        "## Reliability",
        "",
        f"Faults injected by `make faults` {origin}. Survived: every run complete in the end, none done twice, no "
        "damaged file accepted, records and histories equal bit for bit (but for times and provenance) to those of "
        "the sweep that nothing disturbed.",
        "",
        "| Fault | tried | survived |",
        "| --- | ---: | ---: |",
        *(f"| {what} | {tried} | {survived} |" for what, tried, survived in rows),
        "",
    ]
