"""Signatures of files: SSH signatures by the installed `ssh-keygen`, with keys that people have already.

A signature is stored beside its file, as `NAME.sig`. That of a record covers its history and channels too, by the
checksums in it.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine.atomic_write import write_atomically

NAMESPACE = "oicsr-record"  # a signature made for another purpose does not count here

SUFFIX = ".sig"

LARGEST = 64 << 10  # bytes of a signature, and of a file of keys

PATIENCE = 30.0  # seconds that a verification may take

KEY_KINDS = ("ssh-", "ecdsa-", "sk-")  # how a public key begins

MISSING = "signatures need `ssh-keygen` (OpenSSH 8.2 or newer), which is not installed here"


class SignatureError(ValueError):
    """A file is not signed, or not by a key that was asked for."""


def signature_path(path: Path) -> Path:
    """Return the path of a file's signature."""
    return path.with_name(path.name + SUFFIX)


def sign(path: Path, key: Path) -> Path:
    """Sign a file, and return the path of its signature; an earlier one is replaced.

    Args:
        path: The file.
        key: A private key of SSH (its passphrase is asked for at the terminal), or a public one whose private half
            an agent holds.

    Raises:
        ValueError: There is no `ssh-keygen`, or it cannot sign with that key.
        OSError: A file cannot be read or written.
    """
    if not key.is_file():
        raise FileNotFoundError(f"{key}, the key to sign with, is no file")
    made = _ssh_keygen(["-Y", "sign", "-f", str(key.absolute()), "-n", NAMESPACE], path.read_bytes(), None)
    if made.returncode or not made.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise ValueError(f"{path} cannot be signed with {key}: {_said(made)}")
    write_atomically(signature_path(path), made.stdout)
    return signature_path(path)


@dataclass(frozen=True)
class Signers:
    """Those whose signatures count.

    Attributes:
        path: A file of allowed signers (`ssh-keygen(1)`: names, and a key, in each line), or of public keys.
        text: What it holds, as allowed signers.
    """

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Signers:
        """Read who may sign.

        Raises:
            ValueError: The file holds no public key.
            OSError: It cannot be read.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}, the keys of those who may sign, is no file")
        lines = path.read_bytes()[:LARGEST].decode("utf-8", "replace").splitlines()
        if any("PRIVATE KEY" in line for line in lines):
            raise ValueError(f"{path} is a private key; name the public one, {path.name}.pub")
        found = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
        if not found or not all(any(kind in line for kind in KEY_KINDS) for line in found):
            raise ValueError(f"{path} holds no public keys of SSH: one in each line, with names before it or without")
        return cls(path, "\n".join(f"* {line}" if line.startswith(KEY_KINDS) else line for line in found) + "\n")

    def check(self, path: Path, content: bytes | None = None) -> bytes:
        """Make sure that a file was signed by one of them, and return its signature.

        Args:
            path: The file; its signature is beside it.
            content: What it holds; read from it by default.

        Raises:
            SignatureError: It is unsigned, or was signed by another key, for another purpose, or before it was edited.
            ValueError: There is no `ssh-keygen`.
        """
        signature = _signature_of(path)
        content = path.read_bytes() if content is None else content
        with _files(self.text.encode(), signature) as (keys, signed):
            found = _ssh_keygen(["-Y", "find-principals", "-f", keys, "-s", signed], b"", PATIENCE)
            if found.returncode:
                raise SignatureError(f"{path} is not signed by a key of {self.path}: {_said(found)}")
            name = found.stdout.decode("utf-8", "replace").splitlines()[0].partition(",")[0]
            command = ["-Y", "verify", "-f", keys, "-I", name, "-n", NAMESPACE, "-s", signed]
            verified = _ssh_keygen(command, content, PATIENCE)
        if verified.returncode:
            raise SignatureError(
                f"{path} is not what was signed: it was edited, or its signature is that of another file or made for "
                f"another purpose ({_said(verified)})"
            )
        return signature


def _signature_of(path: Path) -> bytes:
    """Return the signature beside a file; a link, which may lead anywhere, does not count."""
    place = signature_path(path)
    if place.is_symlink() or not place.is_file():
        raise SignatureError(f"{path} is not signed: there is no {place.name} beside it")
    try:
        with place.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise SignatureError(f"{place} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST or not content.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise SignatureError(f"{place} is no SSH signature")
    return content


@contextmanager
def _files(*contents: bytes) -> Iterator[list[str]]:
    """Give the paths of files that hold something, for a program that wants files."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / str(position) for position in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        yield [str(path) for path in paths]


def _ssh_keygen(arguments: list[str], content: bytes, patience: float | None) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["ssh-keygen", *arguments], input=content, capture_output=True, timeout=patience)
    except FileNotFoundError as error:
        raise ValueError(MISSING) from error
    except subprocess.TimeoutExpired as error:
        raise SignatureError(f"`ssh-keygen` gave no answer in {patience:g} s") from error


def _said(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return the last line of what `ssh-keygen` says of an error."""
    lines = [line.strip() for line in done.stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"`ssh-keygen` ended with code {done.returncode}"
