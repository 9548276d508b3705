"""Files that are written whole or not at all, and their checksums."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

TEMPORARY = ".part"
TEMPORARY_NAME = re.compile(r"\.\d+-[0-9a-f]{8}\.part$")
_START = secrets.token_hex(4)  # of this interpreter; its forks have numbers of their own


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
