"""Fault injection: sweeps are killed, their files damaged, their disk filled; the results must be unaffected.

Every sweep is a real command in its own process. Its results are compared, bit for bit except for times and provenance,
with those of the same command undisturbed. `make faults` runs all of it over the demo and writes
`results/reliability.json`; the tests run a short form over an even smaller sweep.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import re
import signal
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults.arena import FAR_STALE, YEARS, Arena, Running, Tally, Trouble
from benchmarks.records.record import Record, RecordError, read_record
from benchmarks.running.checkpoints import CheckpointWarning, read_checkpoint

SCHEMA = "oicsr-reliability-1"


def kills(arena: Arena, count: int) -> Tally:
    """Kill the sweep at random moments until it was killed often enough; run each sweep to completion."""
    tally = Tally("SIGKILL of the command at a random moment")
    while tally.tried < count:
        arena.clear()
        losses: list[str | None] = []
        while tally.tried + len(losses) < count:
            before = {path: path.read_bytes() for path in arena.record_paths()}
            command = arena.start()
            command.wait_for(command.is_training)
            command.process.join(arena.random.uniform(0.0, max(0.3, arena.seconds / 12)))
            if not command.process.is_alive():
                break
            os.kill(command.process.pid, signal.SIGKILL)
            command.wait()
            changed = [str(path) for path, content in before.items() if path.read_bytes() != content]
            losses.append(f"runs done twice: {changed}" if changed else _unreadable(arena))
        end = arena.recover()
        for loss in losses:
            tally.note(loss or end)
    return tally


def _unreadable(arena: Arena) -> str | None:
    try:
        arena.recorded()
    except RecordError as error:
        return f"a record cannot be read after a kill: {error}"
    return None


def damaged_checkpoints(arena: Arena, count: int, kind: str) -> Tally:
    """Tear or flip a bit of a checkpoint's newest generation, or of both, and train again from there."""
    what = "torn checkpoint" if kind == "torn" else "checkpoint with a flipped bit"
    tally = Tally(f"{what}, newest or both generations, then the command again")
    for _ in range(count):
        loss = arena.loss()  # start from a complete sweep
        stages = sorted(path for path in arena.checkpoints.iterdir() if not path.name.startswith("."))
        for stage in stages:
            generations = sorted(stage.glob("*.ckpt"))
            for path in arena.random.choice([generations[-1:], generations]):
                damage(path, kind, arena.random)
                loss = loss or _accepted_checkpoint(path)
        for path in arena.record_paths():
            path.unlink()
        tally.note(loss or arena.recover())
    return tally


def _accepted_checkpoint(path: Path) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        return None if read_checkpoint(path) is None else f"damaged checkpoint {path} was accepted"


def damage(path: Path, kind: str, generator: random.Random) -> None:
    """Tear a file, or flip one bit of it."""
    content = bytearray(path.read_bytes())
    if kind == "torn":
        path.write_bytes(content[: generator.randrange(len(content))])
        return
    content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


def damaged_records(arena: Arena, count: int, kind: str) -> Tally:
    """Damage a record or its history: it must be noticed, and the command must do the run again."""
    tally = Tally(f"{'torn' if kind == 'torn' else 'bit-flipped'} record or history, noticed when read")
    for position in range(count):
        path = arena.random.choice(arena.record_paths())
        target = arena.random.choice([path, *sorted(path.parent.glob("*.csv"))])
        whole, before = target.read_bytes(), read_record(path)
        damage(target, kind, arena.random)
        noticed = _is_noticed(path, before)
        if position == 0 and target == path:  # once, to completion
            tally.note(None if noticed and arena.recover() is None else f"{target} was not restored")
            continue
        target.write_bytes(whole)
        tally.note(None if noticed else f"damaged {target} was accepted")
    return tally


def _is_noticed(path: Path, before: Record) -> bool:
    """Return whether damage is noticed, or changed nothing: 1e-05 and 1E-05 are one number, but differ in a bit."""
    try:
        record = read_record(path)
    except RecordError:
        return True
    return record == before


def full_disk(arena: Arena, count: int) -> Tally:
    """Limit files to a random size; then lift the limit and resume."""
    tally = Tally("full disk (RLIMIT_FSIZE), then room again")
    largest = max(path.stat().st_size for path in arena.checkpoints.glob("*/*.ckpt"))
    for _ in range(count):
        arena.clear()
        limit = arena.random.randrange(2_000, largest - 1)
        command = arena.start(trouble=Trouble(file_limit=limit))
        code = command.wait()
        loss = None if code == 1 else f"exit code {code} on a full disk: {command.text()[-1500:]}"
        loss = loss or _unreadable(arena)
        tally.note(loss or arena.recover())
    return tally


def two_commands(arena: Arena, count: int) -> Tally:
    """Start the same sweep twice at the same time."""
    tally = Tally("two commands over the same results at the same time")
    for _ in range(count):
        arena.clear()
        commands = [arena.start(), arena.start()]
        codes = [command.wait() for command in commands]
        done = [re.findall(r"^\[\d+/\d+\] (\S+):", command.text(), re.MULTILINE) for command in commands]
        twice = sorted(set(done[0]) & set(done[1]))
        loss = f"exit codes {codes}: {commands[0].text()[-800:]} {commands[1].text()[-800:]}" if any(codes) else None
        loss = loss or (f"runs done twice: {twice}" if twice else None)
        loss = loss or (None if len(done[0]) + len(done[1]) == len(arena.reference) else f"not every run once: {done}")
        tally.note(loss or arena.loss())
    return tally


def killed_workers(arena: Arena, count: int, engine: str) -> Tally:
    """Kill a worker that trains a stage; the command itself must complete."""
    tally = Tally(f"a worker of --engine {engine} --jobs 2 killed at work")
    for _ in range(count):
        arena.clear()
        command = arena.start("--engine", engine, "--jobs", "2")
        hit = _kill_a_worker(arena, command)
        code = command.wait()
        loss = f"exit code {code}: {command.text()[-1500:]}" if code else None
        loss = loss or (None if hit else "no worker was at work")
        tally.note(loss or arena.loss())
    return tally


def _kill_a_worker(arena: Arena, command: Running) -> bool:
    """Kill a worker a random moment after one was seen at work; return whether there was one before the command ended.

    A stage may end within that moment: then the next one is waited for.
    """
    while command.wait_for(lambda: bool(arena.stage_owners())):
        time.sleep(arena.random.uniform(0, 0.1))
        victims = arena.stage_owners()
        if victims:
            os.kill(victims[0], signal.SIGKILL)
            return True
    return False


def jumping_clock(arena: Arena, count: int) -> Tally:
    """Kill the sweep, shift all its file times by years, and resume with a clock that jumps at every reading."""
    tally = Tally("a clock that jumps by years, and files from the past and the future")
    for _ in range(count):
        arena.clear()
        command = arena.start(trouble=Trouble(clock=True))
        command.wait_for(lambda: bool(arena.stage_owners()))
        command.process.kill()
        command.wait()
        for path in arena.folder.rglob("*"):
            if path.is_file():
                moment = time.time() + arena.random.uniform(-YEARS, YEARS)
                os.utime(path, (moment, moment))
        command = arena.start(trouble=Trouble(clock=True))
        code = command.wait()
        tally.note(f"exit code {code}: {command.text()[-1500:]}" if code else arena.loss())
    return tally


def stops(arena: Arena, count: int) -> Tally:
    """Send SIGTERM at random moments, until the sweep is complete; it must end with 130, at a checkpoint."""
    tally = Tally("SIGTERM at a random moment, then the command again")
    for _ in range(count):
        arena.clear()
        command = arena.start()
        command.wait_for(lambda command=command: bool(arena.stage_owners()))  # type: ignore[misc]
        command.process.join(arena.random.uniform(0.0, max(0.5, arena.seconds / 2)))
        if command.process.is_alive():
            os.kill(command.process.pid, signal.SIGTERM)
        code = command.wait()
        at_its_end = code in (0, -signal.SIGTERM) and arena.loss() is None  # the tables do not count
        right = code == 130 or at_its_end
        loss = None if right else f"exit code {code} after SIGTERM: {command.text()[-800:]}"
        tally.note(loss or _unreadable(arena) or arena.recover())
    return tally


def _training(command: Running) -> Running:
    """Return a command once it trains."""
    command.wait_for(command.is_training)
    return command


def frozen_owners(arena: Arena, count: int) -> Tally:
    """Freeze a running command; another machine takes over its lease; then the first one continues.

    It must notice, and write nothing more. Half of the time it wakes while the other is still running.
    """
    tally = Tally("an owner frozen past its lease (SIGSTOP), taken over by another machine, then woken (SIGCONT)")
    for position in range(count):
        arena.clear()
        frozen = arena.start(trouble=Trouble(machine="one"))
        frozen.wait_for(lambda: bool(arena.stage_owners()))
        os.kill(frozen.process.pid, signal.SIGSTOP)
        other = arena.start(trouble=Trouble(machine="two"))
        try:
            loss = _taken_over(arena, frozen, other, wakes_early=position % 2 == 1)
        finally:
            if frozen.process.is_alive():
                os.kill(frozen.process.pid, signal.SIGCONT)
        tally.note(loss or arena.loss())
    return tally


def _taken_over(arena: Arena, frozen: Running, other: Running, *, wakes_early: bool) -> str | None:
    """Return what went wrong while one command took over from another, or None."""
    if wakes_early:
        _training(other)
        other.process.join(2 * FAR_STALE + arena.random.uniform(0, 2))
    else:
        other.wait()
    before = {path: path.read_bytes() for path in arena.record_paths()}
    os.kill(frozen.process.pid, signal.SIGCONT)
    codes = frozen.wait(), other.wait()
    if codes[1] or codes[0] not in (0, 1) or (codes[0] and "was taken over" not in frozen.text()):
        return f"exit codes {codes}: {frozen.text()[-800:]} {other.text()[-800:]}"
    changed = [str(path) for path, content in before.items() if path.read_bytes() != content]
    return f"records written twice: {changed}" if changed else None


def two_versions(arena: Arena, count: int, older: Path) -> Tally:
    """Stop or kill the sweep, continue it with an older version of the suite, kill that too, and complete the sweep."""
    tally = Tally("two versions of the code in turn over the same results and checkpoints")
    for _ in range(count):
        arena.clear()
        losses = []
        for start, end in (
            (arena.start, arena.random.choice([signal.SIGTERM, signal.SIGKILL])),
            (partial(arena.start_in, older), signal.SIGKILL),
            (arena.start, signal.SIGTERM),
        ):
            command = _training(start())
            command.process.join(arena.random.uniform(0.0, max(0.5, arena.seconds / 3)))
            if command.process.is_alive():
                os.kill(command.process.pid, end)
            command.wait()
            losses.append(_unreadable(arena))
        loss = next((loss for loss in losses if loss), None)
        last = arena.start_in(older)
        code = last.wait()
        tally.note(loss or (f"exit code {code}: {last.text()[-1500:]}" if code else arena.loss()))
    return tally


def campaign(
    large: Arena, arena: Arena, size: int, tell: Callable[[str], None], older: Path | None = None
) -> dict[str, Tally]:
    """Try every fault: `size` kills of the large sweep, and in proportion of the others on the small one.

    Args:
        large: The sweep that is killed.
        arena: The sweep for all other faults.
        size: How often it is killed.
        tell: Called with every kind of fault that was tried.
        older: A checkout of an older version of the suite with the same results; without one, no versions are mixed.
    """
    some = max(1, size // 10)
    plan: dict[str, Callable[[], Tally]] = {
        "torn-checkpoint": lambda: damaged_checkpoints(arena, some, "torn"),
        "flipped-checkpoint": lambda: damaged_checkpoints(arena, some, "flipped"),
        "torn-record": lambda: damaged_records(arena, 10 * some, "torn"),
        "flipped-record": lambda: damaged_records(arena, 20 * some, "flipped"),
        "full-disk": lambda: full_disk(arena, some),
        "two-commands": lambda: two_commands(arena, some),
        "killed-worker": lambda: killed_workers(arena, some, "local"),
        "jumping-clock": lambda: jumping_clock(arena, some),
        "stop": lambda: stops(arena, 2 * some),
        "frozen-owner": lambda: frozen_owners(arena, 2 * some),
        "kill": lambda: kills(large, size),
    }
    if older is not None:
        plan["two-versions"] = lambda: two_versions(arena, some, older)
    if importlib.util.find_spec("ray") is not None:
        plan["killed-ray-worker"] = lambda: killed_workers(arena, max(1, some // 2), "ray")
    tallies = {}
    for name, action in plan.items():
        tallies[name] = action()
        tell(f"{name}: {tallies[name].survived} of {tallies[name].tried} survived")
    return tallies


def to_json(tallies: dict[str, Tally], **origin: Any) -> str:
    """Return the text of `reliability.json`."""
    kinds = {name: asdict(tally) for name, tally in tallies.items()}
    return json.dumps({"schema": SCHEMA, **origin, "kinds": kinds}, indent=1, ensure_ascii=False) + "\n"
