"""The experiments: all there, each with its profiles, methods and reachable targets."""

from __future__ import annotations

import importlib
import math
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import oicsr
from benchmarks import cli
from benchmarks.config import Cell, ExperimentFileError, Phase
from benchmarks.datasets import DATASETS
from benchmarks.experiments import EXPERIMENTS, discover
from benchmarks.experiments import shared_profiles as recipes
from benchmarks.experiments.cifar10_resnet20_iterative import removed_in
from benchmarks.methods.registry import find_method
from benchmarks.models import MODELS, build_model, input_shape
from benchmarks.running.run import run_cell
from oicsr.tracing.attention import Granularity
from oicsr.tracing.trace import Scope, Verify
from tests.benchmarks.small import small_bench

ROOT = Path(__file__).parent.parent.parent
NAMES = [
    *(f"cifar10-{n}" for n in "cifarnet resnet18 resnet20 resnet56 resnet110 densenet89 vgg16 mobilenetv2 vit".split()),
    *(f"cifar100-{n}" for n in "resnet18 resnet20 resnet56 vgg19 preactsenet18 mobilenetv2".split()),
    *(f"imagenet-{n}" for n in "alexnet resnet50 mobilenetv2".split()),
]


@pytest.mark.parametrize("name", NAMES)
def test_experiments_have_what_they_need(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert {"quick", "paper"} <= experiment.profiles.keys()
    assert experiment.model in MODELS and experiment.dataset in DATASETS
    assert experiment.dataset == name.partition("-")[0] and experiment.model.endswith(name.partition("-")[2])
    text = importlib.import_module(f"benchmarks.experiments.{name.replace('-', '_')}").__doc__ or ""
    assert (f"`make {name}`" in text and "PAPER.md" in text) or "not in the paper" in text
    for label, profile in experiment.profiles.items():
        assert all(find_method(method) for method in profile.methods)
        if label.startswith("study-rate-"):  # trials of a learning rate, not a comparison
            continue
        assert {"oicsr-gl", "gl-out", "l1", "none", "random"} <= set(profile.methods)
    assert len(experiment.profile("paper").seeds) >= 3
    quick, paper = experiment.profile("quick"), experiment.profile("paper")
    assert quick.dense.epochs < paper.dense.epochs and (quick.train_images or 0) <= 3_000


def test_every_experiment_is_a_make_target_and_helpers_are_none() -> None:
    assert not hasattr(recipes, "EXPERIMENT")
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert set(NAMES) <= set(shown) and "recipes" not in shown


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["SEED=0", "RESULTS=here"], '"SEED" is no option; the options are ARGS'),
        (["macs_kept=0.5"], '"macs_kept" is no option'),
        (["SEEDS=0", "ARGS=--a b=c --d", "OICSR_DATA=there", "RESULTS=two words"], None),
    ],
)
def test_make_refuses_what_is_no_option(given: list[str], said: str | None) -> None:
    done = subprocess.run(["make", "--dry-run", "demo", *given], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode == 0) == (said is None)
    line = '--results "two words"  --seeds "0" --macs-kept "0.5"     --a b=c --d'
    assert said in done.stderr if said else line in done.stdout


@pytest.mark.parametrize("name", ["cifar10-resnet20-iterative", "cifar10-resnet20-iterative-two"])
def test_removing_in_steps_takes_as_many_epochs_as_removing_once(name: str) -> None:
    several, once = (EXPERIMENTS[key].profile("study") for key in (name, "cifar10-resnet20-repeat"))
    assert several.steps > 1 and several.steps * several.regularized.epochs == once.regularized.epochs
    as_once = replace(several, steps=1, regularized=once.regularized, methods=once.methods, macs_kept=once.macs_kept)
    assert as_once == once


def test_steps_that_would_change_the_number_of_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 3; it must divide the 10 regularised epochs"):
        removed_in(3)


def test_only_profiles_that_remove_heads_say_so() -> None:
    """Records of networks without attention stay those of their configuration."""
    channels, heads = (EXPERIMENTS[name].profile("cpu") for name in ("digits-vit", "digits-vit-heads"))
    assert heads == replace(channels, granularity="head")
    assert "granularity" not in channels.shared and heads.shared["granularity"] == "head"
    with pytest.raises(ValueError, match="granularity is 'row'; it must be one of"):
        replace(channels, granularity="row")  # type: ignore[arg-type]
    streams = replace(channels, scope="all", approximate="layer_norm")
    assert "approximate" not in channels.shared and streams.shared["approximate"] == "layer_norm"
    with pytest.raises(ValueError, match="approximate is 'batch_norm'; it must be one of"):
        replace(channels, approximate="batch_norm")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["digits-vit", "digits-vit-heads", "streams"])
@pytest.mark.filterwarnings("ignore:a norm with a mean runs over the channels")
def test_a_method_prunes_a_transformer_by_channels_and_by_heads(name: str, tmp_path: Path) -> None:
    experiment = EXPERIMENTS["digits-vit" if name == "streams" else name]
    profile = experiment.profile("cpu")
    profile = replace(profile, scope="all", approximate="layer_norm") if name == "streams" else profile
    short = replace(
        profile,
        dense=replace(profile.dense, epochs=1),
        regularized=replace(profile.regularized, epochs=1),
        finetune=replace(profile.finetune, epochs=1),
        train_images=64,
    )
    cell = Cell(replace(experiment, profiles={"cpu": short}), "cpu", "oicsr-gl", 0, 0.5)
    record = run_cell(small_bench(tmp_path), cell)
    assert record.status == "complete", record.failure
    assert record.states["pruned"]["macs"] / record.states["dense"]["macs"] == pytest.approx(0.5, rel=0.02)
    assert ("embed" in record.widths) == (name == "streams")
    assert any("attention" in coupling and after < before for coupling, (before, after) in record.widths.items())


def wanted() -> dict[tuple[str, Scope, Granularity], set[tuple[float, float]]]:
    """Return the targets and caps that are asked of each network: experiments and profiles share most of them."""
    found: dict[tuple[str, Scope, Granularity], set[tuple[float, float]]] = {}
    for name in (*NAMES, "digits-vit", "digits-vit-heads"):
        for profile in EXPERIMENTS[name].profiles.values():
            key = EXPERIMENTS[name].model, profile.scope, profile.granularity
            found.setdefault(key, set()).update((share, profile.max_removed) for share in profile.macs_kept)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scope", "granularity"), wanted())
def test_targets_are_within_reach(name: str, scope: Scope, granularity: Granularity) -> None:
    torch.manual_seed(0)
    model, inputs = build_model(name, 10), torch.zeros(1, *input_shape(name))
    # LayerNorms keep the width of their stream where couplings are proved; the others' are proved in test_surgery.py
    verify: Verify = "numeric" if "vit" in name else "off"
    couplings = oicsr.find_couplings(model, inputs, scope=scope, granularity=granularity, verify=verify)
    scores, before = [torch.rand(c.num_channels) for c in couplings], oicsr.count_macs(model, inputs)
    for share, max_removed in sorted(wanted()[name, scope, granularity]):
        plan = oicsr.select_channels(scores, couplings, model, inputs, macs_kept=share, max_removed=max_removed)
        kept = oicsr.count_macs(oicsr.remove_channels(model, plan), inputs) / before
        assert kept == pytest.approx(share, rel=0.011)


PHASE = Phase(epochs=2, learning_rate=0.1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("epochs", 1.5, "epochs is 1.5; it must be a whole number"),
        ("epochs", -1, "epochs is -1"),
        ("learning_rate", math.nan, "learning_rate is nan; it must be a number above 0"),
        ("learning_rate", math.inf, "learning_rate is inf"),
        ("learning_rate", "0.1", "learning_rate is '0.1'"),
        ("schedule", "linear", "schedule is 'linear'; it must be 'cosine' or 'step'"),
        ("warmup_epochs", -1, "warmup_epochs is -1"),
        ("weight_decay", -5e-4, "weight_decay is -0.0005"),
        ("momentum", 1.5, "momentum is 1.5"),
        ("decay", 0.0, "decay is 0.0"),
        ("milestones", (30, 60), r"milestones is \(30, 60\); it must be a tuple of shares of what follows the warm-up"),
        ("milestones", 0.5, "milestones is 0.5"),
    ],
)
def test_a_phase_that_cannot_be_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PHASE, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("methods", "none", r"methods is 'none'; it must be a tuple; .* as in \('none',\)"),
        ("methods", ("none", "l1", "none"), "names 'none' twice"),
        ("macs_kept", 0.5, "macs_kept is 0.5; it must be a tuple"),
        ("macs_kept", ("0.5",), r"macs_kept is '0.5'; .* must be in \(0, 1\]"),
        ("seeds", 3, "seeds is 3; it must be a tuple"),
        ("seeds", (0, 0), "names 0 twice"),
        ("seeds", (-1,), "seed is -1; it must be a whole number, 0 or more"),
        ("scope", "iner", r"scope is 'iner'; it must be one of \('inner', 'all'\)"),
        ("cap_of", "dense", r"cap_of is 'dense'; it must be one of \('original', 'current'\)"),
        ("pruning_schedule", "lin", "pruning_schedule is 'lin'"),
        ("precision", "fp16", "precision is 'fp16'"),
        ("batch_size", 0, "batch_size is 0; it must be 1 or more"),
        ("steps", 0, "steps is 0; it must be 1 or more"),
        ("steps", 2.0, "steps is 2.0"),
        ("round_to", 0, "round_to is 0"),
        ("train_images", 0, "train_images is 0; it must be None, for all"),
        ("max_removed", 2.0, r"max_removed is 2.0; it must be in \[0, 1\]"),
        ("grid_scale", -1.0, "grid_scale is -1.0; it must be a number above 0"),
        ("tries", 2, "tries is 2; it must be 3 or more"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(EXPERIMENTS["demo"].profile("quick"), **{name: value})  # type: ignore[arg-type]


EXPERIMENT_FILE = """
from dataclasses import replace
from benchmarks.experiments.demo import EXPERIMENT as DEMO
EXPERIMENT = replace(DEMO, name={!r})
"""


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"one": EXPERIMENT_FILE.format("mine"), "two": EXPERIMENT_FILE.format("mine")},
            "one.py and two.py both define the experiment 'mine'; give one of them another name",
        ),
        ({"one": "EXPERIMENT = 3"}, "EXPERIMENT in one.py is 3; it must be an Experiment"),
        (
            {"one": "from benchmarks.config import Phase\nEXPERIMENT = Phase(epochs=-1, learning_rate=0.1)"},
            "one.py defines no usable experiment: epochs is -1",
        ),
        (
            {"one": "from benchmarks.config import Phase\nEXPERIMENT = Phase(epoch=1, learning_rate=0.1)"},
            "one.py defines no usable experiment: .*unexpected keyword argument 'epoch'",
        ),
    ],
)
def test_a_file_that_defines_no_experiment_of_its_own_is_named(
    files: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"experiments_of_{tmp_path.name}"
    (tmp_path / package).mkdir()
    for name, text in {"__init__": "", "shared": "METHODS = ()", **files}.items():
        (tmp_path / package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ExperimentFileError, match=message):
        discover(package, [str(tmp_path / package)])


def test_files_of_experiments_are_found_and_those_of_shared_values_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = f"experiments_of_{tmp_path.name}"
    (tmp_path / package).mkdir()
    for name, text in {"__init__": "", "shared": "METHODS = ()", "one": EXPERIMENT_FILE.format("mine")}.items():
        (tmp_path / package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(discover(package, [str(tmp_path / package)])) == ["mine"]


def test_an_experiment_that_cannot_be_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build_parser(chosen: str | None = None) -> cli.Parser:
        raise ExperimentFileError("one.py defines no usable experiment: epochs is -1")

    monkeypatch.setattr(cli, "build_parser", build_parser)
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err == "python -m benchmarks: one.py defines no usable experiment: epochs is -1\n"
