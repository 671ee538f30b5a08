"""The Triton kernels without a GPU: in Triton's interpreter against the references, and through its compiler."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import oicsr
from oicsr.fast import tiles
from oicsr.fast.layout import Layout
from tests.oicsr.networks import Chain
from tests.oicsr.test_fast import couplings_of, quiet_couplings

triton = pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)


def test_interpreted_kernels_equal_the_references() -> None:
    done = run_python("-m", "tests.oicsr.interpreted_kernels", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_broken_kernel_is_noticed() -> None:
    """The check above can fail: with the row's factor left out, it does."""
    source = "from oicsr.fast import passes; from tests.oicsr import interpreted_kernels as k; "
    broken = "passes.spread = lambda table, factors, neutral: factors.new_zeros(len(table.index)); k.main()"
    done = run_python("-c", source + broken, TRITON_INTERPRET="1")
    assert done.returncode != 0 and "AssertionError" in done.stderr


SUMS = {"addresses": "*i64", "shapes": "*i64", "tiles": "*i64", "sums": "*fp32"}
CHANNELS = {"sums": "*fp32", "places": "*i64", "starts": "*i64", "energies": "*fp32"}
COMBINE = {"addresses": "*i64", "targets": "*i64", "shapes": "*i64", "tiles": "*i64", "per_slice": "*fp32"}
TILE = {"HEIGHT": tiles.HEIGHT, "ROWS": tiles.ROWS, "COLUMNS": tiles.COLUMNS}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    ("kernel", "types", "options"),
    [
        ("square_sums", SUMS, TILE),
        ("channel_sums", CHANNELS, {"BLOCK": tiles.BLOCK}),
        ("combine", COMBINE, {"ADD": True, "MULTIPLY": False, **TILE}),
        ("combine", COMBINE, {"ADD": False, "MULTIPLY": False, **TILE}),
        ("combine", COMBINE, {"ADD": False, "MULTIPLY": True, **TILE}),
    ],
)
def test_kernels_compile_for_cuda_without_atomics(kernel: str, types: dict[str, str], options: dict[str, Any]) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from oicsr.fast import kernels

    signature = {**types, **dict.fromkeys(options, "constexpr")}
    source = ASTSource(getattr(kernels, kernel), signature, options)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0
    # an atomic addition comes when its thread does: the last bit, and with it a near tie, would differ between runs
    assert not re.search(r"\b(atom|red)\.", compiled.asm["ptx"])


def test_where_kernels_cannot_run_pytorch_does_the_work_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without a GPU the first launch fails as it does without a compiler: nothing can be built."""
    monkeypatch.setattr(tiles, "_obstacles", [])
    model, couplings = Chain(), couplings_of(Chain)
    penalty = oicsr.GroupLasso(couplings, strength=0.5)
    wanted = torch.autograd.grad(penalty(model), model.conv2.weight)[0]
    monkeypatch.setattr(tiles, "KERNEL_DEVICES", {"cpu"})
    monkeypatch.setattr(tiles, "_on", lambda device: no_compiler())
    penalty = oicsr.GroupLasso(couplings, strength=0.5)
    with pytest.warns(RuntimeWarning, match=r"Triton kernels cannot run here \(.*no C compiler") as seen:
        penalty.add_gradient(model)
    assert seen[0].filename == __file__
    assert len(seen) == 1 and torch.equal(model.conv2.weight.grad, wanted)
    penalty.add_gradient(model)  # warnings are errors here
    oicsr.ProximalGroupLasso(couplings).proximal_step(model, 0.1)
    assert torch.equal(model.conv2.weight.grad, 2 * wanted)


def test_tables_of_tiles_and_addresses_are_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the default device: pinned memory is the CPU's, and ids of channels are sorted there."""
    monkeypatch.setattr(tiles, "KERNEL_DEVICES", {"cpu"})
    model, couplings = Chain(), couplings_of(Chain)
    layout = Layout.of(couplings, ("out", "in"))
    weights = [weight.detach() for weight in layout.weights(model)]
    with torch.device("meta"):
        found = layout.table(weights).tiles
        assert found is not None
        addresses = found.addresses(weights)
    wanted = Layout.of(couplings, ("out", "in")).table(weights).tiles
    assert addresses is not None and addresses.tolist() == [weights[i].data_ptr() for i in found.weights]
    assert wanted is not None and torch.equal(found.places, wanted.places) and torch.equal(found.starts, wanted.starts)


def no_compiler() -> AbstractContextManager[None]:
    raise RuntimeError("no C compiler")


class FakeTensor:
    """Has a device; that is all a launch looks at."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)


def test_kernels_are_launched_on_the_device_of_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    current = ["cuda:0"]
    launched: list[tuple[str, object]] = []

    @contextmanager
    def device(wanted: torch.device) -> Iterator[None]:
        before, current[0] = current[0], str(wanted)
        yield
        current[0] = before

    class Kernel:
        def __getitem__(self, grid: tuple[int]) -> Any:
            return lambda *arguments, **options: launched.append((current[0], grid))

    monkeypatch.setattr(torch.cuda, "device", device)
    from oicsr.fast import kernels

    monkeypatch.setattr(kernels, "combine", Kernel())
    for name in ("cuda:1", "cuda:0"):
        assert tiles._launch("combine", 7, [FakeTensor(name)], {})  # type: ignore[list-item]
    assert tiles._launch("combine", 0, [FakeTensor("cuda:1")], {})  # type: ignore[list-item]
    assert launched == [("cuda:1", (7,)), ("cuda:0", (7,))] and current == ["cuda:0"]


@pytest.mark.gpu
def test_energies_on_a_gpu_are_the_same_to_the_last_bit_in_every_run() -> None:
    torch.manual_seed(0)
    model = wide_network().cuda()
    couplings = quiet_couplings(model, torch.zeros(1, 20, device="cuda"))
    wanted = [e.cpu() for e in oicsr.channel_energy(model, couplings)]
    for energy, reference in zip(wanted, oicsr.channel_energy(model.cpu(), couplings), strict=True):
        assert torch.allclose(energy, reference, rtol=1e-5)
    model.cuda()
    for _ in range(50):
        for energy, want in zip(oicsr.channel_energy(model, couplings), wanted, strict=True):
            assert torch.equal(energy.cpu(), want)
    assert not tiles._obstacles


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_model_on_another_device_than_the_current_one() -> None:
    torch.manual_seed(0)
    model = wide_network()
    couplings = quiet_couplings(model, torch.zeros(1, 20))
    penalty = oicsr.GroupLasso(couplings, strength=0.5)
    penalty.add_gradient(model)
    wanted = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model = model.to("cuda:1")
    model.zero_grad()
    with torch.cuda.device(0):
        penalty.add_gradient(model)
    got = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
    assert not tiles._obstacles
    for one, other in zip(got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def wide_network() -> nn.Module:
    """Layers of many tiles, along both axes."""
    return nn.Sequential(nn.Linear(20, 700), nn.Linear(700, 1300), nn.Linear(1300, 3))
