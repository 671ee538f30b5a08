"""A run of several removals that is stopped in any of its phases ends as one that never was, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.config import Cell, Phase
from benchmarks.faults.arena import results_of
from benchmarks.methods.registry import find_method
from benchmarks.records.record import Record, read_record, record_path
from benchmarks.records.rows import EpochRow
from benchmarks.running.run import run_cell, strength_of
from benchmarks.running.stages import Stage, stages_of
from benchmarks.running.stopping import Control, Stopped
from tests.benchmarks.small import small_bench, small_cell

pytestmark = pytest.mark.xdist_group("iterative")  # the whole runs are made once, by one worker

PHASES = {"regularized": Phase(2, 0.02), "finetune": Phase(2, 0.01)}  # two steps an epoch


@dataclass
class Stop:
    """Asks to stop at a question after an epoch: 1 is the next one."""

    phase: str
    step: int
    epoch: int
    question: int
    reached: bool = False

    def __call__(self) -> bool:
        """Return whether the moment has come; it comes once."""
        self.question -= self.reached
        return self.reached and self.question == 0

    def epoch_done(self, cell: Cell, stage: Stage, row: EpochRow, *, cached: bool) -> None:
        self.reached |= (stage.name, stage.step, row.epoch) == (self.phase, self.step, self.epoch)

    def run_started(self, cell: Cell, stages: Sequence[Stage]) -> None: ...

    def waiting(self, cell: Cell, reason: str) -> None: ...

    def run_finished(self, cell: Cell, record: Record, history: Sequence[EpochRow]) -> None: ...


# The place, when the question comes, and what the checkpoints hold then: finished stages, and of the next one whole
# epochs and steps. A stage is evaluated at its end; a network is evaluated, and asks, after each removal too.
PLACES = {
    "within the first training": (("regularized", 0, 1, 3), (1, 1, 1)),
    "between removals, after the first": (("regularized", 0, 2, 3), (2, 0, 0)),
    "within the second training": (("regularized", 1, 1, 3), (2, 1, 1)),
    "between removals, after the second": (("regularized", 1, 2, 2), (3, 0, 0)),
    "recalibrating": (("regularized", 2, 2, 4), (4, 0, 0)),
    "within fine-tuning": (("finetune", 3, 1, 3), (4, 1, 1)),
}


def iterative(method: str) -> Cell:
    return small_cell(method, steps=3, macs_kept=0.4, rescale="dense-norm", **PHASES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folders of the runs that were never stopped, by method."""
    folders = {}
    for method in ("oicsr-gl", "greg1"):
        folders[method] = tmp_path_factory.mktemp(method)
        run_cell(small_bench(folders[method]), iterative(method))
    return folders


def outcome(folder: Path, cell: Cell) -> tuple[Any, str]:
    return results_of(record_path(folder / "results", cell))


def states(folder: Path, cell: Cell) -> list[dict[str, Any] | None]:
    """Return the newest checkpoint of each stage."""
    bench = small_bench(folder)
    stages = stages_of(cell, find_method(cell.method), strength_of(bench, cell).value, "cpu")
    return [bench.store.load(stage.key) for stage in stages]


def progress(found: Sequence[dict[str, Any] | None]) -> tuple[int, int, int]:
    """Return how many stages are finished, and the epochs and steps of the one after."""
    finished = sum(state is not None and "scores" in state for state in found)
    state = (found[finished] if finished < len(found) else None) or {"epoch": 0}
    return finished, state["epoch"], state.get("part", {}).get("steps", 0)


# the second method's regulariser has a state of its own, and depends on what the next removal will take
@pytest.mark.parametrize(
    ("method", "place"),
    [
        *(pytest.param("oicsr-gl", place, marks=() if "second" in place else pytest.mark.slow) for place in PLACES),
        *(pytest.param("greg1", place, marks=pytest.mark.slow) for place in PLACES if "second" in place),
    ],
)
def test_stopped_in_any_phase_it_ends_as_one_that_never_was(
    tmp_path: Path, whole: dict[str, Path], method: str, place: str
) -> None:
    cell, (moment, held) = iterative(method), PLACES[place]
    stop = Stop(*moment)
    with pytest.raises(Stopped, match="interrupted"):
        run_cell(small_bench(tmp_path, control=Control(asked=stop), observers=[stop]), cell)
    assert progress(states(tmp_path, cell)) == held
    assert not record_path(tmp_path / "results", cell).exists()
    run_cell(small_bench(tmp_path), cell)
    assert outcome(tmp_path, cell) == outcome(whole[method], cell)
    for ours, theirs in zip(states(tmp_path, cell), states(whole[method], cell), strict=True):
        assert ours is not None and theirs is not None
        assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])


def test_the_run_has_what_the_places_are_named_after(whole: dict[str, Path]) -> None:
    record = read_record(record_path(whole["oicsr-gl"] / "results", iterative("oicsr-gl")))
    assert [removal["step"] for removal in record.removals] == [0, 1, 2]
    assert record.epochs == {"dense": 1, "regularized": 6, "finetune": 2}
    assert len(states(whole["oicsr-gl"], iterative("oicsr-gl"))) == 5
