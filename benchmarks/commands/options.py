"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
import os
import shlex
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch


T = TypeVar("T")

LARGEST_SEED = 2**32 - 1
"""NumPy's generators, which data sets may use, take none above."""
MOST_SEEDS = 10_000
"""As many in one range are a slip of the keyboard."""
MOST_THREADS = 1024


class EachOnce(argparse.Action):
    """Stores names, each once and in order: what is named twice is done once, and counted once in a plan."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        """Store the names of one argument."""
        setattr(namespace, self.dest, list(dict.fromkeys(values)))


def word(given: str) -> str:
    """Read a text; an empty one, as of a variable of the shell that is not set, is not taken for the default."""
    if not given.strip():
        raise argparse.ArgumentTypeError(f"{given!r} names nothing; leave the option out for its default")
    return given


def folder(given: str) -> Path:
    """Read the path of a folder that is there, or can be made."""
    path = Path(word(given))
    try:
        possible = stat.S_ISDIR(path.stat().st_mode)
    except OSError:  # a link that leads nowhere is there, but no folder can be made in its place
        possible = not os.path.lexists(path)
    if not possible:
        raise argparse.ArgumentTypeError(f"{given!r} is no folder")
    return path


def names(text: str) -> list[str]:
    """Read a comma-separated list of names."""
    return _each(text, [name.strip() for name in text.split(",") if name.strip()])


def methods(text: str) -> list[str]:
    """Read a comma-separated list of methods, or `all`."""
    found = names(text)
    if "all" not in found:
        return found
    if len(found) > 1:
        raise argparse.ArgumentTypeError(
            f"{_short(text)} names all methods and some of them; write all, or their names"
        )
    from benchmarks.methods.registry import METHODS  # takes seconds: it imports torch

    return list(METHODS)


def numbers(kind: str, parse: Callable[[str], float]) -> Callable[[str], list[float]]:
    """Return a reader of comma-separated numbers."""

    def read(text: str) -> list[float]:
        try:
            found = [parse(part) for part in text.split(",") if part]
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of {kind}") from error
        return _some(text, found)

    return read


def shares(text: str) -> list[float]:
    """Read a list of shares of the MACs such as `0.7,0.5`."""
    return _each(text, numbers("numbers such as 0.7,0.5", float)(text))


def share(text: str) -> float:
    """Read one share of the MACs."""
    found = shares(text)
    if len(found) > 1:
        raise argparse.ArgumentTypeError(f"{_short(text)} names several shares; one is needed")
    if not 0 < found[0] <= 1:
        raise argparse.ArgumentTypeError(f"{_short(text)} is no share of the MACs in (0, 1]")
    return found[0]


def seeds(text: str) -> list[int]:
    """Read a list of seeds such as `0,1` or `0-4`."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not _is_whole(first) or (dash and not _is_whole(last)):
            raise argparse.ArgumentTypeError(f"{_short(text)} is not a list of seeds such as 0,1 or 0-4")
        is_long = max(len(first.lstrip("0")), len(last.lstrip("0"))) > len(str(LARGEST_SEED))  # too long for `int`
        start, end = (0, LARGEST_SEED + 1) if is_long else (int(first), int(last or first))
        if end > LARGEST_SEED:
            raise argparse.ArgumentTypeError(f"{_short(part)}: the largest seed is {LARGEST_SEED}")
        if end < start:
            raise argparse.ArgumentTypeError(f"{part!r} counts down; write {end}-{start}")
        if end - start >= MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"{part!r} names more than {MOST_SEEDS} seeds")
        found += range(start, end + 1)
    return _each(text, found)


def _is_whole(text: str) -> bool:
    """Whether a text is digits only; `str.isdigit` alone takes a superscript 2 too, which `int` does not."""
    return text.isascii() and text.isdigit()


def _short(text: str) -> str:
    """Quote what was typed, and of a very long text its beginning."""
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


def _each(text: str, found: list[T]) -> list[T]:
    """Return each value once, in order; refuse an empty list."""
    return list(dict.fromkeys(_some(text, found)))


def _some(text: str, found: list[T]) -> list[T]:
    """Refuse an empty list, which would mean the default."""
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def positive(text: str) -> int:
    """Read a positive integer."""
    if not _is_whole(text) or not text.strip("0"):
        raise argparse.ArgumentTypeError(f"{_short(text)} is not an integer of 1 or more")
    if len(text.lstrip("0")) > 18:
        raise argparse.ArgumentTypeError(f"{_short(text)} is too large")
    return int(text)


def threads(text: str) -> int:
    """Read a number of threads; PyTorch takes any, and then the system fails to start them."""
    if (found := positive(text)) > MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} threads: at most {MOST_THREADS} threads are possible")
    return found


def gpu_share(text: str) -> float:
    """Read a number of GPUs: a share of one, or a whole number of them, as Ray has it."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not (0 < found <= 1 or (found > 1 and found.is_integer())):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a share of a GPU in (0, 1] nor a whole number of GPUs")
    return found


def positive_or_auto(text: str) -> int | None:
    """Read a whole number above 0, or `auto`, which is None."""
    if text == "auto":
        return None
    try:
        return positive(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, and not auto") from error


def add_jobs(parser: argparse.ArgumentParser, what: str) -> None:
    """How much is done at a time; None for what suits the machine."""
    parser.add_argument(
        "--jobs",
        type=positive_or_auto,
        metavar="N",
        help=f"{what} at a time (default: auto: for small networks on a CPU one per core, of one thread; else one)",
    )


def add_graphs(parser: argparse.ArgumentParser) -> None:
    """Add the option for CUDA graphs."""
    parser.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        help="replay training steps from CUDA graphs, checked at every epoch (default: on a GPU)",
    )


def choose_graphs(options: argparse.Namespace, device: torch.device) -> bool:
    """Return whether training steps are replayed from CUDA graphs: as asked for, otherwise wherever there is a GPU."""
    return bool(device.type == "cuda" if options.graphs is None else options.graphs)


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Add the option for a time limit."""
    parser.add_argument(
        "--budget-minutes",
        type=float,
        metavar="N",
        help="stop cleanly at a checkpoint within N minutes of the start (default: no limit)",
    )


def results_option(results: Path) -> str:
    """Return the option that a suggested command needs for this folder of records; empty for the default."""
    return "" if results == Path("results") else f" --results {shlex.quote(str(results))}"


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the option for the results folder."""
    parser.add_argument(
        "--results",
        type=folder,
        default=Path("results"),
        metavar="DIR",
        help="folder of the records (default: results)",
    )


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Add the options for the folders of records and checkpoints."""
    add_results(parser)
    parser.add_argument(
        "--checkpoints",
        type=folder,
        default=Path("checkpoints"),
        metavar="DIR",
        help="folder of the checkpoints (default: checkpoints)",
    )


def add_list(
    parser: argparse.ArgumentParser, option: str, read: Callable[[str], Any], text: str, *, required: bool = False
) -> None:
    """Add an option that takes a comma-separated list."""
    parser.add_argument(option, type=read, metavar="LIST", help=text, required=required)


def add_choice(parser: argparse.ArgumentParser, *, nargs: str = "+", usual_seeds: str = "the profile's") -> None:
    """Add the options that choose runs."""
    parser.add_argument(
        "experiments", nargs=nargs, action=EachOnce, metavar="EXPERIMENT", help="names, as `list` shows them"
    )
    parser.add_argument(
        "--profile", type=word, help="quick, cpu, study or paper (default: paper on a GPU, else the first)"
    )
    add_list(
        parser,
        "--methods",
        methods,
        "comma-separated, or all; also any regularizer+importance[+selection] (default: the profile's)",
    )
    parser.add_argument(
        "--seeds",
        type=seeds,
        metavar="LIST",
        help=f"comma-separated, with ranges such as 0-4 (default: {usual_seeds})",
    )
    parser.add_argument(
        "--macs-kept",
        type=shares,
        metavar="LIST",
        help="comma-separated shares of the MACs, in (0, 1] (default: the profile's)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add the options of the device."""
    parser.add_argument("--device", type=word, help="cpu, cuda, cuda:1, ... (default: cuda if available, else cpu)")
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="total CPU threads (default: PyTorch's); records depend on it"
    )


def choose_device(options: argparse.Namespace) -> torch.device:
    """Return the device to train on, and set the number of threads.

    Raises:
        ValueError: The device does not exist.
    """
    import torch  # takes seconds, and not every command with these options needs it

    name = options.device
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()  # the meta device makes tensors, but holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    if options.threads:
        torch.set_num_threads(options.threads)
    return device
