"""A W&B report of one experiment and profile, made by code: what to look at, in the order of the questions.

It needs the package `wandb-workspaces` (the extra `wandb-report`): reports exist on the server alone.
"""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.escape import for_markdown
from benchmarks.records.record import Record
from benchmarks.running.wandb_mirror import OVERVIEW, OVERVIEW_TABLE, RUN, Place

STATES = ("pruned", "recalibrated", "finetuned")

WIDTH, HEIGHT = 24, 8  # of W&B's grid: a row, and a panel

NEEDS = "reports need wandb-workspaces: pip install '.[wandb-report]'"


def make_report(place: Place, record: Record, command: str) -> Any:
    """Return the report of a record's experiment and profile, not yet saved: `.save()` sends it.

    Args:
        place: Project and entity of the runs, which must be there.
        record: Any of the experiment and profile; commit, protocol and device are said in its words.
        command: Repeats the runs.

    Raises:
        ValueError: The package for reports is not installed.
    """
    try:
        reports = importlib.import_module("wandb_workspaces.reports.v2")
    except ImportError as error:
        raise ValueError(NEEDS) from error
    group = f"{record.experiment}-{record.profile}"
    sections = _comparison(reports), _strengths(reports), _training(reports)
    blocks: list[Any] = [reports.MarkdownBlock(text=_about(record, command))]
    for title, kind, panels in sections:
        runs = reports.Runset(
            entity=place.entity or "",
            project=place.project,
            name=group,
            filters=f"group = '{group}' and jobType = '{kind}'",
            groupby=["config.method"] if kind == RUN else [],
        )
        blocks += [reports.H2(text=title), reports.PanelGrid(runsets=[runs], panels=panels)]
    return reports.Report(
        project=place.project,
        entity=place.entity or "",
        title=f"{group}: accuracy against MACs",
        description="Made by `python -m benchmarks publish --report`; the records are the source of every number.",
        blocks=blocks,
    )


def _about(record: Record, command: str) -> str:
    commit, device = (for_markdown(str(record.provenance.get(name))) for name in ("commit", "device"))
    return (
        f"**{record.experiment}**, profile {record.profile}: protocol {record.protocol}, commit {commit}, device "
        f"{device}.\n\nRepeat it: `{command}`"
    )


def _layout(reports: Any, position: int, across: int) -> Any:
    width = WIDTH // across
    return reports.Layout(x=width * (position % across), y=HEIGHT * (position // across), w=width, h=HEIGHT)


def _comparison(reports: Any) -> tuple[str, str, list[Any]]:
    """Return the panels of the overview run: the table of all runs; its charts are in the same run's workspace."""
    panel = reports.WeavePanelSummaryTable(table_name=OVERVIEW_TABLE, layout=reports.Layout(x=0, y=0, w=WIDTH, h=12))
    return "All runs in one table", OVERVIEW, [panel]


def _strengths(reports: Any) -> tuple[str, str, list[Any]]:
    """Return accuracy against MACs in each state, and whether strengths were chosen well."""
    metric = reports.SummaryMetric
    panels = [
        reports.ScatterPlot(
            title=f"{state}: top-1 against MACs",
            x=metric(f"{state}/macs"),
            y=metric(f"{state}/top1"),
            layout=_layout(reports, position, 3),
        )
        for position, state in enumerate(STATES)
    ]
    chosen = reports.ScatterPlot(
        title="recalibrated: top-1 against strength",
        x=metric("strength"),
        y=metric("recalibrated/top1"),
        log_x=True,
        layout=reports.Layout(x=0, y=HEIGHT, w=WIDTH, h=HEIGHT),
    )
    return "Accuracy against MACs and strength", RUN, [*panels, chosen]


def _training(reports: Any) -> tuple[str, str, list[Any]]:
    """Return the curves, one line per method."""
    curves = ("regularized/penalty", "regularized/val_top1", "finetune/train_loss", "finetune/val_top1")
    panels = [
        reports.LinePlot(title=curve, x="epoch", y=[curve], layout=_layout(reports, position, 2))
        for position, curve in enumerate(curves)
    ]
    return "While it trains: mean over runs, per method", RUN, panels
