"""`faults`: kill sweeps, damage their files, fill their disk, and verify that nothing is lost."""

from __future__ import annotations

import argparse
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.commands.options import add_results, positive
from benchmarks.faults.arena import DEMO, TINY, Arena
from benchmarks.faults.injections import campaign, to_json
from benchmarks.faults.versions import check_out, older_commit
from benchmarks.machine.atomic_write import write_atomically
from benchmarks.machine.provenance import device_name, git_state, versions
from benchmarks.reporting.reliability import FILE

SWEEPS = {"demo": DEMO, "tiny": TINY}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    add_results(parser)
    parser.add_argument(
        "--kills",
        type=positive,
        default=50,
        metavar="N",
        help="number of SIGKILLs; other faults scale with it (default: 50)",
    )
    parser.add_argument("--sweep", choices=tuple(SWEEPS), default="demo", help="sweep to disturb (default: demo)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the faults (default: 0)")


def command(options: argparse.Namespace) -> int:
    """Inject every fault and write the counts; exit with 1 if any run was lost."""
    options.results.mkdir(parents=True, exist_ok=True)  # a folder that cannot be made is noticed first, not last
    with tempfile.TemporaryDirectory() as name:
        small = Arena(Path(name) / "small", TINY, options.seed)
        large = small if options.sweep == "tiny" else Arena(Path(name) / "large", SWEEPS[options.sweep], options.seed)
        for arena in dict.fromkeys([small, large]):
            print(f"undisturbed: {len(arena.reference)} runs in {arena.seconds:.0f} s", flush=True)
        commit = older_commit()
        older = check_out(commit, Path(name) / "older") if commit else None
        print(f"older version: {commit[:8]}" if commit else "no older version with the same results is known here")
        tallies = campaign(large, small, options.kills, lambda line: print(line, flush=True), older)
    device = torch.device("cpu")
    text = to_json(
        tallies,
        sweep=options.sweep,
        runs=len(large.reference),
        small_runs=len(small.reference),
        seed=options.seed,
        date=datetime.now(UTC).date().isoformat(),
        device=device_name(device),
        versions=versions(),
        older_commit=commit,
        **git_state(),
    )
    write_atomically(options.results / FILE, text.encode())
    losses = [f"{name}: {loss}" for name, tally in tallies.items() for loss in tally.losses]
    print("\n".join([*losses, f"written: {options.results / FILE}"]))
    return 1 if losses else 0
