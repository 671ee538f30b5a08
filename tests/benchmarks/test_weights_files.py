"""Files that are taken for weights and are none: each is one clear error, and no code in it is run."""

from __future__ import annotations

import io
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

import oicsr
from benchmarks.models.hub import load_state, local_state
from oicsr.surgery import FILE_FORMAT, _checksum

GOOD = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def saved(value: object, *, archive: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=archive)
    return buffer.getvalue()


ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"hello, these are my weights\n", "is a text that begins with 'hello, these"),
    "cut letter": (lambda: b"x" * 511 + "é".encode(), "is a text"),
    "page": (lambda: b"<!DOCTYPE html><html>404</html>", "is a text that begins with '<!DOCTYPE"),
    "pointer": (lambda: POINTER, "pointer of a store of large files; get the file itself"),
    "annex": (lambda: b"/annex/objects/SHA256E-s1--a.pt\n", "pointer of a store of large files"),
    "empty": (lambda: b"", "it is empty"),
    "zeros": (lambda: bytes(100), "no weights that can be read safely"),
    "half an archive": (lambda: saved(GOOD)[:700], "no weights that can be read safely"),
    "old and cut": (lambda: saved(GOOD, archive=False)[:-20], "no weights that can be read safely: RuntimeError"),
    "damaged": (lambda: saved(GOOD, archive=False)[:200] + bytes(400), "no weights that can be read safely"),
    "other names": (lambda: saved({0: torch.zeros(2)}), "names a tensor 0; names must be texts"),
    "list": (lambda: saved([torch.zeros(1)]), "holds a list, not a dictionary of tensors"),
    "no tensors": (lambda: saved({"a": 1}), "holds a dict, not a dictionary of tensors"),
    "module": (lambda: saved(nn.Linear(2, 2)), r"asks for torch\.nn\.modules\.linear\.Linear.*save `model.state_dict"),
    "code": (lambda: pickle.dumps(os.getcwd), "no weights that can be read safely"),
    "shapes": (lambda: saved({"weight": torch.zeros(5, 5), "bias": torch.zeros(5)}), "do not fit Linear"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_files_of_weights_are_clear_errors(tmp_path: Path, kind: str) -> None:
    content, message = ODD[kind]
    path = tmp_path / "weights.pt"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=message) as error:
        load_state(nn.Linear(3, 2), local_state(path), 2)
    assert len(str(error.value).replace(str(path), "")) < 400 and "weights_only" not in str(error.value)


@pytest.mark.parametrize("content", [POINTER, b"", b"hello", struct.pack("<Q", 2**60) + b"{}", save({})])
def test_odd_files_in_the_other_format_are_clear_errors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds no weights|do not fit"):
        load_state(nn.Linear(3, 2), local_state(path), 2)
    with pytest.raises(ValueError, match=r"is not a readable safetensors file|was not written by save_pruned"):
        oicsr.load_pruned(path, lambda: nn.Linear(3, 2))


def small_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))


def small_pruned() -> tuple[dict[str, torch.Tensor], str]:
    """Return the tensors of a pruned network, and its plan as JSON."""
    net = small_net()
    couplings = oicsr.find_couplings(net, torch.zeros(1, 3, 8, 8))
    plan = oicsr.PruningPlan.from_kept(couplings, {couplings[0].name: [0, 1, 2, 5]})
    return {k: v.clone() for k, v in oicsr.remove_channels(net, plan).state_dict().items()}, plan.to_json()


def sealed(tensors: dict[str, torch.Tensor], plan: str, extra: str = "") -> bytes:
    """Return such a file as somebody would write it who can count checksums."""
    header = {"format": FILE_FORMAT, "plan": plan, "sha256": _checksum(tensors, plan + extra)}
    return save(tensors, header | ({"extra": extra} if extra else {}))


TENSORS, PLAN = small_pruned()

MADE: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"hello, these are my weights\n", "is not a readable safetensors file"),
    "pointer": (lambda: POINTER, "is not a readable safetensors file"),
    "empty": (lambda: b"", "is not a readable safetensors file"),
    "cut": (lambda: sealed(TENSORS, PLAN)[:-5], "is not a readable safetensors file"),
    "header cut": (lambda: sealed(TENSORS, PLAN)[:50], "is not a readable safetensors file"),
    "huge header": (lambda: struct.pack("<Q", 2**62) + b"{}", "is not a readable safetensors file"),
    "archive": (lambda: saved(TENSORS), "is not a readable safetensors file"),
    "pickle": (lambda: pickle.dumps(os.getcwd), "is not a readable safetensors file"),
    "integer keys": (lambda: saved({0: torch.zeros(2)}), "is not a readable safetensors file"),
    "plain": (lambda: save(TENSORS), "was not written by save_pruned"),
    "no plan": (lambda: sealed(TENSORS, "{}"), "holds no plan"),
    "deep plan": (lambda: sealed(TENSORS, "[" * 100_000), "holds no plan"),
    "list of states": (lambda: sealed(TENSORS, PLAN, "[1]"), "holds a list where extra states by name are due"),
    "deep states": (lambda: sealed(TENSORS, PLAN, "[" * 100_000), "extra states that can be read"),
    "no tensor": (lambda: sealed(TENSORS, PLAN, '{"0.weight": 3}'), "does not fit the model"),
    "other name": (lambda: sealed(TENSORS, PLAN, '{"9": 3}'), "does not fit the model"),
    "other layer": (lambda: sealed(TENSORS, PLAN.replace("0.weight", "9.weight")), "does not fit the model"),
    "below zero": (lambda: sealed(TENSORS, PLAN.replace("[0,1,2,5]", "[-1,1,2,5]")), "plan"),
    "far out": (lambda: sealed(TENSORS, PLAN.replace("[0,1,2,5]", "[0,1,2,99]")), "plan"),
    "other axis": (lambda: sealed(TENSORS, PLAN.replace('"0.weight",0,', '"0.weight",7,')), "plan|does not fit"),
    "shapes": (lambda: sealed({k: v.reshape(-1) for k, v in TENSORS.items()}, PLAN), "does not fit the model"),
    "missing": (lambda: sealed({"0.weight": TENSORS["0.weight"]}, PLAN), "does not fit the model"),
}


@pytest.mark.parametrize("kind", MADE)
def test_odd_files_of_pruned_networks_are_clear_errors(tmp_path: Path, kind: str) -> None:
    content, message = MADE[kind]
    path = tmp_path / "net.safetensors"
    path.write_bytes(content())
    with pytest.raises(ValueError, match=message) as error:
        oicsr.load_pruned(path, small_net)
    assert str(path) in str(error.value)


def test_a_folder_or_nothing_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(sealed(TENSORS, PLAN))
    assert oicsr.load_pruned(path, small_net).state_dict()["0.weight"].equal(TENSORS["0.weight"])
    for odd in (tmp_path, tmp_path / "gone"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            oicsr.load_pruned(odd, small_net)


@settings(max_examples=60)
@given(st.booleans(), st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=20))
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, archive: bool, damage: list[tuple[int, int]]) -> None:
    content = bytearray(saved(GOOD, archive=archive))
    for place, byte in damage:
        content[place % len(content)] = byte
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    refused, state = "", {}
    try:
        state = local_state(path)
    except ValueError as error:
        refused = str(error)
    assert all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in state.items())
    assert state or str(path) in refused  # read, or refused by name
