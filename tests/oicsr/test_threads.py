"""Several threads, and the state of the process that a trace changes for a while."""

from __future__ import annotations

import io
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.distributions import Distribution
from torch.nn.modules import transformer

import oicsr
from oicsr.networks.state import Muted

THREADS = 4


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )


def process_state() -> list[object]:
    """What belongs to all threads."""
    found: list[object] = [sys.stderr, list(warnings.filters), torch.get_default_dtype(), Distribution._validate_args]
    return [*found, getattr(transformer, "_detect_is_causal_mask", None), vars(nn.functional)["has_torch_function"]]


@pytest.mark.parametrize("prune", [True, False])
def test_threads_wait_for_each_other_and_leave_the_process_as_it_was(prune: bool) -> None:
    before = process_state()

    def work(_: int) -> list[int]:
        """Prune a network of one's own, or find its couplings."""
        model, images = network(), torch.zeros(1, 3, 12, 12)
        if prune:
            return oicsr.prune(model, images, macs_kept=0.5).macs
        return [c.num_channels for c in oicsr.find_couplings(model, images)]

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(work, range(2 * THREADS)))
    assert len(results) == 2 * THREADS and len(results[0]) == 2
    assert prune or results == [[8, 8]] * (2 * THREADS)
    assert process_state() == before


def written(thread: Callable[[], None], own: str) -> str:
    """Return what arrives where a thread and this one write to a muted stream."""
    stream, before = io.StringIO(), sys.stderr
    sys.stderr = stream
    try:
        sys.stderr = Muted()
        other = threading.Thread(target=thread)
        other.start()
        other.join()
        print(own, file=sys.stderr, flush=True)
    finally:
        sys.stderr = before
    return stream.getvalue()


def test_a_muted_stream_drops_what_its_own_thread_writes_alone() -> None:
    assert written(lambda: print("kept", file=sys.stderr), "dropped") == "kept\n"
