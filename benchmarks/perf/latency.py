"""Latency: how much of the speed-up promised by the MACs a pruned network achieves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import find_builder, input_shape
from benchmarks.perf.measure import Candidate, Settings, in_turns, median_ms, median_ratio, quiet_couplings
from oicsr import (
    count_macs,
    out_in_energy,
    remove_channels,
    select_channels,
)

MODELS = ("resnet56", "vgg16", "mobilenetv2")

MACS_KEPT = 0.5

ROUNDINGS = (1, 8)

BATCHES = (1, 128)

COMPILED_ON_CPU = ("resnet56",)  # of MODELS: six compilations of half a minute each are what a first look can wait for

SECONDS = 8.0  # of rounds per network, backend and batch size; the large batches of a CPU get fewer rounds

NOTE = (
    f"Inference of networks with about {MACS_KEPT:.0%} of the MACs (random weights, paper's scope) against the dense "
    "one: milliseconds per batch, measured speed-up, the speed-up that the MACs promise, and the share of "
    "it that is there. Channels-last, as the suite trains; `rounds` says how many there were in the time for them. On "
    "a CPU only resnet56 is compiled, unless --models names networks."
)


def run(settings: Settings) -> Iterator[dict[str, Any]]:
    """Yield a row per network, backend, batch size and rounding of the widths."""
    for name in settings.models or MODELS:
        example = torch.zeros(1, *input_shape(name))
        networks = pruned_networks(name, example)
        macs = {rounding: count_macs(network, example) for rounding, network in networks.items()}
        for backend in settings.backends:
            if settings.models or backend == "eager" or settings.device.type != "cpu" or name in COMPILED_ON_CPU:
                yield from _rows(name, backend, networks, macs, settings)


def _rows(
    name: str, backend: str, networks: Mapping[int, nn.Module], macs: Mapping[int, int], settings: Settings
) -> list[dict[str, Any]]:
    torch.compiler.reset()  # torch.compile recompiles a class only a few times, then runs it eagerly
    shape = input_shape(name)
    rows = []
    for batch in dict.fromkeys((1, min(BATCHES[1], settings.batch_size))):
        images = torch.randn(batch, *shape, device=settings.device).to(memory_format=torch.channels_last)
        candidates = {
            str(rounding): _inference(
                network.to(settings.device).to(memory_format=torch.channels_last), images, backend
            )
            for rounding, network in networks.items()
        }
        for candidate in candidates.values():
            candidate()  # compiles, outside the time for rounds
        times = in_turns(candidates, settings.repeats, settings.device, seconds=SECONDS)
        for rounding in ROUNDINGS:
            promised, measured = macs[0] / macs[rounding], median_ratio(times, "0", str(rounding))
            rows.append(
                {
                    "model": name,
                    "backend": backend,
                    "batch": batch,
                    "widths": f"multiples of {rounding}" if rounding > 1 else "any",
                    "rounds": len(times["0"]),
                    "dense ms": median_ms(times, "0"),
                    "pruned ms": median_ms(times, str(rounding)),
                    "x measured": measured,
                    "x MACs": round(promised, 4),
                    "share of promise": round((measured - 1) / (promised - 1), 3) if promised > 1 else None,
                }
            )
    return rows


def pruned_networks(name: str, example: Tensor) -> dict[int, nn.Module]:
    """Return the dense network under 0, and pruned ones by the multiple that their widths are rounded to."""
    torch.manual_seed(0)
    model = find_builder(name)(10).eval()
    couplings = quiet_couplings(model, example)
    scores = out_in_energy(model, couplings)
    networks = {0: model}
    for rounding in ROUNDINGS:
        plan = select_channels(
            scores, couplings, model, example, macs_kept=MACS_KEPT, max_removed=0.75, round_to=rounding
        )
        networks[rounding] = remove_channels(model, plan)
    return networks


def _inference(network: nn.Module, images: Tensor, backend: str) -> Candidate:
    if backend not in ("eager", "compiled"):
        raise ValueError(f"backend is {backend!r}; it must be 'eager' or 'compiled'")
    call = network if backend == "eager" else torch.compile(network, dynamic=False)

    def step() -> None:
        with torch.inference_mode():
            call(images)

    return step
