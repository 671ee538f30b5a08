"""Signatures of records: off by default; where they are demanded, only what a named key signed comes in."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.config import run_name
from benchmarks.records.record import Record, read_records, write_record
from benchmarks.records.signatures import MISSING, SignatureError, Signers, sign, signature_path
from benchmarks.running.adhoc import save_experiment
from tests.benchmarks.fakes import fake_history, fake_record
from tests.benchmarks.small import small_cell, small_experiment

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="`ssh-keygen` is not installed")


def make_key(folder: Path, name: str) -> Path:
    path = folder / name
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{name}@example.org", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder, "alice"), make_key(folder, "mallory")


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def put(results: Path, seed: int = 0, top1: float = 0.75) -> Path:
    record: Record = fake_record(small_cell(seed=seed), top1)
    record = replace(record, run_id=run_name(record.profile, record.method, record.macs_kept, record.seed))
    return write_record(results, record, fake_history(record.epochs))


def merge(folder: Path, *more: str) -> int:
    return cli.main(["merge", str(folder / "theirs"), "--results", str(folder / "ours"), *more])


def signed(folder: Path, key: Path, *more: str) -> int:
    return cli.main(["sign", "--results", str(folder / "theirs"), "--key", str(key), *more])


def test_signed_records_come_in_with_their_signatures(
    tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "theirs")
    assert signed(tmp_path, keys[0]) == 0 and "signed: 1 records, 0 sweeps" in capsys.readouterr().out
    assert merge(tmp_path, "--signed-by", str(public(keys[0]))) == 0
    assert "1 added" in capsys.readouterr().out
    ours = tmp_path / "ours" / path.relative_to(tmp_path / "theirs")
    assert ours.read_bytes() == path.read_bytes()
    assert Signers.read(public(keys[0])).check(ours) == signature_path(path).read_bytes()
    assert len(read_records(tmp_path / "ours")) == 1


def test_nothing_is_demanded_by_default(tmp_path: Path) -> None:
    put(tmp_path / "theirs")
    assert merge(tmp_path) == 0 and len(read_records(tmp_path / "ours")) == 1


def edited(path: Path, key: Path, other: Path) -> None:
    """Change the record's title and count its checksum again, as somebody would who wants it unnoticed."""
    sign(path, key)
    signature = signature_path(path).read_bytes()
    put(path.parents[3], top1=0.99)
    signature_path(path).write_bytes(signature)


def of_another_file(path: Path, key: Path, other: Path) -> None:
    second = put(path.parents[3], seed=1)
    shutil.copy(sign(second, key), signature_path(path))


def by_another_key(path: Path, key: Path, other: Path) -> None:
    sign(path, other)


def for_another_purpose(path: Path, key: Path, other: Path) -> None:
    command = ["ssh-keygen", "-q", "-Y", "sign", "-f", str(key), "-n", "file", str(path)]
    subprocess.run(command, check=True, capture_output=True)


def unsigned(path: Path, key: Path, other: Path) -> None:
    assert not signature_path(path).exists()


def odd_signature(path: Path, key: Path, other: Path) -> None:
    signature_path(path).write_bytes(b"\0" * 100)


def damaged_signature(path: Path, key: Path, other: Path) -> None:
    content = sign(path, key).read_text().splitlines()
    signature_path(path).write_text("\n".join([content[0], *content[2:]]))


def linked_signature(path: Path, key: Path, other: Path) -> None:
    outside = path.parents[4] / "outside.sig"
    sign(path, key).rename(outside)
    signature_path(path).symlink_to(outside)


def history_edited(path: Path, key: Path, other: Path) -> None:
    sign(path, key)
    history = path.with_name("history.csv")
    history.write_text(history.read_text().replace("0.5", "0.9", 1))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (unsigned, "is not signed: there is no record.json.sig beside it"),
        (edited, "is not what was signed"),
        (of_another_file, "is not what was signed"),
        (by_another_key, "is not signed by a key of"),
        (for_another_purpose, "is not what was signed"),
        (odd_signature, "is no SSH signature"),
        (damaged_signature, "is not signed by a key of"),
        (linked_signature, "is not signed"),
        (history_edited, "history.csv beside"),
    ],
)
def test_everything_else_is_refused_by_name(
    tmp_path: Path,
    keys: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path, Path, Path], None],
    message: str,
) -> None:
    path = put(tmp_path / "theirs")
    harm(path, *keys)
    assert merge(tmp_path, "--signed-by", str(public(keys[0]))) == 1
    shown = capsys.readouterr()
    refusal = next(line for line in shown.err.splitlines() if path.parent.name in line and "refused" in line)
    assert message in refusal and str(path.parent) in refusal
    assert not (tmp_path / "ours" / path.relative_to(tmp_path / "theirs")).exists()


def test_a_file_of_allowed_signers_restricts_names_and_purposes(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = put(tmp_path / "theirs")
    sign(path, keys[0])
    key = " ".join(public(keys[0]).read_text().split()[:2])
    allowed = tmp_path / "allowed signers"
    for line in (
        f"alice@example.org,bob@example.org {key}",
        f'# who\nalice@example.org namespaces="oicsr-record" {key}',
    ):
        allowed.write_text(line + "\n")
        assert Signers.read(allowed).check(path)
    allowed.write_text(f'alice@example.org namespaces="git" {key}\n')
    with pytest.raises(SignatureError):
        Signers.read(allowed).check(path)


def test_saved_sweeps_need_a_signature_too(
    tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path / "theirs")
    save_experiment(small_experiment(), tmp_path / "theirs")
    assert signed(tmp_path, keys[0]) == 0
    saved = tmp_path / "theirs" / "sweeps" / "small.json"
    saved.write_text(saved.read_text().replace("It works.", "It is proven."))
    assert merge(tmp_path, "--signed-by", str(public(keys[0]))) == 1
    assert "small.json is not what was signed" in capsys.readouterr().err
    assert not (tmp_path / "ours" / "sweeps").exists()
    assert signed(tmp_path, keys[0], "small") == 0
    assert merge(tmp_path, "--signed-by", str(public(keys[0]))) == 0
    assert (tmp_path / "ours" / "sweeps" / "small.json").is_file()


def test_a_record_that_is_written_anew_loses_its_signature(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = put(tmp_path)
    sign(path, keys[0])
    put(tmp_path, top1=0.5)
    assert not signature_path(path).exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "holds no public keys"), (b"hello\n", "holds no public keys"), (b"\xff\0", "holds no public keys")],
)
def test_odd_files_of_keys(tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "theirs")
    (tmp_path / "keys").write_bytes(content)
    assert merge(tmp_path, "--signed-by", str(tmp_path / "keys")) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "ours").exists()


def test_wrong_uses_are_one_line(
    tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "theirs")
    odd = tmp_path / "odd"
    odd.write_text("no key")
    odd.chmod(0o600)
    for call, message in (
        (lambda: merge(tmp_path, "--signed-by", str(keys[0])), "is a private key; name the public one, alice.pub"),
        (lambda: merge(tmp_path, "--signed-by", str(tmp_path / "gone")), "gone"),
        (lambda: merge(tmp_path, "--signed-by", str(public(keys[0])), "--unchecked"), "--unchecked changes records"),
        (lambda: signed(tmp_path, tmp_path / "gone"), "gone, the key to sign with, is no file"),
        (lambda: signed(tmp_path, odd), f"{path} cannot be signed with {odd}"),
        (lambda: signed(tmp_path, keys[0], "another"), "no experiment with records to sign 'another'"),
    ):
        assert call() == 2
        shown = capsys.readouterr().err
        assert message in shown and shown.count("\n") == 1
    sign(path, keys[0])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert merge(tmp_path, "--signed-by", str(public(keys[0]))) == 2 and MISSING in capsys.readouterr().err
    assert signed(tmp_path, keys[0]) == 2 and MISSING in capsys.readouterr().err


def test_a_changed_record_is_not_signed(
    tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = put(tmp_path / "theirs")
    path.write_text(path.read_text().replace('"top1": 0.75', '"top1": 0.95', 1))
    assert signed(tmp_path, keys[0]) == 2 and "it was changed" in capsys.readouterr().err
    assert not signature_path(path).exists()
