"""The W&B report: its panels show metrics that runs really log. The package that makes it is
replaced by a recorder in the first tests; the last uses the real one, and a stand-in for the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cli
from benchmarks.escape import for_markdown
from benchmarks.records.record import Record
from benchmarks.running.run import run_cell
from benchmarks.running.run_config import record_config
from benchmarks.running.wandb_mirror import (
    CURVES,
    OVERVIEW_TABLE,
    PHASES,
    Place,
    log_overview,
    log_result,
    notes_of,
    overview_row,
)
from benchmarks.running.wandb_report import NEEDS, make_report
from tests.benchmarks.fakes import fake_record
from tests.benchmarks.small import small_bench, small_cell
from tests.benchmarks.test_wandb_replay import FakeRun
from tests.benchmarks.wandb_server import ENTITY, StandIn, stand_in

ROOT = Path(__file__).parents[2]
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
    with pytest.raises(ValueError, match=r"pip install '\.\[wandb-report\]'"):
        make_report(PLACE, fake_record(small_cell("oicsr-gl")), "command")
    assert "wandb-workspaces" in NEEDS


def test_what_is_published_online_reaches_the_server(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    record = run_cell(bench, small_cell("oicsr-gl"))
    assert record.complete
    command = [sys.executable, "-m", "benchmarks", "publish", "--results", str(bench.results), "--wandb", "online"]
    command += ["--entity", ENTITY, "--folder", str(tmp_path / "wandb"), "--report"]
    with stand_in() as server:
        account = {"WANDB_BASE_URL": server.address, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(ROOT)}
        outputs = []
        for _ in range(2):
            done = subprocess.run(
                command, cwd=tmp_path, env=os.environ | account, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            outputs.append(done.stdout)
    check_runs(server, record)
    check_reports(server)
    assert "2 W&B runs written, 0 unchanged" in outputs[0] and "0 W&B runs written, 2 unchanged" in outputs[1]
    assert all(f"report: {server.address}/team/oicsr/reports/small-quick" in output for output in outputs)


def check_runs(server: StandIn, record: Record) -> None:
    """The run has its configuration, tags, curves and results; the overview has its tables."""
    (run,) = [run for run in server.runs.values() if run["jobType"] == "run"]
    (overview,) = [run for run in server.runs.values() if run["jobType"] == "overview"]
    config = {name: entry["value"] for name, entry in json.loads(run["config"]).items()}
    assert run["groupName"] == overview["groupName"] == "small-quick" and "oicsr-gl" in run["tags"]
    assert config["strength"] == record.strength and config["commit"] == record.provenance["commit"]
    points = server.history(run["name"])
    assert [point["epoch"] for point in points if "dense/val_top1" in point] == [1]
    tops = {name: value for point in points for name, value in point.items() if name.startswith("accuracy_against")}
    assert tops == {f"accuracy_against_macs/{state}": measured["top1"] for state, measured in record.states.items()}
    assert any(OVERVIEW_TABLE in artifact["artifactCollectionName"] for artifact in server.artifacts)


def check_reports(server: StandIn) -> None:
    """The second report replaces the first; both show runs of the group, in panels that the server understands."""
    first, second = server.reports
    assert first["id"] is None and second["id"] == "report1"
    assert first["displayName"] == "small-quick: accuracy against MACs" and first["entityName"] == ENTITY
    grids = [block["metadata"] for block in first["spec"]["blocks"] if block["type"] == "panel-grid"]
    panels = [panel for grid in grids for panel in grid["panelBankSectionConfig"]["panels"]]
    kinds = [panel["viewType"] for panel in panels]
    assert kinds == ["Weave", *["Scatter Plot"] * 4, *["Run History Line Plot"] * 4]
    assert [panel["config"]["xAxis"] for panel in panels[1:4]] == [
        f"summary:{state}/macs" for state in ("pruned", "recalibrated", "finetuned")
    ]
    filters = [json.dumps(runs["filters"]) for grid in grids for runs in grid["runSets"]]
    assert len(filters) == 3 and all('"small-quick"' in text and '"jobType"' in text for text in filters)


def test_a_report_needs_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["publish", "demo", "--report"]) == 2
    assert "add --wandb online" in capsys.readouterr().err
