"""The figures of the fault-injection suite, for RESULTS.md."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.escape import for_markdown
from benchmarks.machine.plain_files import read_plain

FILE = "reliability.json"

SCHEMA = "oicsr-reliability-1"


class ReliabilityError(ValueError):
    """The figures cannot be read."""


def reliability_section(results: Path) -> list[str]:
    """Return the lines of RESULTS.md about faults that were tried; none where there are no figures.

    Raises:
        ReliabilityError: The file cannot be read, or does not follow the schema.
    """
    path = results / FILE
    if not path.exists():
        return []
    try:
        data = json.loads(read_plain(path))
        kinds = [(kind["what"], kind["tried"], kind["survived"]) for kind in data["kinds"].values()]
        rows = [[for_markdown(str(cell)) for cell in kind] for kind in kinds]
        known = data["schema"] == SCHEMA
        said = {name: for_markdown(str(data[name])) for name in ("sweep", "runs", "small_runs", "date", "device")}
        kills = f"kills of the sweep `{said['sweep']}` ({said['runs']} runs)"
        rest = f"everything else of a sweep of {said['small_runs']} runs"
        origin = f"({said['date']}, {said['device']}; {kills}, {rest})"
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
