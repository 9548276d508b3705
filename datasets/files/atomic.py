"""Files that are written whole or not at all, and their checksums."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from ...base import UserError, no_file

TEMPORARY = ".part"
TEMPORARY_NAME = re.compile(r"\.\d+-[0-9a-f]{8}\.part$")
_START = secrets.token_hex(4)  # of this interpreter; its forks have numbers of their own
PROBE_BYTES = 2**16  # a full disk takes an empty file


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, and its folder's names before it, even after a power cut."""
    with whole(path) as partial:
        partial.write_bytes(data)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield the name of a file to be written; when the block ends well, the file takes the place of `path`.

    A block that fails leaves `path` as it was, and nothing beside it.
    """
    partial = temporary(path)
    try:
        yield partial
        sync(partial)
        sync(path.parent)
        partial.replace(path)
        sync(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: Path, what: str, error: type[UserError]) -> None:
    """Find out, before the work that fills it, whether a file can be written.

    Args:
        path: of the file, which this leaves as it is.
        what: the option that names it, for the message.
        error: kind of what is raised.

    Raises:
        UserError: of kind `error`: it is a folder, a pipe or a device, its folder is not there or not writable, or the
            disk is full.
    """
    try:
        if path.exists() and (other := no_file(path.stat().st_mode)) is not None:
            raise error(f"{what} {path}: cannot be written: this is {other}; name a file")
        _probe(path)
    except OSError as problem:
        raise error(f"{what} {path}: cannot be written: {problem.strerror}") from None


def check_writable_folder(folder: Path, what: str, error: type[UserError]) -> None:
    """Find out, before the work that fills it, whether a folder can be made and files in it be written; see above."""
    try:
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise error(f"{what} {folder}: cannot be written: {there} is a file; name a folder")
        _probe(there / "probe")  # a folder may be `.`, which has no name
    except OSError as problem:
        raise error(f"{what} {folder}: cannot be written: {problem.strerror}") from None


def _probe(path: Path) -> None:
    partial = temporary(path)
    try:
        with partial.open("xb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        partial.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """Return the name under which this process writes a file, and no other on any machine or in any container.

    One that was orphaned may still be writing its own, and in containers many processes are number 1.
    """
    return path.with_name(f"{path.name}.{os.getpid()}-{_START}{TEMPORARY}")


def sync(path: Path) -> None:
    """Make the bytes of a file durable, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checksum(path: str) -> str:
    """Return `xxh3_128:` and the hash of a file's bytes in hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with Path(path).open("rb") as file:
        while data := file.read(2**22):
            digest.update(data)
    return f"xxh3_128:{digest.hexdigest()}"
