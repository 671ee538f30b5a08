"""The names and titles of methods without their code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import catalogue
from benchmarks.methods import METHODS, find_method

COMBINATIONS = ("oicsr-gl+out", "gl-separate+taylor+uniform", "none+random+greedy")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the catalogue is kept: in a folder of its own."""
    path = tmp_path / "catalogue-0.json"
    monkeypatch.setattr(catalogue, "_path", lambda: path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    catalogue._kept.cache_clear()
    return path


@pytest.mark.parametrize("name", [*METHODS, *COMBINATIONS])
def test_entry_says_what_the_method_says(name: str) -> None:
    entry, method = catalogue.find_entry(name), find_method(name)
    assert (entry.name, entry.title) == (method.name, method.title)
    for part in ("regularizer", "importance", "selection"):
        assert asdict(getattr(entry, part)) == {key: vars(getattr(method, part))[key] for key in ("name", "title")}


def test_what_is_kept_is_what_is_registered(kept: Path) -> None:
    made = catalogue._kept()
    catalogue._kept.cache_clear()
    assert json.loads(kept.read_text()) == asdict(made) == asdict(catalogue._kept()) == asdict(catalogue.catalogue())
    assert list(made.methods) == list(METHODS)


@pytest.mark.parametrize("damaged", [b"", b"[]", b"{}", b'{"methods": {"a": {}}}', b"\xff"])
def test_damaged_file_is_made_anew(kept: Path, damaged: bytes) -> None:
    kept.write_bytes(damaged)
    outdated = kept.with_name("catalogue-1.json")
    outdated.touch()
    assert list(catalogue._kept().methods) == list(METHODS)
    assert list(json.loads(kept.read_text())["methods"]) == list(METHODS)
    assert not outdated.exists()


def test_folder_that_cannot_be_written_to_does_no_harm(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(catalogue, "write_atomically", refuse)
    assert list(catalogue._kept().methods) == list(METHODS)
    assert not kept.exists()


def test_changed_source_gives_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "baselines").mkdir()
    (tmp_path / "benchmarks").mkdir()
    for name in ("baselines/registry.py", "benchmarks/methods.py"):
        (tmp_path / name).write_text("METHODS = {}\n")
    monkeypatch.setattr(catalogue, "PACKAGE", tmp_path / "benchmarks")
    before = catalogue._path()
    assert catalogue._path() == before
    (tmp_path / "baselines" / "registry.py").write_text("METHODS = {1: 2}\n")
    changed = catalogue._path()
    (tmp_path / "baselines" / "another.py").touch()
    assert len({before, changed, catalogue._path()}) == 3


def test_titles_need_no_torch() -> None:
    code = "import sys\nfrom benchmarks.catalogue import find_entry\nfind_entry('oicsr-gl')\n"
    code += "print(find_entry('oicsr-gl+out').title, 'torch' in sys.modules, sep='|')"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(2):  # the first one may have to make the catalogue
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "OICSR-GL + out energy|False"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("oicsr-gk", "there is no method 'oicsr-gk'. Did you mean 'oicsr-gl'"),
        ("oicsr-gl+ouch", "there is no importance 'ouch'. Did you mean 'out'"),
        ("a+b+c+d", "has 4 parts"),
    ],
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        catalogue.find_entry(text)
