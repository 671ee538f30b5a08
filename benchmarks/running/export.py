"""Exporting the fine-tuned network of a run to a file that does not depend on this suite.

`safetensors`: weights and plan, for `oicsr.load_pruned` and the network's own constructor. `onnx`: for ONNX Runtime,
any batch size. `torch-export`: for `torch.export.load`. Nothing is trusted: the checkpoint's checksum must match, it
is read without unpickling code, its weights must have the SHA-256 of the record, and an exported graph must reproduce
the network's outputs before its file is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from benchmarks.config import Cell, Experiment, Phase, Profile
from benchmarks.machine.paths import inside
from benchmarks.machine.provenance import weights_sha256
from benchmarks.machine.weights_files import in_short
from benchmarks.methods.registry import find_method
from benchmarks.models import build_model
from benchmarks.records.record import Record, read_record
from benchmarks.records.rows import PHASES
from benchmarks.running.checkpoints import CheckpointStore
from benchmarks.running.stages import stages_of
from oicsr import PruningPlan, remove_channels, save_pruned

TOLERANCE = 1e-4

EXAMPLE_BATCH = 2  # the exporter treats a batch of one as a constant

CHECKED_BATCHES = (1, 3)


class ExportError(ValueError):
    """A run cannot be exported; the message says why."""


class FinetunedNetwork:
    """The final network of a run.

    Attributes:
        model: In evaluation mode, on the CPU.
        plan: Leads from the network of `build` to `model`.
        build: Builds the network before pruning.
        example: Images of the expected shape.
    """

    def __init__(self, record: Record, store: CheckpointStore) -> None:
        """Rebuild it from the checkpoint of its last stage.

        Raises:
            ExportError: The checkpoint is missing, or holds a network other than the record's.
        """
        key = stages_of(cell_of(record), find_method(record.method), record.strength, device_type(record))[-1].key
        saved = store.load(key)
        if saved is None or not saved.get("network"):
            raise ExportError(
                f"the weights of {record.experiment}/{record.run_id} are not in {store.folder} (checkpoint {key}). "
                "Give the folder with --checkpoints, or do the run again with --results elsewhere."
            )
        try:
            self._rebuild(record, saved)
        except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            raise ExportError(f"checkpoint {key} does not hold the network of {record.run_id}: {error!r}") from error
        expected, found = record.states["finetuned"].get("weights_sha256"), weights_sha256(self.model)
        if found != expected:
            raise ExportError(f"checkpoint {key} holds weights of SHA-256 {found}; the record names {expected}")

    def _rebuild(self, record: Record, saved: Mapping[str, Any]) -> None:
        network = saved["network"]
        self.build: Callable[[], nn.Module] = partial(build_model, record.config["model"], network["num_classes"])
        self.plan = PruningPlan.from_json(network["plan"])
        self.model = remove_channels(self.build(), self.plan).eval()
        self.model.load_state_dict(saved["model"])
        self.example = torch.randn(EXAMPLE_BATCH, *network["input_shape"], generator=torch.Generator().manual_seed(0))


def device_type(record: Record) -> str:
    """Return the kind of device that a run was trained on; empty where its record does not say."""
    return str(record.provenance.get("device_type", ""))


def cell_of(record: Record) -> Cell:
    """Return the run of a record, from the record's own configuration (experiments may have changed).

    Raises:
        ExportError: The record does not hold the whole of it.
    """
    try:
        return _cell_of(record)
    except (LookupError, TypeError, ValueError) as error:
        run = f"{record.experiment}/{record.run_id}"
        raise ExportError(f"the record of {run} does not hold its whole configuration: {error!r}") from error


def _cell_of(record: Record) -> Cell:
    config = record.config
    values = {field.name: config[field.name] for field in fields(Profile) if field.name in config}
    values |= {name: Phase(**{**config[name], "milestones": tuple(config[name]["milestones"])}) for name in PHASES}
    profile = Profile(**values, methods=(record.method,), macs_kept=(record.macs_kept,), seeds=(record.seed,))
    experiment = Experiment(
        record.experiment,
        record.experiment,
        "",
        config["model"],
        config["dataset"],
        {record.profile: profile},
        weights=config.get("weights"),
    )
    return Cell(experiment, record.profile, record.method, record.seed, record.macs_kept)


def find_record(run: str, results: Path) -> Record:
    """Return the record of a run: its folder, or `EXPERIMENT/RUN_ID` under the results.

    Raises:
        ExportError: The run does not exist or failed.
        RecordError: It cannot be read.
    """
    places = [Path(run) / "record.json", results / "runs" / run / "record.json"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ExportError(f"there is no run {run!r}; looked in {' and '.join(map(str, places))}")
    record = read_record(path)
    if not record.complete:
        raise ExportError(f"run {run!r} failed and left no network: {record.failure_reason}")
    return record


def write_safetensors(path: Path, network: FinetunedNetwork) -> None:
    """Write weights and plan, for `oicsr.load_pruned`."""
    save_pruned(path, network.model, network.plan)


def write_onnx(path: Path, network: FinetunedNetwork) -> None:
    """Write an ONNX graph with embedded weights, for any batch size.

    Raises:
        ExportError: A package is missing, or the outputs of ONNX Runtime differ from the network's.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ExportError(f"{error.name} is not installed; ONNX needs `pip install oicsr[onnx]`") from error
    torch.onnx.export(
        network.model,
        (network.example,),
        str(path),
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim.AUTO},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    _check_outputs(path, network, lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]))


def write_torch_export(path: Path, network: FinetunedNetwork) -> None:
    """Write an exported program of PyTorch, for any batch size.

    Raises:
        ExportError: The program's outputs differ from the network's.
    """
    program = torch.export.export(network.model, (network.example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, str(path))
    _check_outputs(path, network, torch.export.load(str(path)).module())


@torch.no_grad()
def _check_outputs(path: Path, network: FinetunedNetwork, run: Callable[[Tensor], Tensor]) -> None:
    for count in CHECKED_BATCHES:
        images = network.example.repeat(CHECKED_BATCHES[-1], 1, 1, 1)[:count]
        worst = float((run(images) - network.model(images)).abs().max())
        if not worst <= TOLERANCE:
            path.unlink()
            raise ExportError(f"the exported network's outputs differ by {worst:.1e}, more than {TOLERANCE:g}")


Writer = Callable[[Path, FinetunedNetwork], None]

FORMATS: Mapping[str, tuple[str, Writer]] = {
    "safetensors": (".safetensors", write_safetensors),
    "onnx": (".onnx", write_onnx),
    "torch-export": (".pt2", write_torch_export),
}


def export(run: str, format_name: str, results: Path, checkpoints: Path, output: Path | None = None) -> Path:
    """Write the fine-tuned network of a run to a file, and return where it is.

    Args:
        run: Folder of the run, or `EXPERIMENT/RUN_ID`.
        format_name: A key of `FORMATS`.
        results: Folder of the records.
        checkpoints: Folder of the checkpoints.
        output: The file; without it, named after the run, in the current folder.

    Raises:
        ExportError: There is nothing to export, or the export failed.
    """
    if format_name not in FORMATS:
        raise ExportError(f"format is {format_name!r}; it must be one of {', '.join(map(repr, FORMATS))}")
    record = find_record(run, results)
    suffix, write = FORMATS[format_name]
    path = output or inside(Path(), f"{record.experiment}-{record.run_id}{suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    network = FinetunedNetwork(record, CheckpointStore(checkpoints))
    try:
        write(path, network)
    except (SafetensorError, RuntimeError) as error:  # what the libraries raise where a file cannot be written
        raise ExportError(f"{path} cannot be written: {in_short(error)}") from error
    return path
