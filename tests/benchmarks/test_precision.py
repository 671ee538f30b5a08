"""`precision="auto"`: what the machine has in hardware, the keys of that precision, and its name in the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.machine import precision
from benchmarks.machine.precision import has_bfloat16, resolve_precision
from benchmarks.methods.registry import find_method
from benchmarks.records.record import RecordError, record_path
from benchmarks.running.export import cell_of
from benchmarks.running.run import run_cell
from benchmarks.running.stages import stages_of
from benchmarks.running.survey import check_same_configuration
from benchmarks.training import loop
from tests.benchmarks.small import small_bench, small_cell


def machine(monkeypatch: pytest.MonkeyPatch, *flags: str, **environment: str) -> None:
    monkeypatch.setattr(precision, "_processor_flags", lambda: frozenset({"fpu", "avx2", *flags}))
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def keys(wanted: str) -> list[str]:
    return [s.key for s in stages_of(small_cell(precision=wanted), find_method("oicsr-gl"), 0.1, "cpu")]


@pytest.mark.parametrize(
    ("flags", "limit", "expected"),
    [
        ((), "", False),
        (("avx512f", "avx512_vnni"), "", False),
        (("avx512_bf16",), "", True),
        (("amx_bf16",), "", True),
        (("asimd", "bf16"), "", True),
        (("avx512_bf16",), "AVX512_CORE", False),
        (("avx512_bf16",), "AVX512_CORE_VNNI", False),
        (("avx512_bf16",), "avx512_core_bf16", True),
        (("amx_bf16",), "AVX512_CORE_AMX", True),
        (("avx512_bf16",), "ALL", True),
    ],
)
def test_processors(flags: tuple[str, ...], limit: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, *flags, ONEDNN_MAX_CPU_ISA=limit)
    assert has_bfloat16("cpu") is expected
    assert resolve_precision("auto", "cpu") == ("bfloat16" if expected else "float32")
    assert [resolve_precision(name, "cpu") for name in ("float32", "bfloat16")] == ["float32", "bfloat16"]


@pytest.mark.parametrize("there", [True, False])
def test_gpus(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **options: (asked.append(options), there)[1])
    assert resolve_precision("auto", "cuda") == ("bfloat16" if there else "float32")
    assert asked == [{"including_emulation": False}]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is 'float16'; it must be 'float32', 'bfloat16' or 'auto'"):
        resolve_precision("float16", "cpu")


def test_this_processor_is_known() -> None:
    flags = precision._processor_flags()
    assert not Path("/proc/cpuinfo").is_file() or len(flags) > 10
    if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported():
        assert flags & precision.PROCESSOR_FLAGS


def test_stages_are_those_of_the_precision_that_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "avx512_bf16")
    assert keys("auto") == keys("bfloat16") != keys("float32")
    machine(monkeypatch)
    assert keys("auto") == keys("float32") != keys("bfloat16")


@pytest.mark.parametrize(("flags", "chosen"), [(("avx512_bf16",), "bfloat16"), ((), "float32")])
def test_a_run_is_trained_in_it_and_its_record_holds_it(
    flags: tuple[str, ...], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, *flags)
    used: set[str] = set()
    autocast = loop.autocast
    monkeypatch.setattr(
        loop, "autocast", lambda device, name, **how: (used.add(name), autocast(device, name, **how))[1]
    )
    bench, cell = small_bench(tmp_path), small_cell(precision="auto")
    record = run_cell(bench, cell)
    assert record.complete and record.config["precision"] == chosen and used == {chosen}
    # on any other machine the record leads to the same checkpoints, and is the record of this run
    machine(monkeypatch, *(() if flags else ("amx_bf16",)))
    assert cell_of(record).profile.precision == chosen
    check_same_configuration(cell, record, str(record_path(bench.results, cell)), bench)
    other: Any = "float32" if chosen == "bfloat16" else "bfloat16"
    with pytest.raises(RecordError, match=f"precision is '{other}' now and was '{chosen}'"):
        check_same_configuration(small_cell(precision=other), record, "there", bench)
