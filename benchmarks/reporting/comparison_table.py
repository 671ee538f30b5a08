"""Comparison tables from records: one per experiment and profile, with what makes it fair beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from benchmarks.analysis.comparison import DENSE_LONG, MAIN_METHODS, Comparison, rank, title_of
from benchmarks.analysis.statistics import ENOUGH_SEEDS
from benchmarks.escape import for_markdown, one_line
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import find_method
from benchmarks.reporting.columns import COLUMNS, COST_COLUMNS
from benchmarks.reporting.numbers import NOT_RUN, share
from benchmarks.reporting.table_files import Sheet

BOLD = f"Bold: the best of its target, of several with at least {ENOUGH_SEEDS} seeds; "

COMMON_NOTES = (
    "Top-1 in % on the test set after the last epoch, mean ± standard deviation over n seeds. Pruned: before "
    "fine-tuning. Recalibrated: the same network, its BatchNorm statistics estimated again on training images, no "
    "weight changed. Change: difference from the dense network of the same seed, in percentage points (± half its 95"
    f" % interval, from {ENOUGH_SEEDS} seeds on). {BOLD}≈: the 95 % interval of its difference "
    f"from the best contains zero (paired where they share {ENOUGH_SEEDS} networks, else Welch's); °: too few seeds to "
    "be compared. MACs (the paper's FLOPs): convolutions and linear layers, batch 1. "
    "Epochs, and compute in 10^15 MACs: all training of one run, including the dense network's. Setup levels are "
    "those of Wang et al.: S4.2 is the strictest (all methods start from the same dense network, with the same epochs "
    "and learning rates before and after pruning); A: equal epochs, B: equal compute."
)

TEXT_NOTES = COMMON_NOTES.replace(BOLD, "")
"""Below the table of `to_text`, in which nothing is bold."""


NO_VERDICT = "no verdict"

MARK = " *"

MARKED = (
    "*: strengths that were not tuned, or for another network, training or state, or an older protocol; no verdict "
    "rests on them."
)


def display_rows(comparison: Comparison) -> list[list[str]]:
    """Return the cells of the table as people read them: the dense networks, then the methods target by target."""
    rows = comparison.table.to_dict("records")
    dense_long = [row for row in rows if row["method"] == DENSE_LONG]
    lines = [[column.dense(comparison) for column in COLUMNS]]
    lines += [[column.cell(row) for column in COLUMNS] for row in dense_long] or [_no_dense_long()]
    for target in dict.fromkeys(row["macs_kept"] for row in rows if row["method"] != DENSE_LONG):
        lines.append([f"At {share(target)} of the MACs"])
        group = [row for row in rows if row["macs_kept"] == target and row["method"] != DENSE_LONG]
        lines += [[column.cell(row) for column in COLUMNS] for row in group]
    return lines


def _no_dense_long() -> list[str]:
    """Return the row that every table has: no pruned network is compared with a dense one of fewer epochs."""
    return [f"{find_method(DENSE_LONG).title}: {NOT_RUN}"]


def _header() -> list[str]:
    return [column.header for column in COLUMNS]


def missing(comparison: Comparison) -> str:
    """Return which methods and targets of the experiment's profile have no record, or nothing.

    A target that nobody ran is named once; in a quick profile, of which everyone runs what they like, not at all.
    """
    methods, targets = _missing(comparison)
    parts = [
        find_method(method).title + (f" (at {', '.join(map(share, absent))})" if absent else "")
        for method, absent in methods.items()
    ]
    parts += [f"all methods at {', '.join(map(share, targets))}"] if targets else []
    return f"Not run: {'; '.join(parts)}." if parts else ""


def commands(comparison: Comparison) -> list[str]:
    """Return the commands that run what `missing` names, one for methods that lack the same targets."""
    methods, targets = _missing(comparison)
    start = run_command(comparison.experiment, comparison.profile)
    alike: dict[tuple[float, ...], list[str]] = {}
    for method, absent in methods.items():
        alike.setdefault(absent, []).append(method)
    found = [f"{start} --methods {','.join(names)}{_kept(absent)}" for absent, names in alike.items()]
    return found + ([start + _kept(targets)] if targets else [])


def run_command(experiment: str, profile: str) -> str:
    """Return the command that runs a profile of an experiment."""
    return f"python -m benchmarks run {experiment} --profile {profile}"


def _kept(targets: Sequence[float]) -> str:
    return f" --macs-kept {','.join(map(str, targets))}" if targets else ""


def _missing(comparison: Comparison) -> tuple[dict[str, tuple[float, ...]], tuple[float, ...]]:
    """Return the methods without a record, each with the targets that it lacks alone, and targets without any."""
    experiment = EXPERIMENTS.get(comparison.experiment)
    if experiment is None or comparison.profile not in experiment.profiles:
        return {}, ()
    profile = experiment.profiles[comparison.profile]
    done = {(record.method, f"{record.macs_kept:g}") for record in (*comparison.records, *comparison.failed)}
    targets = [target for target in profile.macs_kept if any(kept == f"{target:g}" for _, kept in done)]
    none = [target for target in profile.macs_kept if target not in targets] if comparison.profile != "quick" else []
    found: dict[str, tuple[float, ...]] = {}
    if not any(method == DENSE_LONG for method, _ in done):
        found[DENSE_LONG] = ()
    for method in profile.methods:
        absent = tuple(target for target in targets if (method, f"{target:g}") not in done)
        if absent and method != DENSE_LONG:
            found[method] = () if len(absent) == len(targets) else absent
    return found, tuple(none)


def warning(comparison: Comparison) -> str:
    """Return the warning above a table: strengths not tuned for it, or for another state, and old records."""
    parts = []
    if comparison.untuned:
        parts.append(f"Strengths not tuned, no comparison can rest on them: {'; '.join(comparison.untuned)}.")
    if comparison.tuned_for_others:
        owners = ", ".join(f"`{name}`" for name in comparison.tuned_for_others)
        parts.append(f"Strengths tuned for another network or training ({owners}): no verdict rests on them.")
    if comparison.chosen_late:
        parts.append("Strengths chosen for the fine-tuned network: no verdict rests on them.")
    if not comparison.current:
        parts.append(f"Records of protocol {comparison.protocol}, an older one: no verdict rests on them.")
    return " ".join(parts)


def standing(comparison: Comparison) -> str:
    """Return the tier of a comparison's evidence, or that it carries no verdict."""
    counted = comparison.judges or not comparison.current
    return (comparison.evidence.tier if counted else None) or NO_VERDICT


def marked_place(comparison: Comparison) -> str:
    """Return experiment and profile, marked where the comparison's own page has a warning (`MARKED` explains it)."""
    return f"{comparison.experiment} ({comparison.profile}){MARK if warning(comparison) else ''}"


def notes(comparison: Comparison, shown: Callable[[str], str] = for_markdown) -> str:
    """Return what a reader must know about this table in particular.

    Args:
        comparison: The table's.
        shown: Escapes a text from records for where the notes are to stand.
    """
    few = int(comparison.table["n"].min()) if len(comparison.table) else 0
    parts = [f"Setup level {comparison.level}.", _evidence(comparison, shown)]
    if few < ENOUGH_SEEDS:
        parts.append(f"Fewer than {ENOUGH_SEEDS} seeds in some rows: no conclusion can be drawn from them.")
    parts.append(_other_networks(comparison))
    if comparison.profile == "quick":
        parts.append("Profile quick: shows that the pipeline works, says nothing about the claim.")
    if comparison.superseded:
        records = "1 record" if comparison.superseded == 1 else f"{comparison.superseded} records"
        parts.append(f"Left out: {records} of an older protocol.")
    if comparison.failed:
        parts.append(f"Without a result, and in no mean: {_failed(comparison, shown)}.")
    return " ".join([*(part for part in parts if part), shown(comparison.origins.text)])


def _other_networks(comparison: Comparison) -> str:
    """Say where rows rest on other networks, which do not share their dense accuracy."""
    table = comparison.table
    sets = {target: {*table["seeds"][table["macs_kept"] == target]} for target in comparison.targets}
    seeds = {text: {*map(int, text.split())} for own in sets.values() for text in own}
    if not any(one.isdisjoint(other) for one, other in combinations(seeds.values(), 2)):
        return ""
    groups: dict[str, list[str]] = {}
    for target, own in sets.items():
        groups.setdefault(" or ".join(sorted(_seeds_text(seeds[text]) for text in own)), []).append(share(target))
    places = "; ".join(f"{' and '.join(targets)}: seeds {own}" for own, targets in groups.items())
    return f"Not all rows rest on the same networks ({places}): read a row against its own dense accuracy."


def _seeds_text(seeds: Iterable[int]) -> str:
    """Return seeds in order, those that follow one another as a range: `0–2, 6`."""
    spans: list[list[int]] = []
    for seed in sorted(set(seeds)):
        if spans and seed == spans[-1][-1] + 1:
            spans[-1].append(seed)
        else:
            spans.append([seed])
    return ", ".join(f"{span[0]}–{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans)


def _failed(comparison: Comparison, shown: Callable[[str], str]) -> str:
    """Return which runs failed and why: a mean over the others is one over those that did not."""
    in_order = sorted(comparison.failed, key=lambda record: (rank(record.method), -record.macs_kept, record.seed))
    runs = [
        f"{title_of(record)} at {share(record.macs_kept)}, seed {record.seed} ({record.failure_reason})"
        for record in in_order
    ]
    return shown("; ".join(runs))


def _evidence(comparison: Comparison, shown: Callable[[str], str]) -> str:
    evidence = comparison.evidence
    return f"Evidence: {evidence.tier or 'carries no verdict'} ({shown(evidence.reason)})."


def comparison_sheet(comparison: Comparison, title: str, *, with_missing: bool = True) -> Sheet:
    """Return the main table of a comparison."""
    numbers = comparison.table.drop(columns=["title", "level", "tuned", "seeds"], errors="ignore")
    absent = missing(comparison) if with_missing else ""
    text = "\n\n".join(part for part in (notes(comparison), absent) if part)
    rows = display_rows(comparison)
    return Sheet(comparison.name, title, tuple(_header()), rows, text, numbers, warning(comparison), COMMON_NOTES)


def headline_sheet(comparison: Comparison, title: str) -> Sheet | None:
    """Return the table of the methods that stand first; None where these are all."""
    wanted = {*MAIN_METHODS, DENSE_LONG}
    if set(comparison.table["method"]) <= wanted:
        return None
    return comparison_sheet(comparison.restricted(wanted), title, with_missing=False)


COST_NOTES = (
    "Strength: as tuned on the validation split (*: not tuned, or for another network or training). Epochs and "
    "compute: of one run, including the dense network's. MACs as three counters count them: convolutions and linear "
    "layers; as fvcore, with BatchNorm (2 per element) and pooling; and operations, 2 per MAC. Near zero: out-in-"
    "channels with a norm below a thousandth of their coupling's largest, after training with the regulariser. "
    "Concentration: twice the area between the sorted cumulative energy and the diagonal, 0 (all channels equal) to "
    "1. Lost at surgery: top-1 of the regularised less that of the pruned network, in percentage points."
)

COST_NUMBERS = (
    "method",
    "macs_kept",
    "strength",
    "epochs",
    "compute_macs",
    "macs",
    "macs_with_norm_pool",
    "flops_2_per_mac",
    "near_zero",
    "concentration",
    "surgery_loss",
)


def fairness_sheet(comparison: Comparison, title: str) -> Sheet:
    """Return the table of what each row cost and how it was counted."""
    rows = [[column.cell(row) for column in COST_COLUMNS] for row in comparison.table.to_dict("records")]
    header = tuple(column.header for column in COST_COLUMNS)
    numbers = comparison.table[list(COST_NUMBERS)]
    name = f"{comparison.name}-fairness"
    origin = for_markdown(comparison.origins.text)
    return Sheet(
        name, f"{title}: cost, counting and strengths", header, rows, origin, numbers, warning(comparison), COST_NOTES
    )


def to_text(comparison: Comparison) -> str:
    """Return the table in aligned columns, for a terminal; a warning is its first line."""
    shown = [position for position, column in enumerate(COLUMNS) if column.terminal]
    plain = [[one_line(cell.replace("**", "")) for cell in row] for row in display_rows(comparison)]
    rows = [row if len(row) == 1 else [row[position] for position in shown] for row in [_header(), *plain]]
    widths = [max(len(row[column]) for row in rows if len(row) > 1) for column in range(len(shown))]
    lines = [_aligned(row, widths) for row in rows]
    first = [warning(comparison)] if warning(comparison) else []
    return "\n".join([*first, lines[0], "-" * len(lines[0]), *lines[1:]])


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    if len(row) == 1:
        return row[0].ljust(sum(widths) + 2 * (len(widths) - 1))
    return "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
