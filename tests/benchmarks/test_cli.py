"""The command line: help, suggestions, exit codes, plans, budgets, status and ad-hoc sweeps."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from benchmarks import cli
from benchmarks.commands import options
from benchmarks.commands.running import show
from benchmarks.config import Cell, Experiment, Phase
from benchmarks.datasets import DATASETS
from benchmarks.datasets.contract import MissingDataError
from benchmarks.experiments import EXPERIMENTS
from benchmarks.methods.registry import METHODS, find_method
from benchmarks.models import MODELS
from benchmarks.records.record import read_records, record_path, runs_folder, write_record
from benchmarks.running import stopping
from benchmarks.running.adhoc import (
    ExperimentError,
    find_any,
    known_experiments,
    parse_experiment,
    save_experiment,
)
from benchmarks.running.bench import Bench, load_splits
from benchmarks.running.cells import by_priority, cells_of
from benchmarks.running.console import ConsoleObserver, duration
from benchmarks.running.estimate import Estimate
from benchmarks.running.stages import stages_of
from benchmarks.running.stopping import budget_seconds, on_signals
from benchmarks.suggest import nearest
from tests.benchmarks import thousand
from tests.benchmarks.fakes import experiment_text, fake_history, fake_record, write_fakes
from tests.benchmarks.small import small_bench, small_cell, small_experiment

ROOT = str(Path(cli.__file__).parents[1])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(EXPERIMENTS, "small", small_experiment())
    monkeypatch.chdir(tmp_path)


def test_a_reader_that_has_had_enough_is_no_error_to_speak_of(tmp_path: Path) -> None:
    command = f"{sys.executable} -m benchmarks list; echo $? >{tmp_path}/code"
    done = subprocess.run(f"({command}) 2>{tmp_path}/said | true", shell=True, env=os.environ | {"PYTHONPATH": ROOT})
    assert done.returncode == 0
    assert (tmp_path / "said").read_text() == "" and (tmp_path / "code").read_text().strip() == "0"


def run(*arguments: str) -> int:
    return cli.main([*arguments, "--results", "r", "--checkpoints", "c", "--wandb", "disabled"])


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_option_says_its_default_or_that_it_is_a_switch(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    parser = cli.build_parser(command)
    with pytest.raises(SystemExit) as ended:
        parser.parse_args([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=--)", text)[1:]]
    assert entries or command == "list"
    for entry in entries:
        takes_value = re.match(r"--[a-z-]+ [A-Z{]", entry)
        required = re.match(r"--(models|datasets) ", entry)  # has no default
        assert not takes_value or required or "default" in entry, entry


def test_help_documents_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    assert all(code in text for code in ("Exit codes: 0:", "1:", "2:", "130:")) and "sweep" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "Did you mean 'run'"),
        (["run", "demmo"], "Did you mean 'demo'"),
        (["run"], "--pending"),
        (["run", "demo", "--methods", "oicsr-g1"], "Did you mean 'oicsr-gl'"),
        (["run", "demo", "--profile", "papr"], "no profile 'papr'"),
        (["run", "--pending", "--profile", "quickx"], "no profile 'quickx'. Did you mean 'quick'"),
        (["status", "--profile", "quickx"], "no profile 'quickx'. Did you mean 'quick'"),
        (["publish", "demmo"], "no experiment 'demmo'. Did you mean 'demo'"),
        (["publish", "--results", "nowhere"], "no records to publish under nowhere/runs"),
        (["run", "demo", "--macs-kept", "1.5"], r"must be in \(0, 1\]"),
        (["run", "demo", "--device", "tpu"], "cannot be used"),
        (["run", "demo", "--device", "meta"], "cannot be used"),
        (["run", "demo", "--address", "auto"], "--engine ray"),
        (["run", "demo", "--budget-minutes", "-1"], "more than 0"),
        (["sweep", "--models", "resnet21", "--datasets", "cifar10"], "resnet20"),
        (["sweep", "--models", "resnet20", "--datasets", "cifar"], "cifar10"),
        (["sweep", "--models", "resnet20", "--datasets", "digits"], "takes images of"),
        (["sweep", "--models", "resnet20", "--datasets", "cifar10", "--macs-kept", "1.5"], r"must be in \(0, 1\]"),
        (["sweep", "--models", "resnet20", "--datasets", "cifar10", "--epochs", "1"], "three numbers"),
    ],
)
def test_wrong_input_gets_an_error_with_a_suggestion(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--seeds", "4-2", "'4-2' counts down; write 2-4"),
        ("--seeds", "a", "not a list of seeds"),
        ("--seeds", "3-", "not a list of seeds"),
        ("--seeds", "²", "not a list of seeds"),
        ("--seeds", "-1", "not a list of seeds"),
        ("--seeds", "4294967296", "the largest seed is 4294967295"),
        ("--seeds", "9" * 5000, "the largest seed is 4294967295"),
        ("--seeds", "0-10000", "more than 10000 seeds"),
        ("--threads", "99999999", "at most 1024 threads"),
        ("--threads", "9" * 5000, "too large"),
        ("--jobs", "²", "integer of 1 or more"),
        ("--gpu-share", "nan", "share of a GPU"),
        ("--gpu-share", "-1", "share of a GPU"),
        ("--gpu-share", "1.5", "whole number of GPUs"),
        ("--gpu-share", "half", "share of a GPU"),
        ("--methods", ",", "names nothing"),
        ("--methods", "none,all", "'none,all' names all methods and some of them"),
        ("--macs-kept", "", "names nothing"),
        ("--macs-kept", "half", "not a comma-separated list"),
        ("--jobs", "0", "integer of 1 or more"),
    ],
)
def test_a_list_that_names_nothing_is_not_the_default(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "demo", option, value])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and message in error and error.count("\n") == 1


def test_largest_values_of_options_are_read() -> None:
    assert options.seeds("4294967295") == [2**32 - 1] and options.seeds("00000000000007, 2") == [7, 2]
    assert len(options.seeds("0-9999")) == 10_000
    assert options.threads("1024") == 1024
    assert options.gpu_share("0.25") == 0.25 and options.gpu_share("2") == 2


def test_what_is_named_twice_is_run_once() -> None:
    assert options.seeds("1,0-2,1") == [1, 0, 2] and options.names("none, l1,none") == ["none", "l1"]
    assert options.shares("0.5,0.3,0.50") == [0.5, 0.3]


def test_unknown_option_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "demo", "--wandb", "offline", "--retry-faild"])
    assert ended.value.code == 2 and "--retry-failed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--address", "auto"], ["--budget-minutes", "0"]])
def test_wrong_options_are_refused_where_nothing_is_left_to_run_too(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_fakes(Path("r"), cells_of(small_experiment(), "quick"))
    assert run("run", "small", *arguments) == 2
    assert arguments[0].removeprefix("--").partition("-")[0] in capsys.readouterr().err


def test_run_plan_status_and_failures_from_end_to_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("run", "small", "--plan") == 0
    text = capsys.readouterr().out
    assert re.search(r"plan: 3 of 3 runs to do, 7 epochs, about \d+ (s|min)\b", text)
    assert not Path("r").exists()

    asked = iter([False, False, True, True, True, True])
    with monkeypatch.context() as patch:
        patch.setattr(stopping.Control, "stop_reason", lambda self, s=0.0: "out of time" if next(asked) else None)
        assert run("run", "small", "--methods", "none", "--budget-minutes", "5") == 0
    text = capsys.readouterr().out
    assert "out of time: 1 run left" in text and "the same command continues" in text
    assert run("run", "small", "--methods", "none", "--pending") == 0
    failed = fake_record(small_cell("gl-out"), failure={"reason": "training diverged"})
    write_record(Path("r"), failed, fake_history())
    assert run("run", "small", "--methods", "none,gl-out") == 1
    text = capsys.readouterr().out
    assert "nothing to run" in text and "training diverged" in text and "--retry-failed" in text

    assert cli.main(["status", "small", "--results", "r", "--checkpoints", "c"]) == 0
    text = capsys.readouterr().out
    assert "small (quick): 3 runs: 1 done, 0 partial, 1 failed, 1 missing" in text
    assert re.search(r"about [\d.]+ s left", text) and "failed: quick-gl-out-keep50-seed0: training diverged" in text
    assert re.search(r"^  none +#$", text, re.MULTILINE) and re.search(r"^  gl-out +x$", text, re.MULTILINE)


def test_status_shows_progress_and_damage(capsys: pytest.CaptureFixture[str]) -> None:
    write_record(Path("r"), fake_record(small_cell("none")), fake_history())
    path = record_path(Path("r"), small_cell("none"))
    path.write_text(path.read_text()[:-9])
    from benchmarks.records.strengths import choose_strength
    from benchmarks.running.checkpoints import CheckpointStore

    cell = small_cell("oicsr-gl")
    strength = choose_strength(Path("nowhere"), cell, find_method(cell.method)).value
    store = CheckpointStore(Path("c"))
    for stage in stages_of(cell, find_method(cell.method), strength, "cpu")[:2]:
        progress = {"epoch": 1, "finished": stage.name == "dense", "seconds": [2.0], "machine": "m"}
        store.save(stage.key, {"epoch": 1}, progress)
    assert cli.main(["status", "small", "--results", "r", "--checkpoints", "c", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "1 partial" in text and "1 damaged" in text and "partial 67 %: quick-oicsr-gl" in text
    assert "regularized 1/1" in text


def test_status_counts_a_record_of_an_older_protocol_as_missing_as_run_does(capsys: pytest.CaptureFixture[str]) -> None:
    cell = small_cell("none")
    states = {name: state for name, state in fake_record(cell).states.items() if name != "recalibrated"}
    write_record(Path("r"), fake_record(cell, protocol=1, states=states), fake_history())
    assert cli.main(["status", "small", "--results", "r", "--checkpoints", "c", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "small (quick): 3 runs: 0 done, 0 partial, 0 failed, 3 missing" in text
    assert f"  missing: {cell.run_id}: its record is of protocol 1, 2 is current" in text
    assert run("run", "small", "--plan") == 0 and "3 of 3 runs to do" in capsys.readouterr().out


def test_pending_takes_experiments_by_priority() -> None:
    first = Experiment("first", "", "", "digits-resnet", "digits", small_experiment().profiles, priority=10)
    ordered = by_priority([*cells_of(small_experiment(), "quick"), *cells_of(first, "quick")])
    assert [cell.experiment.name for cell in ordered] == ["first"] * 3 + ["small"] * 3


def test_ad_hoc_sweep_leaves_what_an_experiment_leaves(capsys: pytest.CaptureFixture[str]) -> None:
    cross = ["sweep", "--models", "digits-resnet", "--datasets", "digits", "--template", "small"]
    assert run(*cross, "--methods", "none", "--macs-kept", "0.7", "--seeds", "0") == 0
    printed = capsys.readouterr().out
    name = "sweep-digits-digits-resnet"
    assert len(read_records(Path("r"), [name])) == 1
    assert (Path("r") / "tables" / f"{name}-quick.md").is_file()
    assert (Path("r") / "figures" / f"{name}-quick.svg").is_file()

    kept = find_any(name, Path("r"))
    assert name in known_experiments(Path("r")) and kept.profile("quick").macs_kept == (0.7,)
    assert f"sweeps/{name}.json" in printed

    more = [*cross, "--methods", "none", "--macs-kept", "0.5", "--seeds", "0", "--plan"]
    assert run(*more) == 0 and "1 of 1 runs to do" in capsys.readouterr().out
    assert run("run", name) == 0 and "nothing to run" in capsys.readouterr().out


CROSS = ["sweep", "--models", "digits-resnet", "--datasets", "digits", "--template", "small", "--methods", "none"]


def test_a_sweep_that_cannot_be_run_is_not_saved(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*CROSS, "--test-images", "999999") == 2
    shown = capsys.readouterr()
    assert "999999 test images were asked for" in shown.err and "saved as" not in shown.out
    assert not Path("r/sweeps").exists()


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_new_data_set_is_asked_what_its_images_are_like(
    plan: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "more-digits", DATASETS["digits"])
    cross = ["sweep", "--models", "digits-resnet,resnet20", "--datasets", "more-digits", "--template", "small"]
    assert run(*cross, *plan) == 2
    shown = capsys.readouterr()
    assert "'resnet20' takes images of (3, 32, 32), data set 'more-digits' has (1, 8, 8)" in shown.err
    assert "saved as" not in shown.out and not Path("r/sweeps").exists()


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_network_that_takes_other_images_is_refused_before_any_run(
    plan: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EXPERIMENTS, "small", replace(small_experiment(), model="resnet20"))
    assert run("run", "small", *plan) == 2
    message = "small: network 'resnet20' does not take the images of (1, 8, 8) that data set 'digits' has"
    assert message in capsys.readouterr().err and not Path("r/runs").exists()


def test_a_network_may_take_images_that_its_name_does_not_tell(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "my-net", MODELS["digits-plain"])  # said to be for CIFAR
    monkeypatch.setitem(EXPERIMENTS, "small", replace(small_experiment(), model="my-net"))
    assert run("run", "small", "--plan") == 0


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_saved_sweep_is_not_overwritten_by_one_of_other_values(
    plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_experiment(replace(small_experiment(), name="sweep-digits-digits-resnet"), Path("r"))
    before = path.read_bytes()
    assert run(*CROSS, "--epochs", "3,1,1", *plan) == 2
    error = capsys.readouterr().err
    assert "dense.epochs is 3, not 1. Move r/sweeps/sweep-digits-digits-resnet.json and its runs away" in error
    other = replace(find_any(path.stem, Path("r")), model="digits-plain")
    with pytest.raises(ExperimentError, match=r"model is 'digits-plain', not 'digits-resnet'\. Move .*--results"):
        save_experiment(other, Path("r"))
    assert path.read_bytes() == before
    more = {"quick": replace(other.profile("quick"), seeds=(1,), methods=("l1",))}
    save_experiment(replace(other, model="digits-resnet", profiles=more), Path("r"))
    gained = find_any(path.stem, Path("r")).profile("quick")
    assert gained.seeds == (0, 1) and gained.methods == ("oicsr-gl", "gl-out", "none", "l1")


@pytest.mark.parametrize("name", list(EXPERIMENTS))
def test_every_experiment_survives_its_text(name: str) -> None:
    experiment = EXPERIMENTS[name]
    assert parse_experiment(experiment_text(experiment), name) == experiment


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop("title"), "title: Field required"),
        (lambda e: e.update(colour="red"), "colour: Unexpected keyword argument, not 'red'"),
        (lambda e: e["profiles"]["quick"].update(batch_size=True), "profiles.quick.batch_size: .* integer, not 'True'"),
        (lambda e: e["profiles"]["quick"].update(macs_kept=[2.0]), r"macs_kept is 2.0; .* must be in \(0, 1\]"),
        (lambda e: e["profiles"]["quick"]["dense"].update(schedule="linear"), "dense.schedule: .*'cosine' or 'step'"),
        (lambda e: e.update(name="../x"), r"the experiment is called '../x'"),
        (lambda e: e.update(profiles={}), "no profiles"),
    ],
)
def test_a_wrong_value_in_a_kept_sweep_is_named_in_one_line(change: Callable[[Any], Any], message: str) -> None:
    values = json.loads(experiment_text(EXPERIMENTS["demo"]))
    change(values)
    with pytest.raises(ExperimentError, match=message) as caught:
        parse_experiment(json.dumps(values), "results/sweeps/x.json")
    assert str(caught.value).startswith("results/sweeps/x.json") and "\n" not in str(caught.value)


def test_sweep_takes_values_from_a_template_and_options() -> None:
    parser = cli.build_parser("sweep")
    from benchmarks.commands.options import choose_device
    from benchmarks.running.adhoc import make_experiments

    options = parser.parse_args(
        "sweep --models resnet20,vgg16 --datasets cifar10,cifar100 --methods all --macs-kept 0.7,0.5,0.3 --seeds 0-2 "
        "--epochs 3,2,1 --device cpu".split()
    )
    experiments = make_experiments(options, choose_device(options))
    assert [e.name for e in experiments] == [
        "sweep-cifar10-resnet20",
        "sweep-cifar10-vgg16",
        "sweep-cifar100-resnet20",
        "sweep-cifar100-vgg16",
    ]
    profile = experiments[0].profile("quick")
    assert profile.seeds == (0, 1, 2) and profile.macs_kept == (0.7, 0.5, 0.3) and "oicsr-gl" in profile.methods
    assert [p.epochs for p in (profile.dense, profile.regularized, profile.finetune)] == [3, 2, 1]


@pytest.mark.parametrize(
    ("dataset", "model", "template"),
    [
        ("cifar10", "resnet20", "cifar10-resnet20"),
        ("cifar10", "timm:resnet10t", "cifar10-resnet56"),
        ("cifar100", "timm:resnet10t", "cifar100-resnet56"),
        ("imagenet", "timm:resnet10t", "imagenet-resnet50"),
        ("imagefolder:pictures", "timm:resnet10t", "cifar10-resnet56"),
    ],
)
def test_a_sweep_takes_the_settings_of_the_same_network_or_else_of_a_resnet(
    dataset: str, model: str, template: str
) -> None:
    from benchmarks.running.adhoc import _template

    assert _template(dataset, model).name == template


@pytest.mark.parametrize("command", ["run", "status", "sweep", "tune", "recalibration"])
def test_all_methods_are_those_that_are_registered(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser, pair = cli.build_parser(command), ["--models", "resnet20", "--datasets", "cifar10"]
    words = [command, *(pair if command == "sweep" else ["small"]), "--methods"]
    assert parser.parse_args([*words, "all"]).methods == list(METHODS)
    assert parser.parse_args([*words, "none,gl-out"]).methods == ["none", "gl-out"]
    with pytest.raises(SystemExit):
        parser.parse_args([command, "--help"])
    assert "or all" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "words",
    [["sweep", "--models", "a", "--datasets", "b", "--epochs", ","], ["recalibration", "small", "--images", ""]],
)
def test_an_empty_list_of_numbers_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(words)
    assert f"argument {words[-2]}: {words[-1]!r} names nothing" in " ".join(capsys.readouterr().err.split())


def test_signals_ask_to_stop_and_a_second_ctrl_c_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in the background of a shell
    with on_signals() as asked:
        assert not asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_interrupted_command_exits_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping.Control, "stop_reason", lambda self, seconds=0.0: stopping.INTERRUPT)
    assert run("run", "small", "--methods", "none") == 130
    assert "the same command continues" in capsys.readouterr().out


def test_a_plan_measures_once_and_adds_up(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def seconds(bench: Bench, cell: Cell) -> float:
        measured.append(cell.experiment.name)
        return 60.0 * len(measured)

    monkeypatch.setattr("benchmarks.running.estimate._calibrated", seconds)
    other = small_experiment(train_images=64)
    monkeypatch.setitem(EXPERIMENTS, "other", replace(other, name="other"))
    monkeypatch.setitem(EXPERIMENTS, "twin", replace(small_experiment(), name="twin"))  # shares every stage with small
    assert run("run", "small", "other", "twin", "--plan") == 0
    text = capsys.readouterr().out
    minutes = [int(found) for found in re.findall(r"(\d+) min", text)]
    assert measured == ["small", "other"] and text.count("measuring a few training steps") == 2
    assert re.search(r"twin \(quick\): 3 runs, 0 epochs, 0 s", text)
    assert len(minutes) == 3 and minutes[-1] == pytest.approx(sum(minutes[:2]), abs=1)
    assert "strength not tuned, the middle of the grid is used for oicsr-gl, gl-out" in text


def test_the_hint_to_tune_is_a_command_that_tunes_what_it_speaks_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.commands.running import warn_of_untuned

    bench = small_bench(tmp_path / "my records")
    follower = replace(small_experiment(), name="follower", strengths_of="small")
    asked = {  # a method beside the profile's, a control of one, a target beside the profile's, another's strengths
        "small --profile quick --methods cges": cells_of(small_experiment(), "quick", methods=["cges", "none"]),
        "small --profile quick --methods slimming": cells_of(small_experiment(), "quick", methods=["slimming-absorb"]),
        "small --profile quick --methods cges --macs-kept 0.5,0.7": cells_of(
            small_experiment(), "quick", methods=["cges"], macs_kept=[0.5, 0.7]
        ),
        "small --profile quick --methods cges ": cells_of(follower, "quick", methods=["cges"], macs_kept=[0.7]),
    }
    monkeypatch.setitem(EXPERIMENTS, "follower", follower)
    for words, cells in asked.items():
        lines: list[str] = []
        warn_of_untuned(bench, cells, lines.append)
        assert lines[-1].endswith(f": python -m benchmarks tune {words.strip()} --results '{bench.results}'")


def test_more_than_an_hour_is_announced_with_what_would_be_shorter(tmp_path: Path) -> None:
    from benchmarks.commands.running import warn_of_length

    long = replace(small_experiment().profile("quick"), dense=Phase(epochs=300, learning_rate=0.1), seeds=(0, 1))
    experiment = replace(small_experiment(), profiles={"paper": long, "quick": small_experiment().profile("quick")})
    cells, lines = cells_of(experiment, "paper"), list[str]()
    bench = small_bench(tmp_path)
    warn_of_length(bench, cells, 3600, lines.append)
    assert not lines
    warn_of_length(bench, cells, 27053.4 * 60, lines.append)
    text = "\n".join(lines)
    assert "about 18 days 19 h on cpu" in text and "--seeds 0 (3 of 6 runs)" in text and "--budget-minutes" in text
    assert "--profile quick (each run trains on 0.99 % of the images" in text and "--profile paper" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(89.4, "89 s"), (90, "2 min"), (5399, "1 h 30 min"), (7200, "2 h"), (1623204, "18 days 19 h"), (172800, "2 days")],
)
def test_durations_are_those_that_people_say(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_silence_off_a_terminal_is_broken_by_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.running.console.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    observer = ConsoleObserver(console, 1, Estimate())
    cell = small_cell("none")
    observer.run_started(cell, stages_of(cell, find_method("none"), 0.0, "cpu"))
    now[0] = 10.0
    observer.beat()
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    now[0] = 30.0
    observer.beat()
    assert "dense: epoch 1 of 1 for 30 s" in console.file.getvalue()  # type: ignore[attr-defined]


def test_the_line_is_about_a_run_that_trains_not_one_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.running.console.time.monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=200)
    observer = ConsoleObserver(console, 2, Estimate(), parallel=True)
    waiting, training = small_cell("none"), small_cell("oicsr-gl")
    for cell in (waiting, training):
        observer.run_started(cell, stages_of(cell, find_method(cell.method), 0.0, "cpu"))
    observer.waiting(waiting, "stage dense is trained by process 7")
    now[0] = 30.0
    observer.beat()
    assert f"  {training.label} dense: epoch 1 of 1 for 30 s" in console.file.getvalue()  # type: ignore[attr-defined]
    observer._positions.pop(training.label)
    now[0] = 60.0
    observer.beat()
    assert f"  {waiting.label} dense: epoch 1 of 1 for 60 s" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_missing_data_set_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OICSR_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("benchmarks.running.bench.load_dataset", load_missing)
    load_splits.cache_clear()
    assert run("run", "small") == 2
    error = capsys.readouterr().err
    load_splits.cache_clear()
    assert error == "python -m benchmarks: digits are not there; run fetch\n"


def test_a_plan_needs_no_data(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.running.bench.load_dataset", load_missing)
    load_splits.cache_clear()
    assert run("run", "small", "--plan") == 0
    load_splits.cache_clear()
    text = capsys.readouterr().out
    assert "unknown without the data: digits are not there" in text and "7 epochs, time unknown" in text


def test_a_long_plan_says_what_would_be_shorter(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.running.estimate._calibrated", lambda bench, cell: 3600.0)
    assert run("run", "small", "--plan") == 0
    assert "--budget-minutes N stops at a checkpoint" in capsys.readouterr().out


def test_a_report_needs_a_folder_of_records(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["report", "--results", str(tmp_path / "none")]) == 2
    assert "there is no folder" in capsys.readouterr().err and not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("typed", "meant"), [("resnet2O", "resnet20"), ("vggl6", "vgg16"), ("Resnet56", "resnet56"), ("zzzz", None)]
)
def test_the_nearest_name_counts_look_alikes_as_the_same(typed: str, meant: str | None) -> None:
    assert nearest(typed, MODELS) == meant


def test_what_is_like_no_name_is_not_taken_for_one() -> None:
    assert nearest("nonsense", EXPERIMENTS) is None and nearest("cifar-resnet56", EXPERIMENTS) == "cifar10-resnet56"


def test_a_table_on_a_terminal_has_no_marks_of_markdown(tmp_path: Path) -> None:
    reason = "scores have shapes [(7,), (11,)] \x1b[31mred"
    good, bad = small_cell(), small_cell("none")
    write_record(tmp_path, fake_record(good), fake_history())
    write_record(tmp_path, fake_record(bad, failure={"reason": reason, "kind": "ValueError"}), fake_history())
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    assert show(console, tmp_path, [good, bad]) == []
    said = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert r"scores have shapes [(7,), (11,)] \x1b[31mred" in said
    assert "Bold" not in said and "≈: the 95 % interval" in said
    page = (tmp_path / "tables/small-quick.md").read_text("utf-8")
    assert r"scores have shapes \[(7,)" in page


def load_missing(name: str) -> None:
    raise MissingDataError(f"{name} are not there; run fetch")


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", "demo", "--method", "none"])
    assert ended.value.code == 2 and "did you mean --methods?" in capsys.readouterr().err


def test_hints_keep_the_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "small", "--results", "my results"]) == 0
    assert "benchmarks run small --results 'my results'\n" in capsys.readouterr().out


def test_the_hint_of_status_runs_what_was_asked_for_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["small", "--profile", "quick", "--methods", "none,gl-out", "--seeds", "0", "--macs-kept", "0.5"]
    assert cli.main(["status", *given]) == 0
    assert f"benchmarks run {' '.join(given)}\n" in capsys.readouterr().out
    assert cli.main(["status", "--seeds", "0"]) == 0
    assert "benchmarks run --pending --seeds 0\n" in capsys.readouterr().out


def test_status_names_a_record_of_another_configuration_by_another_word_than_a_damaged_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_record(Path("r"), fake_record(small_cell("gl-out"), strength=0.123), fake_history())
    assert cli.main(["status", "small", "--results", "r", "--checkpoints", "c", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "0 failed, 1 of another configuration, 2 missing" in text and "damaged" not in text.splitlines()[0]
    assert re.search(r"^  gl-out +~$", text, re.MULTILINE) and "was 0.123" in text


def test_budget_keeps_time_for_the_tables() -> None:
    assert budget_seconds(10, age=5) == 600 - 20 - 5
    assert budget_seconds(1, age=0) == 54
    with pytest.raises(ValueError, match="more than 0"):
        budget_seconds(0, 0)


def test_many_runs_are_merged_and_counted(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("oicsr-gl", "gl-out", "none", "l1", "random")
    many = small_experiment(methods=methods, seeds=tuple(range(10)), macs_kept=(0.8, 0.6, 0.4, 0.2))
    monkeypatch.setitem(EXPERIMENTS, "small", many)
    assert write_fakes(Path("elsewhere"), cells_of(many, "quick")) == 200
    assert cli.main(["merge", "elsewhere", "--results", "r"]) == 0
    assert cli.main(["status", "small", "--results", "r", "--checkpoints", "c"]) == 0
    assert "200 runs: 200 done" in capsys.readouterr().out
    # never more files than records are opened: folders are walked once, in a time that grows with their number
    assert len(list(runs_folder(Path("r")).glob("*/*/record.json"))) == 200
    assert not list(Path("r").glob("runs/*/*/*.tmp")) and not (Path("r") / "runs" / "small" / "record.json").exists()


@pytest.mark.usefixtures("blank_figures")
def test_the_runs_whose_commands_are_timed_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert thousand.write_runs(Path("elsewhere"), experiments=2, runs=50) == 50
    assert cli.main(["merge", "elsewhere", "--results", "r"]) == 0
    assert "50 added, 0 replaced, 0 already there, 0 refused" in capsys.readouterr().out
    assert cli.main(["report", "--results", "r"]) == 0
    assert Path("r/figures/sweep-cifar10-resnet56-1-quick-joint.png").is_file()
    assert cli.main(["report", "--results", "r", "--check"]) == 0


def test_a_missing_file_is_no_work_that_was_cut_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "keys.pub"
    assert cli.main(["merge", str(tmp_path), "--results", str(tmp_path / "results"), "--signed-by", str(missing)]) == 2
    shown = capsys.readouterr().err
    assert str(missing) in shown and "work done so far" not in shown
