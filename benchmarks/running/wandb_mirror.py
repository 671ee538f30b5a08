"""Weights & Biases as a mirror of the records, never their source; offline unless asked otherwise.

One W&B run per record, with an id derived from experiment and run: a resumed run or a later `publish` writes the same
W&B run, and writing it again replaces it. If W&B fails, training continues.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from benchmarks.config import PROTOCOL, Cell, digest
from benchmarks.escape import for_markdown
from benchmarks.records.record import STATES, Record, find_records
from benchmarks.records.rows import PHASES, EpochRow
from benchmarks.running.run_config import run_config
from benchmarks.running.stages import Stage

Mode = Literal["online", "offline", "disabled"]

PROJECT = "oicsr"

COLUMNS = ("method", "seed", "macs_kept", "macs", "params", *(f"{state}_top1" for state in STATES))

CURVES = ("learning_rate", "train_loss", "penalty", "train_top1", "val_loss", "val_top1")

MACS, ACCURACY = "macs", "accuracy_against_macs"  # `define_metric` draws the second over the first

RUN, OVERVIEW = "run", "overview"  # job types

OVERVIEW_TABLE = "accuracy_against_macs_table"

INIT_SECONDS = 30  # how long W&B may take to answer before it is given up


class WandbWarning(UserWarning):
    """Something could not be written to W&B; the records are not affected."""


@dataclass(frozen=True)
class Place:
    """Where W&B runs go.

    Attributes:
        mode: `"offline"`: into a folder, for `wandb sync` later. `"online"`: needs `wandb login`.
        folder: Where W&B keeps its files.
        project: The project of all runs.
        entity: User or team; None: the one logged in.
    """

    mode: Mode
    folder: Path
    project: str = PROJECT
    entity: str | None = None


def wandb_id(experiment: str, run_id: str) -> str:
    """Return the id of the W&B run of a record."""
    return digest(["W&B run", experiment, run_id])


def open_run(place: Place, experiment: str, profile: str, name: str, kind: str, config: dict[str, Any]) -> Any:
    """Open a W&B run; under a W&B agent, use the agent's."""
    import wandb

    place.folder.mkdir(parents=True, exist_ok=True)
    run = wandb.init(
        project=place.project,
        entity=place.entity,
        id=None if os.environ.get("WANDB_SWEEP_ID") else wandb_id(experiment, name),
        group=f"{experiment}-{profile}",
        name=name,
        job_type=kind,
        tags=tags_of(config),
        notes=notes_of(config),
        mode=place.mode,
        dir=str(place.folder),
        config=config,
        settings=wandb.Settings(silent=True, console="off", disable_git=True, init_timeout=INIT_SECONDS),
        reinit="create_new",  # several runs may be open at a time, one per process that trains
    )
    define_charts(run)
    return run


def tags_of(config: Mapping[str, Any]) -> list[str]:
    """Return the tags of a run: what people filter by."""
    names = ("experiment", "profile", "method", "model", "dataset")
    tags = [str(config[name]) for name in names if config.get(name)]
    if "macs_kept" in config:
        tags.append(f"{100 * config['macs_kept']:g} % of the MACs")
    return [tag[:64] for tag in dict.fromkeys(tags)]  # W&B takes 64 characters


def notes_of(config: Mapping[str, Any]) -> str | None:
    """Return a sentence that says what the run is, in Markdown as W&B shows it; None for an overview."""
    if "method" not in config:
        return None
    source = for_markdown(str(config.get("strength_source")))
    strength = f", strength {config['strength']:g} ({source})" if "strength" in config else ""
    return (
        f"{config['method']} on {config['experiment']} ({config['profile']}), seed {config['seed']}, "
        f"{100 * config['macs_kept']:g} % of the MACs{strength}"
    )


def define_charts(run: Any) -> None:
    """Say what W&B draws over what: curves over epochs, accuracy over MACs."""
    run.define_metric("epoch", hidden=True)
    for phase in PHASES:
        run.define_metric(f"{phase}/*", step_metric="epoch")
        run.define_metric(f"{phase}/val_top1", step_metric="epoch", summary="last")
    run.define_metric(MACS, hidden=True)
    run.define_metric(f"{ACCURACY}/*", step_metric=MACS, summary="last")


def log_epoch(run: Any, row: EpochRow, number: int) -> None:
    """Log a point of the curves; `number` counts the epochs of all phases."""
    run.log({"epoch": number, **{f"{row.phase}/{curve}": getattr(row, curve) for curve in CURVES}})


def log_result(run: Any, record: Record) -> None:
    """Write the results to the summary, where W&B's charts and tables find them."""
    values: dict[str, Any] = {"status": record.status, "strength": record.strength}
    for state, measured in record.states.items():
        values |= {f"{state}/{name}": measured[name] for name in ("top1", "val_top1", "macs", "params")}
    if record.failure:
        values["failure"] = record.failure_reason
    run.summary.update(values)
    for state, measured in record.states.items():
        run.log({MACS: measured["macs"], f"{ACCURACY}/{state}": measured["top1"]})


def overview_row(record: Record) -> list[Any]:
    """Return the row of a complete record in the table of accuracy against MACs."""
    finetuned = record.states["finetuned"]
    tops = [record.states.get(state, {}).get("top1") for state in STATES]
    return [record.method, record.seed, record.macs_kept, finetuned["macs"], finetuned["params"], *tops]


def log_overview(run: Any, rows: Iterable[list[Any]]) -> None:
    """Log accuracy against MACs as a table, and a chart before and after fine-tuning."""
    import wandb

    table = wandb.Table(columns=list(COLUMNS), data=list(rows))
    charts = {
        f"accuracy_against_macs/{state}": wandb.plot.scatter(
            table, "macs", f"{state}_top1", title=f"{state}: top-1 against MACs"
        )
        for state in ("pruned", "finetuned")
    }
    run.log({OVERVIEW_TABLE: table, **charts, **_curves(table.data)})


def _curves(rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Return one chart per state: a line per method, means over seeds, MACs against top-1."""
    import wandb

    charts = {}
    for state in ("pruned", "recalibrated", "finetuned"):
        points: dict[tuple[str, float], list[tuple[float, float]]] = {}
        for row in rows:
            values = dict(zip(COLUMNS, row, strict=True))
            if values[f"{state}_top1"] is not None:
                point = float(values["macs"]), float(values[f"{state}_top1"])
                points.setdefault((values["method"], values["macs_kept"]), []).append(point)
        means: list[Any] = [
            [method, len(found), *(sum(column) / len(found) for column in zip(*found, strict=True))]
            for (method, _), found in sorted(points.items())
        ]
        if means:
            table = wandb.Table(columns=["method", "seeds", "macs", "top1"], data=means)
            title = f"{state}: mean top-1 against MACs"
            charts[f"mean_accuracy_against_macs/{state}"] = wandb.plot.line(
                table, "macs", "top1", stroke="method", title=title
            )
    return charts


class WandbSink:
    """Mirrors events into W&B; after a failure it warns once and stops mirroring.

    Args:
        mode: See `Place`.
        folder: Where W&B keeps its files.
        tuning: Where strengths are read.
        results: Whose records of earlier commands belong into the overview, too; None: those of this command alone.
    """

    def __init__(
        self, mode: Mode, folder: Path, tuning: Path = Path("results/tuning"), results: Path | None = None
    ) -> None:
        self._place, self._tuning, self._results = Place(mode, folder), tuning, results
        self._runs: dict[str, Any] = {}
        self._epochs: dict[str, int] = {}
        self._rows: dict[tuple[str, str], dict[str, list[Any]]] = {}
        self._broken = mode == "disabled"

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None:
        """Open the W&B run."""
        self._guarded(lambda: self._open(cell))

    def _open(self, cell: Cell) -> None:
        if cell.label not in self._runs:  # a run whose worker died starts twice
            arguments = cell.experiment.name, cell.profile_name, cell.run_id, RUN, run_config(cell, self._tuning)
            self._runs[cell.label] = open_run(self._place, *arguments)
        self._epochs[cell.label] = 0

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        """Log a point of the curves."""
        self._epochs[cell.label] = number = self._epochs.get(cell.label, 0) + 1
        self._guarded(lambda: log_epoch(self._runs[cell.label], row, number))

    def waiting(self, cell: Cell, reason: str) -> None:
        """Do nothing: curves do not show it."""

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None:
        """Write the results and end the W&B run."""
        if record.complete:
            self._rows.setdefault((cell.experiment.name, cell.profile_name), {})[cell.run_id] = overview_row(record)
        self._guarded(lambda: self._finish(cell.label, record))

    def _finish(self, label: str, record: Record) -> None:
        run = self._runs.pop(label)
        log_result(run, record)
        run.finish(exit_code=0 if record.complete else 1)

    def close(self) -> None:
        """Log accuracy against MACs of all recorded runs of these experiments; end all W&B runs, stopped ones too."""
        for run in self._runs.values():
            self._guarded(run.finish)
        if not os.environ.get("WANDB_SWEEP_ID"):
            for (experiment, profile), rows in self._rows.items():
                self._guarded(partial(self._overview, experiment, profile, rows))
        self._runs, self._rows = {}, {}

    def _overview(self, experiment: str, profile: str, rows: Mapping[str, list[Any]]) -> None:
        earlier = find_records(self._results, [experiment]).records if self._results else []
        present = [r for r in earlier if r.complete and r.profile == profile and r.protocol == PROTOCOL]
        rows = {**{record.run_id: overview_row(record) for record in present}, **rows}
        run = open_run(self._place, experiment, profile, f"{profile}-overview", OVERVIEW, {"experiment": experiment})
        log_overview(run, rows.values())
        run.finish()

    def _guarded(self, action: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            action()
        except wandb_errors() as error:
            self._broken = True
            message = f"W&B failed ({type(error).__name__}: {error}); training continues, and the records are complete"
            warnings.warn(message, WandbWarning, stacklevel=3)


def wandb_errors() -> tuple[type[BaseException], ...]:
    """Return what W&B may raise: its own errors, and those of disks, sockets and missing packages."""
    plain = (ImportError, OSError, RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)
    try:
        import wandb
    except ImportError:
        return plain
    return (wandb.Error, *plain)
