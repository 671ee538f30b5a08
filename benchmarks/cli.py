"""The command line: `python -m benchmarks COMMAND`.

Exit codes: 0: everything asked for is done (or, with a budget, cleanly stopped). 1: a run failed, a method could not be
tuned, a committed artefact differs, a record was refused, the machine is in trouble (a full disk), or the output could
not be written; that nobody reads it any more (`| head`) is no failure. 2: the command or its input is wrong; nothing
was changed. 130: interrupted (Ctrl-C, SIGTERM) after a checkpoint, to be continued by the same command.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from benchmarks.config import ExperimentFileError
from benchmarks.escape import for_terminal
from benchmarks.machine.screen import lasting_screen
from benchmarks.suggest import unknown_name

OK, FAILURE, USAGE, INTERRUPTED = 0, 1, 2, 130

# name: what it does; options and code are in benchmarks/commands/<name>.py
COMMANDS = {
    "list": "show the experiments, methods, networks and data sets",
    "run": "run experiments: train what is missing, make the table and the plot",
    "sweep": "run all combinations of networks, data sets, methods, targets and seeds",
    "status": "show which runs are done, partial, failed or missing",
    "tune": "choose strengths on the validation split and record the choice",
    "recalibration": "measure what the number and augmentation of images do to recalibration",
    "report": "make tables, plots, RESULTS.md and the README's block from records",
    "merge": "import records made elsewhere, verifying each",
    "sign": "sign records with an SSH key, for `merge --signed-by`",
    "publish": "replay records into Weights & Biases",
    "export": "export the network of a run (safetensors, ONNX, torch.export)",
    "coverage": "test which torchvision and timm networks can be pruned",
    "faults": "kill sweeps, damage their files, fill their disk, and verify that nothing is lost",
    "perf": "measure speed and memory against peers",
    "gpu": "on a machine with a CUDA device: run the GPU tests, measure speed, do missing runs",
}


class Parser(argparse.ArgumentParser):
    """An argument parser that takes full option names only and suggests the nearest option or command."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **arguments})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with 2."""
        known = [option for action in self._actions for option in action.option_strings]
        wrong = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        if message.startswith("unrecognized") and wrong:
            near = difflib.get_close_matches(wrong[0], known, n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        self.exit(USAGE, f"{self.prog}: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; a command's own parser reports what it does not know, since it alone can suggest what was meant."""
        parsed, rest = super().parse_known_args(args, namespace)
        if rest and self._defaults.get("module"):
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return parsed, rest


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code."""
    try:
        return _main(arguments)
    except KeyboardInterrupt:  # also while the command's modules are imported, which takes seconds
        print("\ninterrupted; run the same command again to continue", file=sys.stderr)
        return INTERRUPTED


def _main(arguments: Sequence[str] | None) -> int:
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        print(f"python -m benchmarks: {unknown_name('command', argv[0], COMMANDS)}", file=sys.stderr)
        return USAGE
    try:
        parser = build_parser(argv[0] if argv else None)
    except ExperimentFileError as error:  # modules of commands import the experiments
        print(f"python -m benchmarks: {for_terminal(str(error))}", file=sys.stderr)
        return USAGE
    options = parser.parse_args(argv)
    with lasting_screen() as screen:
        code = _do(options)
    if screen.lost:
        print(f"python -m benchmarks: its output could not be written: {screen.lost.strerror}", file=sys.stderr)
    return FAILURE if screen.lost and code == OK else code


def _do(options: argparse.Namespace) -> int:
    """Run a command; return the exit code."""
    try:
        return int(options.module.command(options))
    except ValueError as error:
        print(f"python -m benchmarks: {for_terminal(str(error))}", file=sys.stderr)
        return USAGE
    except FileNotFoundError as error:
        print(f"python -m benchmarks: {for_terminal(str(error))}", file=sys.stderr)
        return USAGE
    except OSError as error:
        print(f"python -m benchmarks: {for_terminal(str(error))}; work done so far is safe", file=sys.stderr)
        return FAILURE
    except RuntimeError as error:
        if not _is_of_data(error):
            raise
        print(f"python -m benchmarks: {for_terminal(str(error))}", file=sys.stderr)
        return USAGE


def _is_of_data(error: RuntimeError) -> bool:
    """Return whether an error says that a data set is missing or damaged."""
    from benchmarks.datasets.contract import DataError  # imports torch, but so did the code that raised this

    return isinstance(error, DataError)


def build_parser(chosen: str | None = None) -> Parser:
    """Return the parser, with the options of the chosen command only: other modules are not imported."""
    parser = Parser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == chosen:
            module = importlib.import_module(f"benchmarks.commands.{name}")
            module.add_options(command)
            command.set_defaults(module=module)
    return parser
