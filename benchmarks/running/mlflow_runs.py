"""Runs in MLflow: on the server, or in the local store, that `MLFLOW_TRACKING_URI` names."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.config import Cell
from benchmarks.records.record import Record
from benchmarks.records.rows import EpochRow
from benchmarks.running.wandb_mirror import CURVES, notes_of

RUN_ID = "oicsr.run_id"

ADDRESS = "MLFLOW_TRACKING_URI"
NO_ADDRESS = f"; set {ADDRESS} to your server's address, or `pip install mlflow` for a store on this machine"


class MlflowRuns:
    """A run per record, in an MLflow experiment per experiment and profile; a repeated run replaces the earlier one."""

    def __init__(self) -> None:
        self._client: Any = None
        self._runs: dict[str, str] = {}

    def open(self, cell: Cell, config: dict[str, Any]) -> None:
        """Start a run, with its configuration as parameters."""
        with _one_kind_of_error():
            from mlflow import MlflowClient
            from mlflow.entities import Param

            self._client = client = self._client or MlflowClient()
            place = _experiment(client, f"{cell.experiment.name}-{cell.profile_name}")
            for earlier in client.search_runs([place], f"tags.`{RUN_ID}` = '{cell.run_id}'"):
                client.delete_run(earlier.info.run_id)
            tags = {RUN_ID: cell.run_id, "mlflow.note.content": notes_of(config) or ""}
            run = client.create_run(place, run_name=cell.run_id, tags=tags)
            self._runs[cell.label] = run.info.run_id
            client.log_batch(run.info.run_id, params=[Param(name, str(value)) for name, value in config.items()])

    def epoch(self, cell: Cell, row: EpochRow, number: int) -> None:
        """Write the curves."""
        self._log(cell, {f"{row.phase}/{curve}": getattr(row, curve) for curve in CURVES}, number)

    def finish(self, cell: Cell, record: Record) -> None:
        """Write the results of every state, and accuracy against MACs: there the step is millions of MACs."""
        for state, measured in record.states.items():
            self._log(cell, {f"{state}_{name}": value for name, value in measured.items()}, 0)
            point = {f"accuracy_against_million_macs/{state}": measured["top1"]}
            self._log(cell, point, int(measured["macs"]) // 10**6)
        self._end(cell.label, "FINISHED" if record.complete else "FAILED")

    def close(self) -> None:
        """End the runs that did not finish."""
        for label in list(self._runs):
            self._end(label, "KILLED")

    def _log(self, cell: Cell, values: dict[str, Any], step: int) -> None:
        with _one_kind_of_error():
            from mlflow.entities import Metric

            now = int(time.time() * 1000)  # milliseconds, as MLflow counts
            numbers = {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
            points = [Metric(name, value, now, step) for name, value in numbers.items() if not math.isnan(value)]
            self._client.log_batch(self._runs[cell.label], metrics=points)

    def _end(self, label: str, status: str) -> None:
        if (run := self._runs.pop(label, None)) is not None:
            with _one_kind_of_error():
                self._client.set_terminated(run, status)


def _experiment(client: Any, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


@contextmanager
def _one_kind_of_error() -> Iterator[None]:
    """Turn MLflow's own errors into RuntimeErrors, which a mirror catches.

    Raises:
        RuntimeError: MLflow failed.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise RuntimeError(f"{error}{'' if ADDRESS in os.environ else NO_ADDRESS}") from error
