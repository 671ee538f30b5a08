"""The command line: `python -m benchmarks COMMAND`.

Exit codes: 0: everything asked for is done (or, with a budget, cleanly stopped). 1: a run failed, or a committed
artefact differs. 2: the command or its input is wrong; nothing was changed. 130: interrupted, to be continued.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from rich.console import Console

from benchmarks import coverage, report
from benchmarks.checkpoints import CheckpointStore
from benchmarks.config import Cell, Experiment
from benchmarks.console import ConsoleObserver, duration
from benchmarks.datasets.splits import DataError
from benchmarks.distributed import Rank, SharedStore, from_first, local_device, process_group
from benchmarks.experiments import EXPERIMENTS, find_experiment
from benchmarks.export import FORMATS, export
from benchmarks.methods import METHODS
from benchmarks.records import Record, read_records
from benchmarks.runner import Bench, Observer, run_cell
from benchmarks.sinks import WandbSink
from benchmarks.strengths import read_tuning
from benchmarks.suggest import unknown_name
from benchmarks.sweep import cells_of, estimate, survey
from benchmarks.tables import compare, notes, to_text
from benchmarks.tuning import TUNING_SEEDS, tune

ROOT = Path(__file__).resolve().parent.parent
OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130
INPUT_ERRORS = (ValueError, DataError, FileNotFoundError)


class Parser(argparse.ArgumentParser):
    """An argument parser that suggests the nearest option or command."""

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in sys.argv[1:]:
            if message.startswith("unrecognized") and word.startswith("--") and word.partition("=")[0] not in known:
                near = difflib.get_close_matches(word.partition("=")[0], known, n=1)
                message += f"; did you mean {near[0]}?" if near else ""
                break
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        print(f"python -m benchmarks: {unknown_name('command', argv[0], COMMANDS)}", file=sys.stderr)
        return USAGE
    options = build_parser().parse_args(argv)
    try:
        return int(options.command(options))
    except INPUT_ERRORS as error:
        print(f"python -m benchmarks: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last epoch", file=sys.stderr)
        return INTERRUPTED


def build_parser() -> Parser:
    """Return the parser of all commands."""
    parser = Parser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, (function, add_arguments, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        add_arguments(command)
        command.set_defaults(command=function)
    return parser


def _results_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="folder of the records (default: results)"
    )


def _run_options(parser: argparse.ArgumentParser) -> None:
    _results_option(parser)
    parser.add_argument("experiments", nargs="+", metavar="EXPERIMENT", help="names, as `list` shows them")
    parser.add_argument("--profile", help="quick, cpu or paper (default: paper with a CUDA device, else quick)")
    parser.add_argument("--methods", type=_names, help="comma-separated; any regularizer+importance[+selection] too")
    parser.add_argument("--seeds", type=_seeds, help="comma-separated, ranges as 0-4 (default: the profile's)")
    parser.add_argument("--macs-kept", type=_shares, help="comma-separated shares in (0, 1] (default: the profile's)")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="folder of the checkpoints (default: checkpoints)",
    )
    parser.add_argument(
        "--wandb", choices=("online", "offline", "disabled"), default="offline", help="default: offline"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's); a record depends on them")
    parser.add_argument("--retry-failed", action="store_true", help="do failed runs again")


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _shares(text: str) -> list[float]:
    try:
        return [float(share) for share in text.split(",") if share]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no comma-separated list of numbers such as 0.7,0.5") from error


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or not (last.isdigit() or "-" not in part):
            raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds such as 0,1 or 0-4")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def default_profile(experiment: Experiment, device: torch.device) -> str:
    """Return `paper` on a GPU where the experiment has it, else the experiment's first profile."""
    return "paper" if device.type == "cuda" and "paper" in experiment.profiles else next(iter(experiment.profiles))


def choose_device(name: str | None) -> torch.device:
    """Return the device to train on.

    Raises:
        ValueError: There is no such device.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def list_command(options: argparse.Namespace) -> int:
    """Print experiments and methods."""
    for experiment in EXPERIMENTS.values():
        print(f"{experiment.name:24} {experiment.title} (profiles: {', '.join(experiment.profiles)})")
    print(f"\nmethods: {', '.join(METHODS)}")
    return OK


def run_command(options: argparse.Namespace) -> int:
    """Run what is missing of some experiments, then make their tables and plots."""
    device = local_device(choose_device(options.device))
    if options.threads:
        torch.set_num_threads(options.threads)
    with process_group(device) as rank:  # of several where torchrun started them
        return _run(options, device, rank)


def _run(options: argparse.Namespace, device: torch.device, rank: Rank) -> int:
    console = Console(quiet=not rank.first)
    store = (CheckpointStore if rank.count == 1 else SharedStore)(options.checkpoints)
    bench = Bench(device, options.results, store, tuning=ROOT / "results" / "tuning")
    cells = _cells(options, device)
    found = from_first(lambda: survey(bench, cells, retry_failed=options.retry_failed))
    for damaged in found.damaged:
        console.print(f"{damaged}; kept beside as record.json.damaged, the run is done again", markup=False)
    wandb = options.wandb if rank.first else "disabled"
    records = _run_all(bench, found.todo, console, wandb) if found.todo else []
    if not found.todo:
        console.print(
            f"all {len(cells)} runs are recorded under {options.results}/runs: nothing to run", highlight=False
        )
    if rank.first:
        _show(console, options.results, cells)
    failed = [*found.failed, *(record for record in records if not record.complete)]
    for record in failed:
        reason = (record.failure or {}).get("reason")
        console.print(f"failed: {record.experiment}/{record.run_id}: {reason}", markup=False, highlight=False)
    return FAILURE if failed else OK


def _cells(options: argparse.Namespace, device: torch.device) -> list[Cell]:
    cells = []
    for name in options.experiments:
        experiment = find_experiment(name)
        profile = options.profile or default_profile(experiment, device)
        methods = list(METHODS) if options.methods == ["all"] else options.methods
        cells += cells_of(experiment, profile, methods=methods, seeds=options.seeds, macs_kept=options.macs_kept)
    return cells


def _run_all(bench: Bench, cells: Sequence[Cell], console: Console, wandb: str) -> list[Record]:
    expected = estimate(bench, cells)
    profiles = ", ".join(sorted({f"{cell.experiment.name} ({cell.profile_name})" for cell in cells}))
    console.print(
        f"{profiles}: {len(cells)} runs on {bench.device}, expected to take about {duration(expected.total)} "
        "(from a few measured steps)",
        highlight=False,
    )
    sink = WandbSink(wandb, Path("wandb"))  # type: ignore[arg-type]
    try:
        with ConsoleObserver(console, len(cells), expected) as observer:
            observers: list[Observer] = [observer, sink]
            bench.observers = observers
            return [run_cell(bench, cell) for cell in cells]
    finally:
        sink.close()


def _show(console: Console, results: Path, cells: Sequence[Cell]) -> None:
    """Make the tables and plots of some experiments, and print the tables."""
    names = list(dict.fromkeys(cell.experiment.name for cell in cells))
    profiles = {(cell.experiment.name, cell.profile_name) for cell in cells}
    comparisons = [c for c in compare(read_records(results, names)) if (c.experiment, c.profile) in profiles]
    for comparison in comparisons:
        files = report.files_of(comparison, results)
        report.write(files)
        console.print(f"\n{report.title_of(comparison.experiment)}, profile {comparison.profile}", style="bold")
        console.print(to_text(comparison), markup=False, highlight=False, soft_wrap=True)
        console.print(notes(comparison), markup=False, highlight=False, style="dim")
        for kind, folder, suffix in (("table", "tables", "md"), ("plot", "figures", "png")):
            path = os.path.relpath(results / folder / f"{comparison.name}.{suffix}")
            console.print(f"{kind}: {path}", markup=False, highlight=False, soft_wrap=True)


def report_command(options: argparse.Namespace) -> int:
    """Make every generated file from the records; with `--check` only compare."""
    published = options.results.resolve() == ROOT / "results"
    artefacts = report.build(options.results, ROOT if published else None)
    if options.check:
        wrong = report.differing(artefacts, options.results)
        for line in wrong:
            print(line, file=sys.stderr)
        print(f"{len(artefacts)} generated files checked, {len(wrong)} wrong")
        return FAILURE if wrong else OK
    changed = report.write(artefacts)
    print(f"{len(artefacts)} generated files, {len(changed)} changed")
    for path in changed:
        print(f"  {os.path.relpath(path)}")
    return OK


def tune_command(options: argparse.Namespace) -> int:
    """Search the strengths of an experiment on the validation split."""
    device = choose_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    bench = Bench(device, options.results, CheckpointStore(options.checkpoints), tuning=options.results / "tuning")
    for name in options.experiments:
        experiment = find_experiment(name)
        profile = options.profile or default_profile(experiment, device)
        cells = cells_of(experiment, profile, methods=options.methods, macs_kept=options.macs_kept)
        path = tune(bench, cells, options.seeds or TUNING_SEEDS, _tell_try)
        print(f"tuning record: {os.path.relpath(path)}")
        for method, chosen in read_tuning(path)["chosen"].items():
            print(f"  {method}: {', '.join(f'{value:g} at {target}' for target, value in chosen.items())}")
    return OK


def _tell_try(cell: Cell, strength: float, top1: float | None) -> None:
    result = "diverged" if top1 is None else f"{100 * top1:.2f} %"
    print(f"{cell.label} strength {strength:g}: validation {result} before fine-tuning", flush=True)


def export_command(options: argparse.Namespace) -> int:
    """Write the fine-tuned network of a run to a file."""
    path = export(options.run, options.format, options.results, options.checkpoints, options.output)
    print(f"exported: {os.path.relpath(path)}")
    return OK


def _export_options(parser: argparse.ArgumentParser) -> None:
    _results_option(parser)
    parser.add_argument("run", metavar="RUN", help="EXPERIMENT/RUN_ID, or the folder of the run")
    parser.add_argument("--format", choices=tuple(FORMATS), default="safetensors", help="default: safetensors")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: named after the run, here")
    parser.add_argument(
        "--checkpoints",
        type=Path,
        default=Path("checkpoints"),
        metavar="DIR",
        help="folder of the checkpoints (default: checkpoints)",
    )


def _report_options(parser: argparse.ArgumentParser) -> None:
    _results_option(parser)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 where a file differs")


def _no_options(parser: argparse.ArgumentParser) -> None:
    pass


Command = Callable[[argparse.Namespace], int]
COMMANDS: dict[str, tuple[Command, Callable[[argparse.ArgumentParser], None], str]] = {
    "list": (list_command, _no_options, "show the experiments and methods"),
    "run": (run_command, _run_options, "run experiments: what is missing is trained, the table and plot are made"),
    "tune": (tune_command, _run_options, "choose strengths on the validation split and record the choice"),
    "coverage": (coverage.run, coverage.add_arguments, "try which networks of torchvision and timm can be pruned"),
    "export": (
        export_command,
        _export_options,
        "write the network of a run to a file others can read",
    ),
    "report": (report_command, _report_options, "make tables, plots, RESULTS.md and the README's block from records"),
}
