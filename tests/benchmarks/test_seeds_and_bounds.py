"""Random controls that differ by seed, dropout that does not depend on what was cached, targets at a claim's bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from benchmarks.analysis.claims import CLAIMS
from benchmarks.analysis.strata import rows_of, strata_of
from benchmarks.models import MODELS
from benchmarks.records.histories import Details
from benchmarks.running.run import run_cell
from tests.benchmarks.small import small_bench, small_cell
from tests.benchmarks.synthetic import experiment, records_of


def test_random_channels_differ_between_seeds_and_not_within_one(tmp_path: Path) -> None:
    """Were the scores the same for every seed, so would be the width of every layer."""
    bench = small_bench(tmp_path)
    widths = [run_cell(bench, small_cell("random", seed=seed)).widths for seed in (0, 1, 2)]
    assert run_cell(small_bench(tmp_path / "again"), small_cell("random", seed=0)).widths == widths[0]
    assert widths[0].keys() == widths[1].keys() == widths[2].keys() != set()
    assert widths[0] != widths[1] != widths[2] != widths[0]


class _WithDropout(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.dropout, self.fc = nn.Dropout(0.5), nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.relu(self.conv1(x)))
        return self.fc(self.dropout(torch.relu(self.conv2(x)).mean((2, 3))))


@pytest.mark.parametrize("earlier", ["dense only", "dense and regularized"])
def test_dropout_is_the_same_whether_or_not_earlier_stages_were_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    monkeypatch.setitem(MODELS, "with-dropout", _WithDropout)
    cell = small_cell("none")
    cell = replace(cell, experiment=replace(cell.experiment, model="with-dropout"))
    torch.manual_seed(1)
    alone = run_cell(small_bench(tmp_path / "alone"), cell)
    bench = small_bench(tmp_path / "second")
    other = replace(cell, method="gl-out") if earlier == "dense only" else replace(cell, macs_kept=0.68)
    assert run_cell(bench, other).complete
    torch.manual_seed(2)
    after_another = run_cell(bench, cell)
    assert alone.complete and after_another.complete
    for state in ("dense", "regularized", "pruned", "finetuned"):
        assert alone.states[state]["top1"] == after_another.states[state]["top1"], state
    sums = [record.states["finetuned"]["weights_sha256"] for record in (alone, after_another)]
    assert sums[0] == sums[1]


@pytest.mark.parametrize(("bound", "targets"), [(0.5, {0.5, 0.3}), (0.49, {0.3}), (0.7, {0.7, 0.5, 0.3})])
def test_a_target_at_the_bound_of_a_claim_belongs_to_it(bound: float, targets: set[float]) -> None:
    records = records_of(experiment(macs_kept=(0.7, 0.5, 0.3)))
    claim = replace(next(c for c in CLAIMS if c.id == "1"), highest_macs_kept=bound)
    [[stratum]] = strata_of(claim, rows_of(records), Details(Path("nowhere"))).values()
    seen = {float(run.split("keep")[1].split("-")[0]) / 100 for run in stratum.runs}
    assert seen == targets


class _TellsSeeds(_WithDropout):
    """Keeps the seed of the random state that dropout draws from, in the order of the training steps."""

    seeds: ClassVar[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():  # and not in a trial of couplings
            self.seeds.append(torch.initial_seed())
        return super().forward(x)


def test_dropout_draws_from_a_seed_of_its_own_in_every_stage_and_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tells-seeds", _TellsSeeds)
    seen = []
    for seed in (0, 1):
        cell = small_cell("none", seed=seed)
        monkeypatch.setattr(_TellsSeeds, "seeds", [])
        cell = replace(cell, experiment=replace(cell.experiment, model="tells-seeds"))
        assert run_cell(small_bench(tmp_path / str(seed)), cell).complete
        seen.append(list(dict.fromkeys(_TellsSeeds.seeds)))
    assert [len(seeds) for seeds in seen] == [3, 3]  # dense, regularized, finetuned
    assert set(seen[0]).isdisjoint(seen[1])
