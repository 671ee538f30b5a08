"""Tables across experiments: in the paper's shape, beside the field's published rows, and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from benchmarks.analysis.comparison import AFTER_SURGERY, Comparison, rank
from benchmarks.analysis.evidence import CURRENT_PROTOCOL, dataset_title
from benchmarks.analysis.statistics import summarize
from benchmarks.config import Experiment
from benchmarks.escape import for_markdown
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import find_method
from benchmarks.records.histories import Details
from benchmarks.records.origins import origins_of
from benchmarks.records.published import RESNET50, RESNET56, read_published
from benchmarks.records.recalibrations import Measured
from benchmarks.records.record import STATES_OF
from benchmarks.reporting.columns import STATE_TITLES
from benchmarks.reporting.comparison_table import MARKED, marked_place
from benchmarks.reporting.effects import effect_sheets, points
from benchmarks.reporting.numbers import NOT_RUN, percent, share, signed
from benchmarks.reporting.recalibration_table import recalibration_sheet
from benchmarks.reporting.table_files import Sheet

FULL = "paper"  # the profile that trains as long as the field does
PROFILE_ORDER = (FULL, "study", "cpu", "quick")

PAPER_COLUMNS = (
    ("none", "No regulariser"),
    ("l1-weights", "L1"),
    ("l2-weights", "L2"),
    ("gl-out", "Group Lasso"),
    ("growl", "GrOWL"),
    ("gl-separate", "Group Lasso (separate out and in)"),
    ("oicsr-gl", "OICSR-GL"),
    ("oicsr-growl", "OICSR-GrOWL"),
)

WITHOUT = {
    "pruned": "without fine-tuning",
    "recalibrated": "without fine-tuning, recalibrated",
    "finetuned": "with fine-tuning",
}

PAPER_NOTES = (
    "Top-1 in %, mean ± standard deviation over seeds (n). L1 and L2 are the non-structured, Group Lasso and GrOWL the "
    "separated regularisers, OICSR the joined ones; separate out and in is a control that the paper lacks. Dense: as "
    "trained before pruning, and trained for as many epochs as the others. The paper's own values for these cells are "
    "not known to this project. Profile quick says nothing about the claim. Experiments that were not run have no row; "
    f"checks.md lists them. {MARKED}"
)


def best_comparisons(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return one comparison per experiment: the most thorough profile that was run."""

    def order(comparison: Comparison) -> int:
        known = comparison.profile in PROFILE_ORDER
        return PROFILE_ORDER.index(comparison.profile) if known else len(PROFILE_ORDER)

    best: dict[str, Comparison] = {}
    for comparison in sorted(comparisons, key=order):
        best.setdefault(comparison.experiment, comparison)
    return [best[name] for name in sorted(best)]


def paper_sheet(comparisons: Sequence[Comparison], state: str) -> Sheet:
    """Return the table in the paper's shape, of one of the states after surgery."""
    rows: list[list[str]] = []
    numbers: list[dict[str, Any]] = []
    groups: list[str] = []
    for comparison in best_comparisons(comparisons):
        for target in comparison.targets:
            rows.append(_paper_row(comparison, target, state, numbers))
            groups.append(dataset_title(str(comparison.records[0].config.get("dataset"))))
    titles = (title for _, title in PAPER_COLUMNS)
    header = ("Experiment (profile)", "MACs kept", "Dense", "Dense (all epochs)", *titles)
    columns = ["experiment", "profile", "macs_kept", "method", "n", "top1", "sd"]
    table = pd.DataFrame(numbers, columns=columns)
    title = f"Comparison in the paper's design, {WITHOUT[state]}"
    rows = rows or [[NOT_RUN] * len(header)]
    return Sheet(f"paper-{state}", title, header, rows, PAPER_NOTES, table, groups=tuple(groups))


def _paper_row(comparison: Comparison, target: float, state: str, numbers: list[dict[str, Any]]) -> list[str]:
    dense, long = comparison.dense, comparison.dense_long
    cells = [marked_place(comparison), share(target), percent(dense.mean, dense.sd)]
    cells.append(percent(long.mean, long.sd) if long else NOT_RUN)
    found = {str(row["method"]): row for row in _at(comparison, target)}
    for method, _ in PAPER_COLUMNS:
        row = found.get(method)
        if row is None:
            cells.append(NOT_RUN)
            continue
        mean, sd = row[f"{state}_top1"], row[f"{state}_sd"]
        cells.append(NOT_RUN if pd.isna(mean) else f"{percent(mean, sd)} ({row['n']})")
        if pd.isna(mean):
            continue
        where = {"experiment": comparison.experiment, "profile": comparison.profile, "macs_kept": target}
        numbers.append({**where, "method": method, "n": row["n"], "top1": mean, "sd": sd})
    return cells


def _at(comparison: Comparison, target: float) -> list[dict[Any, Any]]:
    table = comparison.table
    return table[table["macs_kept"] == target].to_dict("records")


FIELD_HEADER = ("Method", "n", "Base", "Pruned and fine-tuned", "Change", "Speed-up", "Protocol", "Source")

FIELD_NOTES = (
    "Above: this suite's own runs, last epoch, never chosen on the test set. Below: quotations, as printed in their "
    "sources, under protocols of their own; they are no comparison under equal conditions. Speed-up: dense MACs over "
    "pruned MACs. Change: recomputed from base and pruned."
)


def field_sheet(comparisons: Sequence[Comparison], model: str, dataset: str, published: str, title: str) -> Sheet:
    """Return own runs of a network above the field's published rows."""
    own = [c for c in best_comparisons(comparisons) if _is_of(c, model, dataset) and c.profile != "quick"]
    rows: list[list[str]] = [["This suite's own runs"]]
    rows += [_own_row(row, c) for c in own for row in c.table.to_dict("records")]
    if not own:
        rows.append([title, *[NOT_RUN] * (len(FIELD_HEADER) - 1)])
    elif all(c.profile != FULL for c in own):
        rows += [_longer_row(EXPERIMENTS[name]) for name in dict.fromkeys(c.experiment for c in own if _has_full(c))]
    quoted = read_published(published)
    rows.append(["Quoted from papers and repositories"])
    rows += [_quoted_row(row) for row in quoted.to_dict("records")]
    numbers = _field_numbers([row for c in own for row in c.table.to_dict("records")], quoted)
    return Sheet(f"field-{published}", title, FIELD_HEADER, rows, FIELD_NOTES, numbers)


def _is_of(comparison: Comparison, model: str, dataset: str) -> bool:
    config = comparison.records[0].config
    return (config.get("model"), config.get("dataset")) == (model, dataset)


def _has_full(comparison: Comparison) -> bool:
    experiment = EXPERIMENTS.get(comparison.experiment)
    return experiment is not None and FULL in experiment.profiles


def _longer_row(experiment: Experiment) -> list[str]:
    """Return the row of an experiment whose full recipe was not run, so that nobody takes the shorter one for it."""
    length = f"not run at this length ({experiment.profiles[FULL].epochs} epochs)"
    where = f"{experiment.name}, profile {FULL}"
    empty = [NOT_RUN] * (len(FIELD_HEADER) - 3)
    return ["All methods, with the full recipe", *empty, length, where]


def _own_row(row: dict[Any, Any], comparison: Comparison) -> list[str]:
    return [
        str(row["title"]),
        str(row["n"]),
        percent(row["dense_top1"], row["dense_sd"]),
        percent(row["finetuned_top1"], row["finetuned_sd"]),
        signed(100 * row["finetuned_delta"]),
        f"{row['dense_macs'] / row['macs']:.2f}×",
        f"last epoch, {row['epochs']} epochs in all",
        f"{comparison.experiment}, profile {comparison.profile}",
    ]


def _quoted_row(row: dict[Any, Any]) -> list[str]:
    sd = row["pruned_sd_percent"]
    return [
        str(row["method"]),
        "as printed",
        f"{row['base_percent']:.2f}",
        f"{row['pruned_percent']:.2f}" + ("" if pd.isna(sd) else f" ± {sd:.2f}"),
        signed(row["pruned_percent"] - row["base_percent"]),
        f"{row['speedup']:.2f}×",
        str(row["protocol"]),
        str(row["source"]),
    ]


def _field_numbers(own: Sequence[dict[Any, Any]], quoted: pd.DataFrame) -> pd.DataFrame:
    ours = [
        {
            "origin": "own",
            "method": row["method"],
            "n": row["n"],
            "base_percent": 100 * row["dense_top1"],
            "pruned_percent": 100 * row["finetuned_top1"],
            "speedup": row["dense_macs"] / row["macs"],
        }
        for row in own
    ]
    columns = ["method", "base_percent", "pruned_percent", "speedup"]
    theirs = [{"origin": "quoted", **{name: row[name] for name in columns}} for row in quoted.to_dict("records")]
    return pd.DataFrame([*ours, *theirs], columns=["origin", "method", "n", *columns[1:]])


BESIDE = "compared with published results"

ABLATION_HEADER = (
    *("Experiment (profile)", "Part", "In place of it", "MACs kept", "n"),
    *(STATE_TITLES[state] for state in AFTER_SURGERY),
)

ABLATION_NOTES = (
    "OICSR-GL is a regulariser, an importance and a selection. Each row replaces one of them and leaves the others: "
    "top-1 less that of OICSR-GL for the same networks, in percentage points (± half the paired 95 % interval). Below "
    f"zero, the part that was replaced is worth having. {MARKED}"
)

BASE = "oicsr-gl"


def ablation_sheet(comparisons: Sequence[Comparison]) -> Sheet:
    """Return what each part of OICSR-GL is worth: all methods that differ from it in one part."""
    rows: list[list[str]] = []
    numbers: list[dict[str, Any]] = []
    for comparison in best_comparisons(comparisons):
        for method in sorted({r.method for r in comparison.records} - {BASE}, key=rank):
            part = replaced_part(method)
            for target in comparison.targets if part else ():
                _ablate(comparison, method, str(part), target, rows, numbers)
    if not rows:
        rows.append([NOT_RUN] * len(ABLATION_HEADER))
    columns = ["experiment", "profile", "part", "method", "macs_kept", "n", *AFTER_SURGERY]
    table = pd.DataFrame(numbers, columns=columns)
    return Sheet("ablations", "Ablation of OICSR-GL", ABLATION_HEADER, rows, ABLATION_NOTES, table, texts=3)


def replaced_part(name: str) -> str | None:
    """Return the one part in which a method differs from OICSR-GL; None where it is another number of parts."""
    base, method = find_method(BASE), find_method(name)
    parts = ("regularizer", "importance", "selection")
    differing = [part for part in parts if getattr(base, part).name != getattr(method, part).name]
    return differing[0] if len(differing) == 1 else None


def _ablate(
    comparison: Comparison, method: str, part: str, target: float, rows: list[list[str]], numbers: list[dict[str, Any]]
) -> None:
    base, other = (comparison.by_network(name, target) for name in (BASE, method))
    shared = [network for network in base if network in other]
    if not shared:
        return
    title = getattr(find_method(method), part).title
    head = [marked_place(comparison), part, title, share(target), str(len(shared))]
    changes = {
        state: [other[each].states[state]["top1"] - base[each].states[state]["top1"] for each in shared]
        for state in STATES_OF[comparison.protocol]
        if state in AFTER_SURGERY
    }
    rows.append([*head, *(points(changes[state]) if state in changes else NOT_RUN for state in AFTER_SURGERY)])
    means = {state: summarize(values).mean for state, values in changes.items()}
    where = {"experiment": comparison.experiment, "profile": comparison.profile, "part": part, "method": method}
    numbers.append({**where, "macs_kept": target, "n": len(shared), **means})


def all_sheets(comparisons: Sequence[Comparison], details: Details, measured: Sequence[Measured] = ()) -> list[Sheet]:
    """Return every table across experiments, of records of one version of the protocol: the newest that was run."""
    newest = max((comparison.protocol for comparison in comparisons), default=0)
    older = [comparison for comparison in comparisons if comparison.protocol < newest]
    used = [comparison for comparison in comparisons if comparison.protocol == newest]
    text = _origin(used, older)
    made = [replace(sheet, notes=f"{sheet.notes}{text}") for sheet in _sheets(used, details)]
    return [*made, recalibration_sheet(measured, newest or CURRENT_PROTOCOL, used)]


def _origin(used: Sequence[Comparison], older: Sequence[Comparison]) -> str:
    origins = origins_of(record for comparison in used for record in comparison.records)
    origin = for_markdown(origins.text_of("all tables across experiments")) if used else ""
    names = ", ".join(f"{c.experiment} ({c.profile})" for c in older)
    parts = [origin, f"Left out, records of an older protocol: {names}." if names else ""]
    return "".join(f"\n\n{part}" for part in parts if part)


def _sheets(comparisons: Sequence[Comparison], details: Details) -> list[Sheet]:
    return [
        *(paper_sheet(comparisons, state) for state in AFTER_SURGERY),
        ablation_sheet(comparisons),
        *effect_sheets(comparisons, details),
        field_sheet(comparisons, "resnet56", "cifar10", RESNET56, f"ResNet-56 on CIFAR-10 {BESIDE}"),
        field_sheet(comparisons, "imagenet-resnet50", "imagenet", RESNET50, f"ResNet-50 on ImageNet {BESIDE}"),
    ]
