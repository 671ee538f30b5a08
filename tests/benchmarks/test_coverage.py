"""The coverage table: honest rows, limits that hold, a complete list, a table that can be resumed."""

from __future__ import annotations

import argparse
import copy
import math
import os
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from benchmarks import cli
from benchmarks.commands import coverage as command
from benchmarks.coverage import examine as coverage
from benchmarks.coverage.networks import DETECTION, SEGMENTATION, TIMM, TORCHVISION, VIDEO
from benchmarks.coverage.table import CLASSES, COLUMNS, Row, read_rows, sentence
from benchmarks.coverage.tasks import outputs_of, task_of, training_loss
from benchmarks.models import build_model
from oicsr import Coupling, Member, trace_couplings
from tests.oicsr.test_surgery import check_invariance
from tests.slow import but_few_slow

INVARIANT = {  # depthwise, groups, squeeze-and-excitation, ghost features, aggregation
    "torchvision:mobilenet_v3_small": 32,
    "timm:regnety_002": 32,
    "timm:ghostnet_050": 32,
    "timm:dla46_c": 32,
}


@pytest.mark.parametrize("scope", ["inner", "all"])
@pytest.mark.parametrize("name", but_few_slow(INVARIANT, ["timm:ghostnet_050"]))
def test_invariance_of_networks_of_the_hubs(name: str, scope: str) -> None:
    torch.manual_seed(0)
    check_invariance(build_model(name, 10), (1, 3, INVARIANT[name], INVARIANT[name]), scope)


def test_lists_are_complete_and_known() -> None:
    assert len(TIMM) == len(set(TIMM)) >= 150
    assert [name for name in TIMM if not timm.is_model(name)] == []
    models = torchvision.models
    for module, names in (
        (models, TORCHVISION),
        (models.segmentation, SEGMENTATION),
        (models.detection, DETECTION),
        (models.video, VIDEO),
    ):
        assert sorted(names) == sorted(models.list_models(module=module))


@pytest.mark.parametrize("name", ["sequence:m5", "sequence:tcn"])
def test_networks_over_sequences_pass(name: str) -> None:
    row = coverage.examine(name)
    assert row["passed"] == "yes", row


def test_what_is_compared_depends_on_the_inputs_behind_any_number_of_layers() -> None:
    """With statistics at random, the outputs of RepVGG-A2 come to the same to 16 digits whatever it is shown."""
    torch.manual_seed(0)
    model, images = build_model("timm:repvgg_a2", CLASSES), torch.randn(2, 3, 64, 64)
    coverage.disturb(model, images)
    first, second = model(images).detach()
    assert not model.training and all(norm.momentum == 0.1 for norm in coverage.measured(model))
    assert (first - second).abs().max() > 1e-3 * first.abs().max()


def test_every_task_builds_its_networks_and_takes_a_training_step() -> None:
    """The smallest network of each; a map of scores is averaged, and what has no classes is drawn towards zero."""
    torch.manual_seed(0)
    shapes = {}
    for name in ("segmentation:lraspp_mobilenet_v3_large", "detection:ssdlite320_mobilenet_v3_large"):
        task = task_of(name)
        model = task.build(name, CLASSES)
        inputs = task.examples(model, name)
        shapes[name.partition(":")[0]] = [tuple(t.shape[:2]) for t in outputs_of(model(inputs))]
        assert coverage.takes_training_step(model, inputs)
    assert shapes["segmentation"] == [(2, CLASSES)]
    assert len(shapes["detection"]) == 6
    assert task_of("video:r3d_18").examples(nn.Identity(), "video:r3d_18").shape == (2, 3, 16, 112, 112)


def test_the_loss_of_a_training_step() -> None:
    scores = torch.zeros(2, CLASSES, 3, 4)
    assert float(training_loss({"out": scores}, CLASSES)) == pytest.approx(math.log(CLASSES))
    maps = [torch.full((2, 5, 4, 4), 2.0), torch.full((2, 5, 2, 2), 3.0)]
    assert float(training_loss(maps, CLASSES)) == 4 + 9


def test_a_network_that_can_be_pruned_passes() -> None:
    row = coverage.examine("timm:test_resnet")
    assert row["passed"] == "yes", row
    assert int(row["macs_after"]) == pytest.approx(0.5 * int(row["macs_before"]), rel=0.01)
    assert float(row["invariance_error"]) < 1e-9 and row["train_step"] == "finite" and int(row["couplings"]) > 0


class Normalized(nn.Module):
    """LayerNorm over the channels that one layer hands to the next; the other ones are free."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 96, 3, padding=1), nn.Conv2d(96, 96, 3, padding=1)
        self.norm, self.fc = nn.LayerNorm(96), nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.two(torch.relu(self.one(x))).mean((2, 3))
        return self.fc(self.norm(x))


def test_channels_under_a_layer_norm_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = Normalized().eval(), torch.randn(2, 3, 8, 8)
    trace = trace_couplings(model, images)
    assert [c.name for c in trace.couplings] == ["one"]  # the channels of `two` are normalised together
    plan = coverage.random_plan(model, images, trace.couplings)
    assert coverage.invariance_error(copy.deepcopy(model), images, trace.couplings, plan) < 1e-9
    outputs = Member("fc.weight", 1, torch.arange(96), "in"), Member("two.weight", 0, torch.arange(96), "out")
    shift = Member("two.bias", 0, torch.arange(96), "out", counts=False)
    norm = [Member(f"norm.{name}", 0, torch.arange(96), "norm", counts=False) for name in ("weight", "bias")]
    forced = [*trace.couplings, Coupling("two", 96, (*outputs, shift, *norm))]
    inexact = coverage.random_plan(model, images, forced)
    assert coverage.invariance_error(model, images, forced, inexact) > 1e-6  # the check can fail


def test_a_network_that_cannot_be_pruned_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_prepare", lambda name: (nn.Flatten(), torch.zeros(2, 3, 4, 4)))
    row = coverage.examine("any")
    assert row["passed"] == "no" and row["reason"].startswith(("ValueError", "StopIteration", "RuntimeError"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "timm:resnet18typo"], "no timm model 'resnet18typo'. Did you mean 'resnet18"),
        (
            ["--networks", "timm:resnet18,torchvision:resnet19"],
            "no torchvision model 'resnet19'. Did you mean",
        ),
        (["--networks", "video:r3d_19"], "no video network 'r3d_19'. Did you mean 'r3d_18'"),
        (["--networks", "resnet18typo"], "no model 'resnet18typo'"),
        (["--attention", "--networks", "timm:vit_typo"], "no network of the attention table 'timm:vit_typo'"),
    ],
)
def test_a_network_that_does_not_exist_gets_no_row(
    tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["coverage", "--results", str(tmp_path), *arguments]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", ["nan", "inf", "0", "-1", "long"])
def test_a_limit_is_a_finite_time(limit: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["coverage", "--networks", "timm:resnet18", "--limit", limit])
    assert f"{limit!r} is not a finite number of seconds above 0" in capsys.readouterr().err


def test_the_sentence_counts_networks_of_the_list_alone() -> None:
    rows = {name: {"passed": "yes"} for name in ("timm:resnet18", "torchvision:vgg11")}
    tried = {"timm:test_resnet": {"passed": "no"}, "torchvision:resnet18typo": {"passed": "no"}}
    assert sentence(rows | tried) == sentence(rows) and "1 of 1 timm networks" in sentence(rows)


def busy(name: str) -> Row:
    while True:
        pass


def vanishing(name: str) -> Row:
    os._exit(3)


def raising(name: str) -> Row:
    raise KeyError("nothing foreseen")


def test_processes_are_held_to_their_limits() -> None:
    assert coverage.in_own_process(busy, "any", 1)[2] == "took more than 1 s"
    assert coverage.in_own_process(vanishing, "any", 5)[2] == "ended the process with exit code 3"
    row, seconds, stopped = coverage.in_own_process(raising, "any", 5)
    assert "nothing foreseen" in row["reason"] and seconds < 5 and not stopped


def test_a_table_resumes_and_says_what_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = []

    def cover(name: str, limit: float) -> Row:
        tried.append(name)
        passed = "yes" if name.endswith("18") else "no"
        row = {"network": name, "passed": passed, "reason": "" if passed == "yes" else "a | b"}
        return {column: row.get(column, "") for column in COLUMNS}

    def cover_peer(name: str, limit: float) -> Row:
        tried.append(f"peer {name}")
        return {"torch_pruning": "no", "torch_pruning_reason": "slow"}

    monkeypatch.setattr("benchmarks.commands.coverage.cover", cover)
    monkeypatch.setattr("benchmarks.commands.coverage.cover_peer", cover_peer)
    monkeypatch.setattr("benchmarks.commands.coverage._warm_up", lambda: None)
    for names, peer in (("timm:resnet18", ["--no-peer"]), ("torchvision:vgg11,timm:resnet18", [])):
        assert cli.main(["coverage", "--results", str(tmp_path), "--networks", names, *peer]) == 0
    assert tried == ["timm:resnet18", "torchvision:vgg11", "peer torchvision:vgg11", "peer timm:resnet18"]
    again = ["coverage", "--results", str(tmp_path), "--networks", "timm:resnet18", "--again", "--no-peer"]
    assert cli.main(again) == 0 and tried.pop() == "timm:resnet18"
    assert read_rows(tmp_path / "coverage.csv")["timm:resnet18"]["torch_pruning_reason"] == "slow"
    text = (tmp_path / "coverage.md").read_text()
    assert f"| timm | {len(TIMM)} | 1 | 1 | 100.0% of 1 | 0 | 0.0% of 1 |" in text
    assert f"| torchvision | {len(TORCHVISION)} | 1 | 0 | 0.0% of 1 | 0 | 0.0% of 1 |" in text
    assert "| torchvision:vgg13 | not run |" in text and r"a \| b" in text
    assert list(read_rows(tmp_path / "coverage.csv")) == ["torchvision:vgg11", "timm:resnet18"]
    widths = {line.count("|") - line.count(r"\|") for line in text.splitlines() if line.startswith("| torchvision:")}
    assert len(widths) == 1
    (tmp_path / "coverage.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a coverage table"):
        command.command(
            argparse.Namespace(
                results=tmp_path, networks=["timm:resnet18"], limit=1, again=False, no_peer=True, attention=False
            )
        )
