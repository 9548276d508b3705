"""Names to files: globs, `{stdlib}`, `~` and fsspec URLs become a sorted list; gzip is undone while reading."""

import gzip
import hashlib
import sysconfig
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple, cast

import fsspec
from fsspec.core import url_to_fs

from .errors import DataError

# What is not inflated would be read as text, byte for byte.
FOREIGN_COMPRESSION = (".zst", ".zstd", ".bz2", ".xz", ".zip", ".lz4", ".7z")


class DataFile(NamedTuple):
    """A file as found: its path or URL and its size in bytes as stored (before decompression)."""

    path: str
    size: int


def expand(patterns: Iterable[str]) -> list[DataFile]:
    """Return the files that `patterns` name, sorted by path, each once.

    A pattern is a path, a glob (`*`, `?`, `[...]`, `**`) or any fsspec URL; `{stdlib}` stands for the folder of
    Python's standard library and a leading `~` for the home folder. What exists by that very name is no glob.

    Raises:
        DataError: A file is missing, is a folder, has no bytes or is compressed by other means than gzip; a glob
            matches nothing; a URL's driver is missing or unknown.
    """
    found = {file.path: file for pattern in patterns for file in _match(pattern)}
    return [found[path] for path in sorted(found)]


def _match(pattern: str) -> list[DataFile]:
    target = pattern.replace("{stdlib}", sysconfig.get_paths()["stdlib"])
    remote = "://" in target
    try:
        filesystem, root = url_to_fs(target if remote else str(Path(target).expanduser()))
    except ImportError as error:
        raise DataError(f"the fsspec driver of this URL is not installed: {error}", file=target) from None
    except ValueError as error:
        known = "spell it as file://, s3://, gs://, https://, ..., or install the fsspec driver that provides it"
        raise DataError(f"{error}; {known}", file=target) from None

    def named(path: str, size: object) -> DataFile:
        name = str(filesystem.unstrip_protocol(path)) if remote else path
        if not isinstance(size, int):
            raise DataError("its file system states no size; copy it to a store that does", file=name)
        if name.lower().endswith(FOREIGN_COMPRESSION):
            raise DataError("of compressed files only .gz is read; unpack it, or compress it with gzip", file=name)
        return DataFile(name, size)

    if any(character in root for character in "*?[") and not filesystem.exists(root):
        listing = filesystem.glob(root, detail=True)
        # of a link, `glob` tells that it is one and `info` what it leads to: data folders are often made of links
        try:
            found = [filesystem.info(path) if info["type"] != "directory" else info for path, info in listing.items()]
        except FileNotFoundError as error:
            raise DataError("this link leads nowhere", file=error.filename or pattern) from None
        matches = [named(info["name"], info["size"]) for info in found if info["type"] == "file"]
        if not matches:
            raise DataError("this pattern matches no file", file=pattern)
        return matches
    try:
        info = filesystem.info(root)
    except FileNotFoundError:
        raise DataError("there is no such file", file=target) from None
    if info["type"] == "directory":
        raise DataError("this is a folder; name its files with a pattern such as folder/*.jsonl", file=target)
    file = named(info["name"], info["size"])
    if file.size == 0:
        raise DataError("this file is empty (0 bytes)", file=target)
    return [file]


def is_compressed(path: str) -> bool:
    """Tell by its name whether a file is gzip-compressed, and so can only be read from its start."""
    return path.lower().endswith(".gz")


@contextmanager
def open_binary(path: str) -> Iterator[IO[bytes]]:
    """Open a path or URL for reading bytes, inflating `.gz`; offsets are those of the uncompressed bytes.

    Raises:
        DataError: The file cannot be opened or read, or its compression is damaged, here or while reading in the block.
    """
    try:
        with fsspec.open(path, "rb").open() if "://" in path else Path(path).open("rb") as raw:
            yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)) if is_compressed(path) else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"the gzip data is truncated or damaged: {error}", file=path) from error
    except OSError as error:
        raise DataError(f"cannot be read: {error}", file=path) from error


def digest(files: Iterable[DataFile]) -> str:
    """Return a sha256 over the names and sizes of `files`, by which a resumed run knows its corpus again."""
    listing = "\n".join(f"{file.path}\t{file.size}" for file in files)
    return hashlib.sha256(listing.encode()).hexdigest()
