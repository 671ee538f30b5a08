"""What the number and the augmentation of images do to recalibration, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.analysis.comparison import Comparison, rank
from benchmarks.analysis.statistics import summarize
from benchmarks.escape import for_markdown
from benchmarks.methods.registry import find_method
from benchmarks.records.origins import sources_text
from benchmarks.records.recalibrations import KINDS, Measured, Recalibrations
from benchmarks.reporting.comparison_table import MARK, NO_VERDICT, standing, warning
from benchmarks.reporting.effects import points
from benchmarks.reporting.numbers import NONE, NOT_RUN, percent, share
from benchmarks.reporting.table_files import Sheet

TITLE = "Images for recalibration: how many, augmented or clean"

NOTES = (
    "Top-1 on validation images of the pruned network, and of the same network recalibrated as runs do it: on {images} "
    "training images, or on one epoch where there are fewer, augmented as in training. The other columns: the "
    "difference from that after recalibration on another number of images, augmented or as they are (clean), paired by "
    "network, in percentage points (± half its 95 % interval). n: networks. Made by `python -m benchmarks "
    "recalibration`; no test image is used."
)


NO_VERDICTS = (
    " *: no verdict rests on these networks: the experiment's own table says why, or their runs are not recorded here."
)


def recalibration_sheet(measured: Sequence[Measured], version: int, comparisons: Sequence[Comparison]) -> Sheet:
    """Return the table of all measurements under one version of the protocol.

    Args:
        measured: The measurements.
        version: Of the protocol.
        comparisons: The runs of the same networks: rows on which no verdict rests are marked, as in other tables.
    """
    used = [found for found in measured if found.version == version]
    counts = sorted({count for found in used for row in found.rows for kind in KINDS for count in row.of(kind)})
    header = ("Experiment (profile)", "Method", "Images", "MACs kept", "n", "Pruned", "As in runs", *map(str, counts))
    places = [_place(found, comparisons) for found in used]
    lines = [line for place, found in zip(places, used, strict=True) for line in _lines(place, found, counts)]
    marked = NO_VERDICTS if any(place.endswith(MARK) for place in places) else ""
    images = " or ".join(f"{count:,}" for count in sorted({found.images for found in used})) or "some"
    origin = for_markdown(sources_text([found.provenance for found in used])) if used else ""
    return Sheet(
        "recalibration-images",
        TITLE,
        header,
        lines or [[NOT_RUN] * len(header)],
        NOTES.format(images=images) + marked + (f"\n\n{origin}" if origin else ""),
        _numbers(used),
        texts=3,
    )


def _place(found: Measured, comparisons: Sequence[Comparison]) -> str:
    """Return experiment and profile, marked where no verdict rests on the runs of these networks."""
    runs = [each for each in comparisons if (each.experiment, each.profile) == (found.experiment, found.profile)]
    judged = runs and all(standing(each) != NO_VERDICT and not warning(each) for each in runs)
    return f"{found.experiment} ({found.profile})" + ("" if judged else MARK)


def _lines(place: str, found: Measured, counts: Sequence[int]) -> list[list[str]]:
    cells: dict[tuple[str, float], list[Recalibrations]] = {}
    for row in sorted(found.rows, key=lambda row: (rank(row.method), -row.macs_kept, row.seed)):
        cells.setdefault((row.method, row.macs_kept), []).append(row)
    lines = []
    for (method, target), rows in cells.items():
        before, after = summarize([row.pruned for row in rows]), summarize([row.protocol for row in rows])
        for kind in KINDS:
            differences = [_differences(rows, kind, count) for count in counts]
            head = [place, find_method(method).title, kind, share(target)]
            states = [percent(before.mean, before.sd), percent(after.mean, after.sd)]
            same = kind == "augmented"  # and as many as in runs: nothing can differ
            texts = [
                NONE if same and count == found.images else points(values)
                for count, values in zip(counts, differences, strict=True)
            ]
            lines.append([*head, str(len(rows)), *states, *texts])
    return lines


def _differences(rows: Sequence[Recalibrations], kind: str, count: int) -> list[float]:
    return [row.of(kind)[count] - row.protocol for row in rows if count in row.of(kind)]


def _numbers(measured: Sequence[Measured]) -> pd.DataFrame:
    def values(found: Measured, row: Recalibrations) -> Mapping[str, Any]:
        return {
            **{"experiment": found.experiment, "profile": found.profile, "method": row.method},
            **{"macs_kept": row.macs_kept, "seed": row.seed},
        }

    rows = [
        {**values(found, row), "images": count, "kind": kind, "top1": top1}
        for found in measured
        for row in found.rows
        for kind, by_count in (
            ("none", {0: row.pruned}),
            ("as in runs", {found.images: row.protocol}),
            *((kind, row.of(kind)) for kind in KINDS),
        )
        for count, top1 in by_count.items()
    ]
    return pd.DataFrame(
        rows, columns=["experiment", "profile", "method", "macs_kept", "seed", "images", "kind", "top1"]
    )
