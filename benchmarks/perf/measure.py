"""Interleaved timing: candidates run in turn in every round, so that a busy machine slows all of them equally."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from oicsr import Coupling, UnprunedChannelsWarning, find_couplings
from oicsr.tracing.trace import Scope

Candidate = Callable[[], object]

Times = dict[str, list[float]]

BACKENDS = ("eager", "compiled")

LEAST_ROUNDS = 3  # even if a measurement is cut short


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: Where to measure.
        repeats: Rounds that count.
        batch_size: Images per training step.
        models: Names of networks; empty for each benchmark's own.
        backends: Some of `BACKENDS`, for latencies.
    """

    device: torch.device
    repeats: int = 20
    batch_size: int = 128
    models: tuple[str, ...] = ()
    backends: tuple[str, ...] = BACKENDS


def in_turns(
    candidates: Mapping[str, Candidate],
    repeats: int,
    device: torch.device,
    warmup: int = 2,
    seconds: float = math.inf,
) -> Times:
    """Return the seconds of each candidate in each round; the order rotates from round to round.

    No round starts after `seconds`, except the first three.
    """
    names = list(candidates)
    times: Times = {name: [] for name in names}
    stop = time.perf_counter() + seconds
    for turn in range(warmup + repeats):
        if turn >= warmup + LEAST_ROUNDS and time.perf_counter() > stop:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            taken = timed(candidates[name], device)
            if turn >= warmup:
                times[name].append(taken)
    return times


def timed(candidate: Candidate, device: torch.device) -> float:
    """Return the seconds that one call takes, the device's work included."""
    wait(device)
    start = time.perf_counter()
    candidate()
    wait(device)
    return time.perf_counter() - start


def captured(candidate: Candidate, device: torch.device) -> Candidate:
    """Return the replay of a CUDA graph of a candidate, warmed up on a side stream as PyTorch asks for.

    A graph keeps no tensor alive that it reads: the replay holds the candidate, and with it the model and the batch.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            candidate()
    torch.cuda.current_stream(device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        candidate()
    return partial(_replay, graph, candidate)


def _replay(graph: torch.cuda.CUDAGraph, owner: Candidate) -> None:
    graph.replay()


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_ms(times: Times, name: str) -> float:
    """Return the median of a candidate, in milliseconds."""
    return round(statistics.median(times[name]) * 1e3, 4)


def median_ratio(times: Times, over: str, under: str) -> float:
    """Return how many times as long `over` takes as `under`: the median over rounds of the ratio within a round."""
    return round(statistics.median(a / b for a, b in zip(times[over], times[under], strict=True)), 4)


def quiet_couplings(model: nn.Module, example_inputs: Tensor, scope: Scope = "inner") -> list[Coupling]:
    """Return the couplings, without warnings about channels that are kept: only time is measured here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnprunedChannelsWarning)
        return find_couplings(model, example_inputs, scope=scope)
