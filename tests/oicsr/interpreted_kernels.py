"""Checks of the Triton kernels, run by `test_kernels.py` in a process of its own under Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import oicsr
from oicsr import reference
from oicsr.fast import passes, tiles
from oicsr.fast.layout import Layout
from tests.oicsr.networks import Basic, Chain, Mixed
from tests.oicsr.test_fast import (
    Transposed,
    couplings_of,
    kill_channel,
    quiet_couplings,
    relative_error,
)

TOLERANCE = 1e-6


def wide() -> nn.Module:
    """Two layers larger than a tile, of sizes that no tile divides, the second one along both axes."""
    return nn.Sequential(nn.Linear(20, 37), nn.Linear(37, 18), nn.Linear(18, 3))


def check_passes(model: nn.Module, couplings: list[oicsr.Coupling]) -> None:
    """Compare energies, fresh products, added products and scaling with the references."""
    layout = Layout.of(couplings, ("out", "in", "norm"))
    weights = [w.detach() for w in layout.weights(model)]
    table, factors = layout.table(weights), torch.rand(layout.channels)
    assert table.tiles is not None
    assert (
        relative_error(passes.energies(weights, table), reference.energies(weights, layout.terms, layout.channels))
        < TOLERANCE
    )
    wanted = reference.products(weights, layout.terms, factors)
    needed = [i % 3 != 1 for i in range(len(weights))]
    targets: list[Tensor | None] = [
        torch.ones_like(w) if need else None for w, need in zip(weights, needed, strict=True)
    ]
    passes.add_products_(targets, weights, table, factors)
    for got, added, want, need in zip(
        passes.products(weights, needed, table, factors), targets, wanted, needed, strict=True
    ):
        assert (got is not None) == need == (added is not None)
        assert got is None or relative_error(got, want) < TOLERANCE
        assert added is None or relative_error(added, want + 1) < TOLERANCE
    check_scaling(weights, layout, factors, needed)


def check_scaling(weights: list[Tensor], layout: Layout, factors: Tensor, needed: list[bool]) -> None:
    """Compare scaling by rows and columns in place with the reference."""
    shrunk = reference.scaled(weights, layout.terms, factors)
    wanted = [s if need else w.clone() for s, w, need in zip(shrunk, weights, needed, strict=True)]
    passes.scale_(weights, needed, layout.table(weights), factors)
    for got, want in zip(weights, wanted, strict=True):
        assert torch.allclose(got, want, rtol=1e-6)


def check_the_way_through(launches: list[str]) -> None:
    """Take the penalty's gradient by the kernels, directly and by autograd, from weights that move in memory."""
    model = Chain()
    couplings = couplings_of(Chain)
    kill_channel(model, couplings[0], 1)
    penalty = oicsr.GroupLasso(couplings, strength=0.5)
    for _ in range(2):
        model.zero_grad()
        launches.clear()
        penalty(model).backward()
        through_autograd = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        model.zero_grad()
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        penalty.add_gradient(model)
        assert launches == ["square_sums", "channel_sums", "combine"] * 2
        direct = [p.grad for p in model.parameters() if bool(p.grad.any())]
        for a, b in zip(direct, through_autograd, strict=True):
            assert torch.allclose(a, b, atol=1e-6) and bool(a.isfinite().all())
        assert float(model.conv1.weight.grad[1].abs().max()) == 0
        for p in model.parameters():
            p.data = p.data.clone() * 2  # another address


def check_nothing_unwritten_is_read() -> None:
    """Fill new memory with NaN: every sum that a channel adds up has been written before."""
    model, empty = wide(), torch.empty
    couplings = quiet_couplings(model, torch.zeros(1, 20))
    torch.empty = lambda *size, **options: empty(*size, **options).fill_(torch.nan)  # type: ignore[assignment]
    try:
        assert all(bool(energy.isfinite().all()) for energy in oicsr.channel_energy(model, couplings))
    finally:
        torch.empty = empty


def check_orders_in_memory(launches: list[str]) -> None:
    """Leave a gradient of another memory order to PyTorch, and that one alone; a 1 x 1 weight has no order."""
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 4, 3))
    couplings = quiet_couplings(model, torch.zeros(1, 3, 8, 8))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    penalty = oicsr.GroupLasso(couplings, strength=0.5)
    wanted = torch.autograd.grad(penalty(model), [layer.weight for layer in model])
    combined: list[list[bool]] = []
    combine = tiles.Tiles.combine
    tiles.Tiles.combine = lambda self, targets, *args, **options: (  # type: ignore[method-assign]
        combined.append([target is not None for target in targets]),
        combine(self, targets, *args, **options),
    )[1]
    try:
        for odd in (False, True):
            for layer in model:
                layer.weight.grad = torch.zeros_like(layer.weight)
            model[1].weight.grad = torch.zeros(5, 6, 1, 1)  # strides (6, 1, 1, 1); the weight's are (6, 1, 6, 6)
            if odd:
                model[2].weight.grad = torch.zeros(4, 5, 3, 3)
            launches.clear()
            penalty.add_gradient(model)
            assert launches == ["square_sums", "channel_sums", "combine"] and combined[-1] == [True, True, not odd]
            for layer, want in zip(model, wanted, strict=True):
                assert torch.allclose(layer.weight.grad, want, atol=1e-6)
    finally:
        tiles.Tiles.combine = combine  # type: ignore[method-assign]


def check_wrong_lengths(launches: list[str]) -> None:
    """Refuse what would read or write past the end of a tensor, before anything is launched."""
    layout = Layout.of(couplings_of(Chain), ("out", "in"))
    weights = [w.detach() for w in layout.weights(Chain())]
    table = layout.table(weights)
    assert table.tiles is not None
    launches.clear()
    wrong: list[tuple[Any, str]] = [
        (lambda: passes.add_products_(weights, weights, table, torch.zeros(3)), "factors have shape"),
        (lambda: table.tiles.combine(weights, weights, torch.zeros(3), add=True, multiply=False), "there are"),
        (lambda: layout.table([w[:1] for w in weights]), "not those of this network"),
        (
            lambda: table.tiles.combine(
                [w[:1] for w in weights], weights, torch.zeros(table.tiles.slices), add=True, multiply=False
            ),
            "a target of shape",
        ),
    ]
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
    assert launches == []


def record_launches() -> list[str]:
    """Let every launch leave the kernel's name in the list that is returned."""
    names: list[str] = []
    launch = tiles._launch

    def recording(name: str, *arguments: Any) -> bool:
        names.append(name)
        return launch(name, *arguments)

    tiles._launch = recording
    return names


def main() -> None:
    """Run all checks on the CPU."""
    tiles.KERNEL_DEVICES.add("cpu")
    tiles.HEIGHT, tiles.ROWS, tiles.COLUMNS, tiles.BLOCK = 8, 4, 16, 4  # so that small layers have many tiles
    torch.manual_seed(0)
    launches = record_launches()
    for network in (Chain, Basic, Mixed, Transposed):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            check_passes(network().to(memory_format=memory_format), couplings_of(network))  # type: ignore[call-overload]
    model = wide()
    check_passes(model, quiet_couplings(model, torch.zeros(1, 20)))
    check_the_way_through(launches)
    check_nothing_unwritten_is_read()
    check_orders_in_memory(launches)
    check_wrong_lengths(launches)


if __name__ == "__main__":
    main()
