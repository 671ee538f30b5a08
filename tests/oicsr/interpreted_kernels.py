"""Checks of the Triton kernels, run by `test_kernels.py` in a process of its own under Triton's interpreter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import oicsr
from oicsr import fused, kernels
from oicsr.energy import Layout
from tests.oicsr.networks import Basic, Chain, Mixed
from tests.oicsr.test_fused import (
    Transposed,
    couplings_of,
    kill_channel,
    quiet_couplings,
    reference_energy,
    reference_gradient,
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
    assert relative_error(fused.energies(weights, table), reference_energy(weights, layout)) < TOLERANCE
    wanted = reference_gradient(weights, layout, factors)
    needed = [i % 3 != 1 for i in range(len(weights))]
    targets: list[Tensor | None] = [
        torch.ones_like(w) if need else None for w, need in zip(weights, needed, strict=True)
    ]
    fused.add_products_(targets, weights, table, factors)
    for got, added, want, need in zip(
        fused.products(weights, needed, table, factors), targets, wanted, needed, strict=True
    ):
        assert (got is not None) == need == (added is not None)
        assert got is None or relative_error(got, want) < TOLERANCE
        assert added is None or relative_error(added, want + 1) < TOLERANCE
    check_scaling(weights, layout, factors, needed)


def check_scaling(weights: list[Tensor], layout: Layout, factors: Tensor, needed: list[bool]) -> None:
    """Compare scaling by rows and columns in place with the reference."""
    wanted = [w.clone() for w in weights]
    padded = torch.cat([factors, torch.ones(1)])
    for term in layout.terms:
        if needed[term.weight]:
            wanted[term.weight] *= fused.reference_scale(wanted[term.weight], term.dim, padded[term.channels])
    fused.scale_(weights, needed, layout.table(weights), factors)
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
        assert launches == ["_energy_kernel", "_scale_kernel"] * 2
        direct = [p.grad for p in model.parameters() if bool(p.grad.any())]
        for a, b in zip(direct, through_autograd, strict=True):
            assert torch.allclose(a, b, atol=1e-6) and bool(a.isfinite().all())
        assert float(model.conv1.weight.grad[1].abs().max()) == 0
        for p in model.parameters():
            p.data = p.data.clone() * 2  # another address


def record_launches() -> list[str]:
    """Let every launch leave the kernel's name in the list that is returned."""
    names: list[str] = []
    launch = kernels._launch

    def recording(kernel: object, *arguments: object, **options: bool) -> None:
        names.append(kernel.fn.__name__)  # type: ignore[attr-defined]
        launch(kernel, *arguments, **options)  # type: ignore[arg-type]

    kernels._launch = recording  # type: ignore[assignment]
    return names


def main() -> None:
    """Run all checks on the CPU."""
    fused.KERNEL_DEVICES.add("cpu")
    kernels.TILE_ROWS, kernels.TILE_COLUMNS = 8, 16  # so that small layers have many tiles
    torch.manual_seed(0)
    launches = record_launches()
    for network in (Chain, Basic, Mixed, Transposed):
        for memory_format in (torch.contiguous_format, torch.channels_last):
            check_passes(network().to(memory_format=memory_format), couplings_of(network))  # type: ignore[call-overload]
    model = wide()
    check_passes(model, quiet_couplings(model, torch.zeros(1, 20)))
    check_the_way_through(launches)
    torch.use_deterministic_algorithms(True)
    launches.clear()
    oicsr.GroupLasso(couplings_of(Chain)).add_gradient(Chain())
    assert launches == []  # their sums differ in the last bit from run to run


if __name__ == "__main__":
    main()
