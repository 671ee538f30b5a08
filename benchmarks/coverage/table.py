"""The coverage table as CSV and Markdown, and the summaries of it for README and docs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path

from benchmarks.coverage.networks import DETECTION, OUT_OF_SCOPE, SEGMENTATION, SEQUENCE, TIMM, TORCHVISION, VIDEO
from benchmarks.escape import for_csv, for_markdown
from benchmarks.machine.plain_files import read_plain

COLUMNS = (
    "network image_size traced couplings scope invariance_error macs_before macs_after train_step seconds passed "
    "reason torch_pruning torch_pruning_macs_after torch_pruning_seconds torch_pruning_reason versions"
).split()

Row = dict[str, str]

CLASSES = 10

MACS_KEPT = 0.5

TOLERANCE = 1e-9  # of the largest output, in float64

LIMIT_SECONDS = 60

PEER_RATIO = 0.3  # torch-pruning removes this share of every layer: about half of the MACs

PEER_REACHED = 0.75


SOURCES = {
    "torchvision": TORCHVISION,
    "segmentation": SEGMENTATION,
    "detection": DETECTION,
    "video": VIDEO,
    "timm": TIMM,
    "sequence": SEQUENCE,
}


def listed() -> list[str]:
    """Return the names of all networks of the table."""
    return [f"{source}:{name}" for source, names in SOURCES.items() for name in names]


def read_rows(path: Path) -> dict[str, Row]:
    """Return the rows of a table by network.

    Raises:
        ValueError: The file is not a coverage table.
    """
    if not path.exists():
        return {}
    try:
        reader = csv.DictReader(io.StringIO(read_plain(path), newline=""))
        rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a coverage table: {error}; move it away") from error
    if list(reader.fieldnames or []) != COLUMNS:
        raise ValueError(f"{path} is not a coverage table: its columns are {reader.fieldnames}; move it away")
    if any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path} is not a coverage table: a row has more or fewer values than columns; move it away")
    return {row["network"]: row for row in rows}


def to_csv(rows: Mapping[str, Row]) -> str:
    """Return the table in the order of the list."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    safe = {name: {column: for_csv(cell) for column, cell in row.items()} for name, row in rows.items()}
    writer.writerows(safe[name] for name in dict.fromkeys([*listed(), *rows]) if name in rows)
    return buffer.getvalue()


HEADER = f"""# Coverage

`python -m benchmarks coverage` generates this page from `coverage.csv`. Every network is built by its library's own
constructor, freshly initialised, for {CLASSES} classes. `segmentation`, `detection` and `video` are torchvision's; of a
detector, the backbone with its feature pyramid is pruned. `sequence` has a classifier of waveforms (M5) and a temporal
convolutional network with weight norm.

- Passed: the network was traced and pruned at random to {MACS_KEPT:.0%} of the MACs within 1 %, removing empty
  channels left its outputs unchanged to {TOLERANCE:g} in float64, and one training step was finite, all within
  {LIMIT_SECONDS} s of CPU time on one thread.
- Scope: `inner` (the paper's) if it reaches {MACS_KEPT:.0%}, otherwise `all`. Channels under a LayerNorm are kept,
  since no exact removal exists.
- Attention whose code fixes its widths has them set free (`oicsr.open_attention`), which changes no output: that in
  windows of torchvision's Swin transformers always, other attention where {MACS_KEPT:.0%} is out of reach as it is.
  ViT-H/14 is built for images of 56 pixels, and MViT is tried with one clip, to fit the limit.
- torch-pruning: it removed {PEER_RATIO:.0%} of each layer with its defaults, at most {PEER_REACHED:.0%} of the MACs
  remained, and one training step was finite, within the same limit. Its outputs are not compared. Of attention it is
  told the numbers of heads, and those on the modules are set by hand, as its examples do; parameters outside layers and
  other numbers of the code are not told.

"""

SUMMARY_HEADER = """\
| library | listed | run | passed | share of those run | torch-pruning | share of those run |
|---|---|---|---|---|---|---|
"""

LIBRARIES = {
    "torchvision": "torchvision",
    "segmentation": "torchvision, segmentation",
    "detection": "torchvision, detection",
    "video": "torchvision, video",
    "timm": "timm",
    "sequence": "sequences",
}

COLUMNS_SHOWN = "image_size couplings scope macs_before macs_after invariance_error train_step seconds passed".split()


def to_markdown(rows: Mapping[str, Row]) -> str:
    """Return the table as Markdown, below the pass rates and a list of what is not run."""
    head = ["network", "pixels", *COLUMNS_SHOWN[1:], "torch-pruning", "reason"]
    lines = [
        summary(rows),
        "Not listed:",
        *(f"- {line}" for line in OUT_OF_SCOPE),
        "",
        f"| {' | '.join(head)} |".replace("_", " "),
        "|---" * len(head) + "|",
        *(_line(rows.get(name, {"network": name})) for name in listed()),
    ]
    return HEADER + "\n".join(lines) + "\n"


def summary(rows: Mapping[str, Row]) -> str:
    """Return the pass rates of each library, with and without torch-pruning, as a Markdown table."""
    return SUMMARY_HEADER + "".join(f"{_summary(rows, source)}\n" for source in LIBRARIES)


def sentence(rows: Mapping[str, Row]) -> str:
    """Return the pass rates as a sentence, without torch-pruning."""
    shares = []
    for library, sources in {
        "torchvision": ("torchvision", "segmentation", "detection", "video"),
        "timm": ("timm",),
    }.items():
        names = [name for name in listed() if name in rows]  # of those tried beside the list, nothing is said
        run = [rows[name] for name in names if name.partition(":")[0] in sources]
        told = " (of detectors the backbone)" if any(name.startswith("detection:") for name in names) else ""
        passed = sum(row["passed"] == "yes" for row in run)
        shares.append(f"{passed} of {len(run)} {library} networks{told if library == 'torchvision' else ''}")
    return (
        f"{' and '.join(shares)} can be pruned to half of their MACs within a minute, tested with random weights: "
        "removing channels of zeros leaves the outputs unchanged"
    )


def _summary(rows: Mapping[str, Row], source: str) -> str:
    names = [f"{source}:{name}" for name in SOURCES[source]]
    run = [rows[name] for name in names if name in rows]
    cells: list[object] = [LIBRARIES[source], len(names), len(run)]
    for column in ("passed", "torch_pruning"):
        known = [row for row in run if row[column]]
        passed = sum(row[column] == "yes" for row in known)
        cells += [passed, f"{passed / len(known):.1%} of {len(known)}"] if known else ["not run", "not run"]
    return "| " + " | ".join(map(str, cells)) + " |"


def _line(row: Row) -> str:
    if "passed" not in row:
        return f"| {row['network']} | not run " + "| " * (len(COLUMNS_SHOWN) + 1) + "|"
    peer = row["torch_pruning"] or "not run"
    if row["torch_pruning_reason"]:
        peer += f": {row['torch_pruning_reason']}"
    cells = [row["network"], *(row[column] for column in COLUMNS_SHOWN), peer, row["reason"]]
    return "| " + " | ".join(map(for_markdown, cells)) + " |"
