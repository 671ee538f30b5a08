"""What a run says beyond accuracy: energies of channels, removals, compute, MACs as others count them."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from benchmarks.models.mac_conventions import count_macs_with_norm_pool
from benchmarks.records.record import record_path
from benchmarks.running.channel_energies import channel_rows, describe_structure, imbalance, mark_kept
from benchmarks.running.run import run_cell
from oicsr import PruningPlan, count_macs, find_couplings
from tests.benchmarks.small import small_bench, small_cell


def test_macs_of_resnet50_with_norm_and_pool() -> None:
    model = torchvision.models.resnet50()
    assert count_macs_with_norm_pool(model, torch.zeros(1, 3, 224, 224)) == 4_111_512_576


@pytest.mark.parametrize("images", [1, 3])
def test_norm_counts_two_per_element_and_pooling_one_per_input(images: int) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.pool = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pool(self.norm(self.conv(x))).mean((2, 3)) + self.conv(x).mean((-1, -2))

    inputs = torch.zeros(images, 1, 8, 8)
    values = 4 * 6 * 6
    extras = 2 * values + values + 4 + values  # norm, adaptive pooling, a mean over 1x1, a mean over 6x6
    assert count_macs_with_norm_pool(Net(), inputs) == count_macs(Net(), inputs) + extras


def test_a_run_notes_removals_compute_and_channels(tmp_path: Path) -> None:
    bench, cell = small_bench(tmp_path), small_cell(steps=2)
    record = run_cell(bench, cell)
    states = record.states
    assert [removal["step"] for removal in record.removals] == [0, 1]
    assert record.removals[0]["val_top1_before"] == states["regularized"]["val_top1"]
    assert record.removals[1]["val_top1_after"] == states["pruned"]["val_top1"]
    dense, between, small = states["dense"]["macs"], record.removals[0]["macs"], record.removals[1]["macs"]
    assert dense > between > small == states["pruned"]["macs"]
    images = 128  # two batches of 64, one epoch a stage
    expected = {
        "dense": 3 * images * dense,
        "regularized": 3 * images * (dense + between),
        "finetune": 3 * images * small,
    }
    assert record.compute == {**expected, "total": sum(expected.values())}
    assert states["dense"]["macs"] < states["dense"]["macs_with_norm_pool"] < 1.1 * states["dense"]["macs"]
    assert record.structure.keys() == {"dense", "regularized"}
    with record_path(bench.results, cell).with_name("channels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == record.structure["dense"]["channels"]
    kept = sum(after for _, after in record.widths.values())
    assert sum(row["kept"] == "1" for row in rows) == kept < len(rows)


def test_channels_are_written_for_the_first_seed_only(tmp_path: Path) -> None:
    bench = small_bench(tmp_path)
    second = small_cell(seed=1)
    run_cell(bench, second)
    assert record_path(bench.results, second).is_file()
    assert not record_path(bench.results, second).with_name("channels.csv").exists()


def test_energies_of_known_weights() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 1, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 2.0, 0.0]).reshape(3, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([3.0, 0.0, 0.0]).reshape(1, 3, 1, 1))
    couplings = find_couplings(model, torch.zeros(1, 1, 2, 2))
    rows = mark_kept(channel_rows(model, couplings), PruningPlan.from_kept(couplings, {couplings[0].name: (0, 2)}))
    assert [(row.out, row.inward, row.kept) for row in rows] == [(1, 9, True), (4, 0, False), (0, 0, True)]
    described = describe_structure(model, couplings)
    assert described["channels"] == 3 and described["near_zero"] == pytest.approx(1 / 3, abs=1e-6)
    assert described["cumulative"][0] == 0 and described["cumulative"][-1] == 1


def test_imbalance_by_hand() -> None:
    """Scales 1, 2 and -4, columns of norm 1, 1 and 2; the second channel goes: (0 + ln 2) / 2."""
    model = nn.Sequential(nn.Conv2d(1, 3, 1, bias=False), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([1.0, 2.0, -4.0]))
        model[2].weight.copy_(torch.tensor([[0.6, 1.0, 0.0], [0.8, 0.0, 2.0]]).reshape(2, 3, 1, 1))
    couplings = find_couplings(model, torch.zeros(2, 1, 2, 2))
    plan = PruningPlan.from_kept(couplings, {couplings[0].name: (0, 2)})
    assert imbalance(model, couplings, plan) == {"imbalance": pytest.approx(math.log(2) / 2, abs=1e-6)}


def test_without_normalisation_there_is_no_imbalance() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 1, 1))
    couplings = find_couplings(model, torch.zeros(1, 1, 2, 2))
    assert imbalance(model, couplings, PruningPlan.from_kept(couplings, {})) == {}
