"""Coverage: which networks of torchvision and timm can be pruned, by this library and by torch-pruning.

Command: `python -m benchmarks coverage`. Every network goes through the same steps in its own process: trace, find
the couplings, remove channels at random down to half of the MACs, compare the outputs in float64 with those of the
unpruned network whose removed channels are empty, and take one step of training. A row of `coverage.csv` is written
after each network, and a network with a row is not run again, so that an interrupted table can be resumed.

The limit is 60 s of CPU time on one thread per network and tool (not wall-clock time: the machine may be shared).
"""

from __future__ import annotations

import math
import multiprocessing
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.coverage.peer import groups_of, heads_of, set_by_hand
from benchmarks.coverage.table import (
    CLASSES,
    COLUMNS,
    LIMIT_SECONDS,
    MACS_KEPT,
    PEER_RATIO,
    PEER_REACHED,
    TOLERANCE,
    Row,
)
from benchmarks.coverage.tasks import freely, opened, outputs_of, task_of, training_loss
from oicsr import Coupling, PruningPlan, count_macs, remove_channels, select_channels, trace_couplings
from oicsr.complexity import find_tensor
from oicsr.networks.copying import MODEL_ERRORS
from oicsr.networks.inputs import ExampleInputs, as_inputs
from oicsr.proving.chance import measured, measuring, move_statistics
from oicsr.tracing.trace import Scope

MAX_REMOVED = 0.95

WALL_SECONDS = 3600  # for a process that hangs without working; on a busy machine, a minute of work takes many

MEMORY_BYTES = 20 << 30

PACKAGES = ("torch", "torchvision", "timm", "torch-pruning")

FAILURES = (*MODEL_ERRORS, MemoryError, RecursionError)


@torch.no_grad()
def disturb(model: nn.Module, inputs: ExampleInputs) -> None:
    """Perturb constant initialisations and statistics, as training would.

    Scales of zero hide entire blocks. Statistics far from those of what comes in hide them, too, beside all that later
    layers add, so those of one pass are taken, moved at random.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            parameter.add_(torch.empty_like(parameter).uniform_(0.1, 0.5, generator=generator))
    model.eval()
    norms = measured(model)
    with measuring(norms):
        as_inputs(inputs).call(model)
    for buffer, values in move_statistics(norms, generator):
        buffer.copy_(values)


def random_plan(
    model: nn.Module, images: Tensor, couplings: Sequence[Coupling], macs_kept: float = MACS_KEPT
) -> PruningPlan:
    """Return a plan that removes channels at random, over all layers, down to a share of the MACs.

    Raises:
        ValueError: The share is out of reach.
    """
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(coupling.num_channels, generator=generator) for coupling in couplings]
    return select_channels(scores, couplings, model, images, macs_kept=macs_kept, max_removed=MAX_REMOVED)


@torch.no_grad()
def invariance_error(model: nn.Module, images: Tensor, couplings: Sequence[Coupling], plan: PruningPlan) -> float:
    """Zero the channels to remove, remove them, and return the largest relative change of an output, in float64.

    `model` is changed: to float64, and its channels are zeroed, but for the rows of weights that are divided by their
    own length.
    """
    model.double()
    for coupling in couplings:
        stays = torch.zeros(coupling.num_channels + 1, dtype=torch.bool)
        stays[[*plan.kept[coupling.name], -1]] = True  # the last one is for the id -1
        for member in coupling.members:
            if member.side == "in" or (member.side == "out" and ".parametrizations." not in member.parameter):
                gone = (~stays[member.channels]).nonzero().flatten()
                find_tensor(model, member.parameter).index_fill_(member.dim, gone, 0)
    before = outputs_of(model(images.double()))
    after = outputs_of(remove_channels(model, plan)(images.double()))
    return max(
        float((wide - narrow).abs().max() / wide.abs().max()) for wide, narrow in zip(before, after, strict=True)
    )


def takes_training_step(model: nn.Module, images: Tensor) -> bool:
    """Take one step of SGD; return whether loss and weights are finite afterwards."""
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loss = training_loss(model(images), CLASSES)
    loss.backward()
    optimizer.step()
    return math.isfinite(float(loss.detach())) and all(bool(p.isfinite().all()) for p in model.parameters())


def examine(name: str) -> Row:
    """Run all steps on a network; the row says how far it got, and why not further."""
    row: Row = {"traced": "no", "passed": "no"}
    try:
        model, images = _prepare(name)
        model = opened(model)
        row["image_size"] = str(images.shape[-1])
        row["macs_before"] = str(count_macs(model, images[:1]))
        model, couplings, plan = _set_free(model, images, row)
        small = remove_channels(model, plan)
        row["macs_after"] = str(count_macs(small, images[:1]))
        row["train_step"] = "finite" if takes_training_step(small, images) else "not finite"
        del small
        disturb(model, images)
        error = invariance_error(model, images, couplings, plan)
        row["invariance_error"] = f"{error:.1e}"
        if not error < TOLERANCE:
            row["reason"] = "outputs change although only empty channels were removed"
        elif row["train_step"] != "finite":
            row["reason"] = "the training step is not finite"
        row["passed"] = "no" if "reason" in row else "yes"
    except FAILURES as error:
        row["reason"] = _describe(error)
    return row


def _prepare(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    task = task_of(name)
    model = task.build(name, CLASSES).eval()
    return model, task.examples(model, name)


def _set_free(model: nn.Module, images: Tensor, row: Row) -> tuple[nn.Module, list[Coupling], PruningPlan]:
    """Return the network, couplings and a plan; attention in code of its own is opened where half is out of reach."""
    try:
        return model, *_choose_scope(model, images, row)
    except ValueError:
        freed = freely(model)
        if freed is None:
            raise
    return freed, *_choose_scope(freed, images, row)


def _choose_scope(model: nn.Module, images: Tensor, row: Row) -> tuple[list[Coupling], PruningPlan]:
    """Return couplings and a plan to half of the MACs, in the paper's scope if it reaches that far, else in `all`."""
    scope: Scope
    for scope in ("inner", "all"):
        trace = trace_couplings(model, images, scope=scope)
        row.update(traced="yes", scope=scope, couplings=str(len(trace.couplings)))
        try:
            return trace.couplings, random_plan(model, images, trace.couplings)
        except ValueError as error:
            if scope == "all":
                raise ValueError("; ".join([str(error), *trace.unruled[:3]])) from error
    raise AssertionError  # not reached


def examine_peer(name: str) -> Row:
    """Let torch-pruning remove a share of every layer, told of heads of attention, and take one step of training."""
    row: Row = {"torch_pruning": "no"}
    try:
        import torch_pruning

        model, images = _prepare(name)
        dense = count_macs(model, images[:1])
        last = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == CLASSES]
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        pruner = torch_pruning.pruner.BasePruner(
            model,
            images,
            importance=importance,
            pruning_ratio=PEER_RATIO,
            ignored_layers=last,
            num_heads=heads_of(model),
            out_channel_groups=groups_of(model),
            output_transform=outputs_of,
        )
        pruner.step()
        set_by_hand(model, pruner.num_heads)
        kept = count_macs(model.eval(), images[:1])
        row["torch_pruning_macs_after"] = str(kept)
        if kept > PEER_REACHED * dense:
            row["torch_pruning_reason"] = f"leaves {kept / dense:.0%} of the MACs"
        elif not takes_training_step(model, images):
            row["torch_pruning_reason"] = "the training step is not finite"
        else:
            row["torch_pruning"] = "yes"
    except FAILURES as error:
        row["torch_pruning_reason"] = _describe(error)
    return row


def _describe(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {line}"[:300]


def in_own_process(function: Callable[[str], Row], name: str, limit: float) -> tuple[Row, float, str]:
    """Run a step in a process with limits; return its row, its CPU seconds, and why it was stopped."""
    context = multiprocessing.get_context("fork")  # libraries are already imported
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(function, name, limit, sender))
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads; the child uses none of them
        process.start()
    sender.close()
    row, seconds, stopped = {}, limit, f"took more than {limit:g} s"
    if receiver.poll(WALL_SECONDS):
        try:
            row, seconds = receiver.recv()
            stopped = ""
        except EOFError:
            pass
    else:
        stopped = f"hung for {time.perf_counter() - start:.0f} s"
    process.kill()
    process.join()
    if stopped and process.exitcode not in (-signal.SIGXCPU, -signal.SIGKILL):
        stopped = f"ended the process with exit code {process.exitcode}"
    return row, seconds, stopped


def _work(function: Callable[[str], Row], name: str, limit: float, sender: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(limit), math.ceil(limit) + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        row = function(name)
    except Exception as error:  # any error of a third-party library becomes the row's reason
        traceback.print_exc()
        row = {"reason": _describe(error), "torch_pruning_reason": _describe(error)}
    sender.send((row, time.process_time()))


def cover(name: str, limit: float = LIMIT_SECONDS) -> Row:
    """Return the row of a network, without the columns of torch-pruning."""
    row, seconds, stopped = in_own_process(examine, name, limit)
    found = {"network": name, "traced": "no", "passed": "no", **row, "seconds": f"{seconds:.1f}"}
    if stopped:
        found |= {"passed": "no", "reason": stopped}
    found["versions"] = " ".join(f"{package}-{version(package)}" for package in PACKAGES)
    return {column: found.get(column, "") for column in COLUMNS}


def cover_peer(name: str, limit: float = LIMIT_SECONDS) -> Row:
    """Return the columns of torch-pruning."""
    row, seconds, stopped = in_own_process(examine_peer, name, limit)
    found = {"torch_pruning": "no", "torch_pruning_reason": stopped, **row, "torch_pruning_seconds": f"{seconds:.1f}"}
    return {column: found.get(column, "") for column in COLUMNS if column.startswith("torch_pruning")}
