"""The checklist of Blalock et al. 2020 ("What is the State of Neural Network Pruning?"), answered from records."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.analysis.comparison import Comparison
from benchmarks.escape import for_markdown
from benchmarks.records.record import Record
from benchmarks.records.strengths import FIRST_TUNING_SEED
from benchmarks.reporting.study import range_in_words

ENOUGH_PAIRS, ENOUGH_TARGETS = 3, 5

YES, NO = "yes", "no"


def checklist(records: Sequence[Record], comparisons: Sequence[Comparison]) -> list[tuple[str, str, str]]:
    """Return item, yes or no, and what the records say; runs of profile `quick` do not count."""
    newest = {(c.experiment, c.profile): c.protocol for c in comparisons}
    full = [r for r in records if r.complete and r.protocol == newest.get((r.experiment, r.profile))]
    full = [record for record in full if record.profile != "quick"]
    tables = [comparison for comparison in comparisons if comparison.profile != "quick"]
    return [*_what_was_run(full, tables), *_what_was_compared(full), *_what_always_holds(bool(full))]


def _what_was_run(full: Sequence[Record], tables: Sequence[Comparison]) -> list[tuple[str, str, str]]:
    pairs = sorted({for_markdown(f"{r.config.get('dataset')} with {r.config.get('model')}") for r in full})
    targets = {c.name: len(c.targets) for c in tables}
    fewest = [int(c.table["n"].min()) for c in tables]
    networks = [int(n) for c in tables for n in c.table["n"]]
    seeds = f"{range_in_words(networks)} seeds per method and target" if networks else "not run"
    return [
        _item(
            f"At least {ENOUGH_PAIRS} pairs of data set and architecture",
            len(pairs) >= ENOUGH_PAIRS,
            f"{len(pairs)}: {', '.join(pairs) or 'none'}",
        ),
        _item(
            f"At least {ENOUGH_TARGETS} operating points for each",
            bool(targets) and min(targets.values()) >= ENOUGH_TARGETS,
            f"{range_in_words(targets.values())} targets per experiment" if targets else "not run",
        ),
        _item("Means and deviations over several seeds", bool(fewest) and min(fewest) > 1, seeds),
    ]


def _what_was_compared(full: Sequence[Record]) -> list[tuple[str, str, str]]:
    seeds = _count(len({record.seed for record in full if record.seed < FIRST_TUNING_SEED}), "seed")
    return [
        _item(
            "Compression and theoretical speed-up both reported",
            bool(full),
            "parameters and MACs before and after in every record; MACs under three conventions in each cost table",
        ),
        _item(
            "The same metrics for the unpruned network",
            bool(full),
            f"the dense network of each seed is measured like the others ({seeds})",
        ),
        _item("Random pruning as a baseline", _has(full, "random"), _where(full, "random")),
        _item("Magnitude pruning as a baseline", _has(full, "l1"), _where(full, "l1")),
        _item("A layer-uniform baseline", any("uniform" in r.selection for r in full), _uniform(full)),
    ]


def _what_always_holds(anything: bool) -> list[tuple[str, str, str]]:
    return [
        _item(
            "Everything needed to repeat it", anything, "configuration, commit, versions and command in every record"
        ),
        _item(
            "Claims limited to what was run",
            True,
            "cells without a record say `not run`, claims without one that counts `no verdict`",
        ),
        _item("Top-5 beside top-1 on ImageNet", False, "records hold top-1 alone"),
    ]


def _item(text: str, holds: bool, answer: str) -> tuple[str, str, str]:
    return text, YES if holds else NO, answer


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _has(records: Sequence[Record], method: str) -> bool:
    return any(record.method == method for record in records)


def _where(records: Sequence[Record], method: str) -> str:
    places = sorted({f"{r.experiment} ({r.profile})" for r in records if r.method == method})
    return f"method `{method}` in {', '.join(places)}" if places else "not run"


def _uniform(records: Sequence[Record]) -> str:
    methods = sorted({record.method for record in records if record.selection == "uniform"})
    return ", ".join(f"method `{name}`" for name in methods) or "not run"


def checklist_markdown(items: Sequence[tuple[str, str, str]]) -> list[str]:
    """Return the lines of a table."""
    return [
        "| Item | | Answer |",
        "|---|---|---|",
        *(f"| {text} | {holds} | {answer} |" for text, holds, answer in items),
    ]
