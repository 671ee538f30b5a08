"""How a training step reaches a GPU: one operation at a time, captured or compiled; alone and side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.config import Precision
from benchmarks.machine.precision import resolve_precision
from benchmarks.models import find_builder, input_shape
from benchmarks.perf.measure import Candidate, Settings, captured, in_turns, median_ms, median_ratio
from benchmarks.perf.train import engine, synthetic
from benchmarks.perf.workers import Workers
from benchmarks.training.step import autocast

MODELS = ("resnet20", "resnet56")

SIDE_BY_SIDE = (1, 3, 6)

BATCHES = 100  # of an epoch that is measured side by side

FAILURES = (RuntimeError, OSError, ImportError)  # of compilers

NOTE = (
    "One training step (forward, backward, SGD with momentum) on one batch that stays on the device, channels-last, in "
    "the precision that `auto` chooses. `eager`: operation by operation. `captured`: the whole step as one CUDA graph, "
    "as the suite's training does it. `graphed callables`: forward and backward by "
    "`torch.cuda.make_graphed_callables`, the update eager. `compiled` and `reduce-overhead`: forward and backward by "
    "`torch.compile` in its default mode and in that mode. `set-up s` is the time until the form is ready. The rows "
    "with runs are epochs of the suite's training, each in a process of its own, at the same time on one device: all "
    "their images count. Without CUDA only `eager` and `compiled` exist."
)


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row per network and form, then a row per network and number of runs on one device."""
    precision = resolve_precision("auto", settings.device.type)
    for name in settings.models or MODELS:
        yield from _forms(name, precision, settings)
    for name in (settings.models or MODELS) if settings.device.type == "cuda" else ():
        yield from _side_by_side(name, precision, settings)


def step_of(
    model: nn.Module, images: Tensor, labels: Tensor, precision: Precision, original: nn.Module, *, in_place: bool
) -> Candidate:
    """Return a step of `model`, which may be a compiled or graphed form of `original`.

    Args:
        model: What is called.
        images: A batch, on the device.
        labels: Its labels.
        precision: Of the forward pass.
        original: Holds the parameters.
        in_place: Whether gradients keep their memory from step to step, as a capture of the whole step needs it. The
            other forms must not: the gradients that a graph of their own returns are in its memory, which the next
            replay overwrites.
    """
    optimizer = torch.optim.SGD(
        original.parameters(),
        lr=1e-6,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
        fused=True if images.is_cuda else None,
    )
    model.train()

    def step() -> None:
        with autocast(images.device, precision, cache=False):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad(set_to_none=not in_place)
        loss.backward()
        optimizer.step()

    return step


def _eager(name: str, precision: Precision, settings: Settings, wrap: Callable[..., nn.Module] | None) -> Candidate:
    torch.manual_seed(0)
    shape = input_shape(name)
    images = torch.randn(settings.batch_size, *shape, device=settings.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(settings.batch_size, device=settings.device) % 10
    model = find_builder(name)(10).to(settings.device).to(memory_format=torch.channels_last)
    called = model if wrap is None else wrap(model, images)
    step = step_of(called, images, labels, precision, model, in_place=wrap is None)
    step()
    return step


def _graphed(model: nn.Module, images: Tensor, precision: Precision) -> nn.Module:
    with autocast(images.device, precision, cache=False):
        return cast(nn.Module, torch.cuda.make_graphed_callables(model, (images,)))


def _compiled(model: nn.Module, images: Tensor, mode: str | None) -> nn.Module:
    return cast(nn.Module, torch.compile(model, mode=mode))


def makers(name: str, precision: Precision, settings: Settings) -> dict[str, Callable[[], Candidate]]:
    """Return what builds each form of the step that the device knows."""
    build = partial(_eager, name, precision, settings)
    found: dict[str, Callable[[], Candidate]] = {"eager": partial(build, None)}
    if settings.device.type == "cuda":
        found["captured"] = lambda: captured(build(None), settings.device)
        found["graphed callables"] = partial(build, partial(_graphed, precision=precision))
    if "compiled" in settings.backends:
        found["compiled"] = partial(build, partial(_compiled, mode=None))
        if settings.device.type == "cuda":
            found["reduce-overhead"] = partial(build, partial(_compiled, mode="reduce-overhead"))
    return found


def _forms(name: str, precision: Precision, settings: Settings) -> Iterator[dict[str, Any]]:
    candidates: dict[str, Candidate] = {}
    ready: dict[str, float] = {}
    failures: dict[str, str] = {}
    for form, make in makers(name, precision, settings).items():
        start = time.perf_counter()
        try:
            candidates[form] = make()
        except FAILURES as error:
            failures[form] = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        ready[form] = round(time.perf_counter() - start, 1)
    times = in_turns(candidates, settings.repeats, settings.device, warmup=5)
    for form in ready:
        row: dict[str, Any] = {"model": name, "precision": precision, "batch": settings.batch_size, "form": form}
        if form in failures:
            yield row | {"step ms": failures[form], "set-up s": ready[form]}
            continue
        yield row | {
            "step ms": median_ms(times, form),
            "images/s": round(settings.batch_size / median_ms(times, form) * 1e3),
            "x eager": median_ratio(times, "eager", form),
            "set-up s": ready[form],
        }


def _side_by_side(name: str, precision: Precision, settings: Settings) -> Iterator[dict[str, Any]]:
    counts = [count for count in SIDE_BY_SIDE if count <= (torch.get_num_threads() or 1) or count == 1]
    for graphs in (False, True):
        alone = 0.0
        for count in counts:
            with ExitStack() as stack:
                workers = stack.enter_context(Workers(count, partial(epoch_of, name, precision, settings, graphs)))
                times = in_turns({"all": workers}, 3, settings.device, warmup=1)
            rate = count * BATCHES * settings.batch_size / median_ms(times, "all") * 1e3
            alone = alone or rate
            yield {
                "model": name,
                "precision": precision,
                "batch": settings.batch_size,
                "form": "runs, captured" if graphs else "runs, eager",
                "at a time": count,
                "images/s": round(rate),
                "x one run": round(rate / alone, 3),
            }


def epoch_of(name: str, precision: Precision, settings: Settings, graphs: bool) -> Candidate:
    """Return an epoch of the suite's training on random images."""
    torch.manual_seed(0)
    model = find_builder(name)(10).to(settings.device)
    data = synthetic(BATCHES * settings.batch_size)
    return engine(model, data, settings, precision, graphs=graphs)._train_epoch
