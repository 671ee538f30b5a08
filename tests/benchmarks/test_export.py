"""Networks leave the project whole: the same outputs elsewhere, and nothing that was tampered with is let in."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import oicsr
from benchmarks import cli
from benchmarks.methods.registry import find_method
from benchmarks.models import build_model
from benchmarks.records.record import Record
from benchmarks.running.checkpoints import CheckpointStore, CheckpointWarning
from benchmarks.running.export import ExportError, FinetunedNetwork, cell_of, export, find_record
from benchmarks.running.run import run_cell
from benchmarks.running.stages import stages_of
from tests.benchmarks.small import small_bench, small_cell

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    folder = tmp_path_factory.mktemp("run")
    run_cell(small_bench(folder), small_cell(steps=2))
    return folder, find_record(small_cell(steps=2).label, folder / "results")


def network_of(finished: tuple[Path, Record]) -> FinetunedNetwork:
    folder, record = finished
    return FinetunedNetwork(record, CheckpointStore(folder / "checkpoints"))


def record_label(record: Record) -> str:
    return f"{record.experiment}/{record.run_id}"


def written(finished: tuple[Path, Record], format_name: str, name: str) -> Path:
    folder, record = finished
    run = f"{record.experiment}/{record.run_id}"
    return export(run, format_name, folder / "results", folder / "checkpoints", folder / name)


@torch.no_grad()
def expected(finished: tuple[Path, Record]) -> Tensor:
    return network_of(finished).model(IMAGES)


def test_the_network_is_that_of_the_record(finished: tuple[Path, Record]) -> None:
    network, record = network_of(finished), finished[1]
    assert oicsr.count_macs(network.model, IMAGES[:1]) == record.states["finetuned"]["macs"]
    assert {name: [len(network.plan.kept[name])] for name in network.plan.kept} == {
        name: [after] for name, (_, after) in record.widths.items()
    }
    expected_stages = stages_of(small_cell(steps=2), find_method("oicsr-gl"), record.strength, "cpu")
    assert stages_of(cell_of(record), find_method("oicsr-gl"), record.strength, "cpu") == expected_stages


def test_a_fresh_process_rebuilds_it_from_constructor_and_file(finished: tuple[Path, Record], tmp_path: Path) -> None:
    path = written(finished, "safetensors", "small.safetensors")
    torch.save(IMAGES, tmp_path / "images.pt")
    code = f"""
import torch, oicsr
from benchmarks.models import build_model
model = oicsr.load_pruned({str(path)!r}, lambda: build_model("digits-resnet", 10))
torch.save(model(torch.load({str(tmp_path / "images.pt")!r}, weights_only=True)).detach(), {str(tmp_path / "out.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(torch.load(tmp_path / "out.pt", weights_only=True), expected(finished))


def test_onnx_runtime_gives_the_same_outputs(finished: tuple[Path, Record]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = written(finished, "onnx", "small.onnx")
    assert list(path.parent.glob("small.onnx*")) == [path]  # weights inside
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = torch.from_numpy(session.run(["logits"], {"images": IMAGES.numpy()})[0])
    assert torch.allclose(outputs, expected(finished), atol=1e-4)


def test_torch_export_gives_the_same_outputs(finished: tuple[Path, Record]) -> None:
    program = torch.export.load(written(finished, "torch-export", "small.pt2")).module()
    assert torch.allclose(program(IMAGES), expected(finished), atol=1e-5)
    assert program(IMAGES[:1]).shape == (1, 10)


def test_command_line(finished: tuple[Path, Record], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder, record = finished
    run = folder / "results" / "runs" / record.experiment / record.run_id
    places = ["--checkpoints", str(folder / "checkpoints"), "--output", str(tmp_path / "out" / "a.safetensors")]
    assert cli.main(["export", str(run), *places]) == 0
    assert "exported: " in capsys.readouterr().out
    model = oicsr.load_pruned(tmp_path / "out" / "a.safetensors", lambda: build_model("digits-resnet", 10))
    assert torch.equal(model(IMAGES), expected(finished))
    assert cli.main(["export", "demo/nothing", *places]) == 2
    assert "there is no run 'demo/nothing'" in capsys.readouterr().err


def test_what_is_missing_damaged_or_another_network_is_refused(finished: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = finished
    with pytest.raises(ExportError, match=r"weights of small/.* are not in"):
        FinetunedNetwork(record, CheckpointStore(tmp_path))
    with pytest.raises(ExportError, match="format is 'tflite'; it must be one of 'safetensors', 'onnx'"):
        written(finished, "tflite", "x")
    states = {**record.states, "finetuned": {**record.states["finetuned"], "weights_sha256": "0" * 64}}
    with pytest.raises(ExportError, match="the record names 0000"):
        FinetunedNetwork(dataclasses.replace(record, states=states), CheckpointStore(folder / "checkpoints"))
    place = tmp_path / "runs" / record.experiment / record.run_id
    shutil.copytree(folder / "results" / "runs" / record.experiment / record.run_id, place)
    failed = dataclasses.replace(record, status="failed", failure={"reason": "diverged"})
    (place / "record.json").write_text(failed.to_json())
    with pytest.raises(ExportError, match="failed and left no network: diverged"):
        find_record(f"{record.experiment}/{record.run_id}", tmp_path)


@pytest.mark.parametrize(
    "config",
    [{}, {"dense": {"odd": 1}}, {"dense": {"milestones": 7}}],
)
def test_a_record_without_its_whole_configuration_is_one_clear_error(
    finished: tuple[Path, Record], config: dict[str, Any]
) -> None:
    folder, record = finished
    odd = dataclasses.replace(record, config={**record.config, **config} if config else {})
    with pytest.raises(ExportError, match=f"the record of small/{record.run_id} does not hold its whole configuration"):
        FinetunedNetwork(odd, CheckpointStore(folder / "checkpoints"))
    nowhere = dataclasses.replace(record, provenance={})
    with pytest.raises(ExportError, match="are not in"):
        FinetunedNetwork(nowhere, CheckpointStore(folder / "checkpoints"))


def test_a_checkpoint_of_something_else_is_one_clear_error(finished: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = finished
    key = stages_of(cell_of(record), find_method(record.method), record.strength, "cpu")[-1].key
    store = CheckpointStore(tmp_path)
    saved = CheckpointStore(folder / "checkpoints").load(key)
    assert saved is not None
    for change in ({"model": {}}, {"network": {"x": 1}}, {"network": {**saved["network"], "plan": "{}"}}):
        store.save(key, {**saved, **change})
        with pytest.raises(ExportError, match=f"checkpoint {key} does not hold the network of {record.run_id}"):
            FinetunedNetwork(record, store)


@pytest.mark.parametrize("format_name", ["safetensors", "torch-export"])
def test_a_place_that_cannot_be_written_is_one_clear_error(
    finished: tuple[Path, Record], tmp_path: Path, format_name: str
) -> None:
    folder, record = finished
    (tmp_path / "taken").mkdir()
    with pytest.raises((ExportError, OSError), match="taken"):
        export(record_label(record), format_name, folder / "results", folder / "checkpoints", tmp_path / "taken")


def test_tampered_checkpoints_are_never_unpickled(finished: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = finished
    copy = tmp_path / "checkpoints"
    shutil.copytree(folder / "checkpoints", copy)
    proof = tmp_path / "executed"
    for path in copy.rglob("*.ckpt"):
        content = bytearray(path.read_bytes())
        content[200] ^= 1
        path.write_bytes(content if len(content) % 2 else f"cos\nsystem\n(S'touch {proof}'\ntR.".encode())
    with pytest.warns(CheckpointWarning, match="damaged"), pytest.raises(ExportError, match="are not in"):
        FinetunedNetwork(record, CheckpointStore(copy))
    assert not proof.exists()
