"""The Triton kernels without a GPU: in Triton's interpreter against the references, and through its compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

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
    source = "from oicsr import fused; from tests.oicsr import interpreted_kernels as k; "
    broken = "fused.spread = lambda table, factors, waste: factors.new_zeros(len(table.index)); k.main()"
    done = run_python("-c", source + broken, TRITON_INTERPRET="1")
    assert done.returncode != 0 and "AssertionError" in done.stderr


ENERGY = {"addresses": "*i64", "shapes": "*i64", "tiles": "*i64", "index": "*i64", "energies": "*fp32"}
SCALE = {"addresses": "*i64", "targets": "*i64", "shapes": "*i64", "tiles": "*i64", "per_slice": "*fp32"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize(
    ("kernel", "types", "options"),
    [
        ("_energy_kernel", ENERGY, {}),
        ("_scale_kernel", SCALE, {"ADD": True, "MULTIPLY": False}),
        ("_scale_kernel", SCALE, {"ADD": False, "MULTIPLY": False}),
        ("_scale_kernel", SCALE, {"ADD": False, "MULTIPLY": True}),
    ],
)
def test_kernels_compile_for_cuda(kernel: str, types: dict[str, str], options: dict[str, Any]) -> None:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from oicsr import kernels

    constants = {**options, "ROWS": kernels.TILE_ROWS, "COLUMNS": kernels.TILE_COLUMNS}
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(getattr(kernels, kernel), signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0
    assert ("atom.global" in compiled.asm["ptx"] or "red.global" in compiled.asm["ptx"]) == (kernel == "_energy_kernel")
