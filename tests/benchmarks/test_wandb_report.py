"""The W&B report: its panels show metrics that runs really log. The package that saves it is replaced by a recorder."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cli
from benchmarks.escape import for_markdown
from benchmarks.running.run_config import record_config
from benchmarks.running.wandb_mirror import (
    CURVES,
    PHASES,
    Place,
    log_overview,
    log_result,
    notes_of,
    overview_row,
)
from benchmarks.running.wandb_report import NEEDS, make_report
from tests.benchmarks.fakes import fake_record
from tests.benchmarks.small import small_cell
from tests.benchmarks.test_wandb_replay import FakeRun

PLACE = Place("online", Path("wandb"), entity="team")


class Part(SimpleNamespace):
    """Whatever is made, with its arguments."""

    def __init__(self, kind: str, *values: Any, **named: Any) -> None:
        super().__init__(kind=kind, values=values, **named)


class Recorder:
    def __getattr__(self, kind: str) -> Any:
        return lambda *values, **named: Part(kind, *values, **named)


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", Recorder())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports", SimpleNamespace())  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "wandb_workspaces", SimpleNamespace())  # type: ignore[arg-type]
    return make_report(PLACE, fake_record(small_cell("oicsr-gl")), "python -m benchmarks run small")


def test_every_panel_shows_a_metric_that_is_logged(report: Any, tmp_path: Path) -> None:
    record = fake_record(small_cell("oicsr-gl"))
    run = FakeRun()
    log_result(run, record)
    log_overview(run, [overview_row(record)])
    curves = {f"{phase}/{curve}" for phase in PHASES for curve in CURVES}
    tables = {name for point in run.logged for name in point}
    panels = [panel for block in report.blocks if block.kind == "PanelGrid" for panel in block.panels]
    assert len(panels) == 9
    for panel in panels:
        if panel.kind == "ScatterPlot":
            assert panel.x.values[0] in run.summary and panel.y.values[0] in run.summary
        elif panel.kind == "LinePlot":
            assert set(panel.y) <= curves and panel.x == "epoch"
        else:
            assert panel.table_name in tables


def test_report_is_of_one_group_and_says_how_to_repeat_it(report: Any) -> None:
    runsets = [runs for block in report.blocks if block.kind == "PanelGrid" for runs in block.runsets]
    assert {runs.filters for runs in runsets} == {
        "group = 'small-quick' and jobType = 'run'",
        "group = 'small-quick' and jobType = 'overview'",
    }
    assert report.blocks[0].text.endswith("Repeat it: `python -m benchmarks run small`") and report.entity == "team"


def test_texts_of_records_make_no_markup(report: Any) -> None:
    text = "![see](https://example.com/track.png) <script>`x`\n# Heading"
    record = fake_record(small_cell("oicsr-gl"), provenance={"commit": text, "device": text}, strength_source=text)
    about = make_report(PLACE, record, "python -m benchmarks run small").blocks[0].text
    notes = notes_of(record_config(record))
    for shown in (about, notes or ""):
        assert for_markdown(text) in shown
        assert not any(part in shown for part in ("![see](https:", "<script", "\n# "))


def test_panels_do_not_cover_each_other(report: Any) -> None:
    for block in report.blocks:
        if block.kind == "PanelGrid":
            cells = [
                (x, y)
                for panel in block.panels
                for x in range(panel.layout.x, panel.layout.x + panel.layout.w)
                for y in range(panel.layout.y, panel.layout.y + panel.layout.h)
            ]
            assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="pip install wandb-workspaces"):
        make_report(PLACE, fake_record(small_cell("oicsr-gl")), "command")
    assert "wandb-workspaces" in NEEDS


def test_a_report_needs_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", "demo", "--report"]) == 2
    assert "add --wandb online" in capsys.readouterr().err
