"""Files of a corpus: found by pattern, known again by their stamps, opened wherever they are and however compressed."""

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec
import xxhash

from .errors import DataError
from .patterns import DataFile, expand, is_remote, plain_name

__all__ = ["ByteFile", "DataFile", "Storage", "changes", "fingerprint", "is_compressed"]


class ByteFile(Protocol):
    """The uncompressed bytes of a file."""

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a byte; in what can only be inflated from the start, by reading."""
        ...


@dataclass(frozen=True)
class Storage:
    """Where files are and how they are reached.

    Attributes:
        cache_dir: Folder that keeps whole copies of remote files; None: they are read where they are.
        cache_gb: 10^9 bytes that the copies may take together; those used longest ago go first.
        retries: Times that a failed access to a remote file is tried again, after ever longer pauses.
    """

    cache_dir: str | None = None
    cache_gb: float = 50.0
    retries: int = 5

    def expand(self, patterns: Iterable[str], folder_glob: str | None = None) -> list[DataFile]:
        """Return the files that `patterns` name; see `patterns.expand`."""
        return expand(patterns, folder_glob)

    def local(self, path: str) -> str:
        """Return a local path with the stored bytes of `path`, which for a URL is a copy in the cache."""
        if is_remote(path):
            raise DataError("a remote file", file=path)
        return path

    @contextmanager
    def open(self, path: str) -> Iterator[ByteFile]:
        """Open a path or URL for reading its bytes, uncompressed.

        Raises:
            DataError: The file cannot be opened or read, or its compression is damaged, here or while reading in the block.
        """
        try:
            with fsspec.open(path, "rb").open() if is_remote(path) else Path(path).open("rb") as raw:
                file: Any = gzip.GzipFile(fileobj=raw) if is_compressed(path) else raw
                yield file
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"the gzip data is truncated or damaged: {error}", file=path) from error
        except OSError as error:
            raise DataError(f"cannot be read: {error}", file=path) from error


def is_compressed(path: str) -> bool:
    """Tell by its name whether a file is inflated while it is read."""
    return plain_name(path).endswith((".gz", ".bgz", ".zst", ".zstd"))


def fingerprint(files: Iterable[DataFile]) -> str:
    """Return a hash over names, sizes and stamps, by which a resumed run knows its corpus again."""
    listing = "\n".join("\t".join(map(str, file)) for file in files)
    return xxhash.xxh3_128_hexdigest(listing.encode())


def changes(saved: Sequence[Sequence[str | int]], files: Sequence[DataFile]) -> list[str]:
    """Return a line for each file that is not as it was, at most five and a line for the number of others.

    Args:
        saved: (path, size, stamp) of the files as they were.
        files: As they are.
    """
    before = {str(path): DataFile(str(path), int(size), str(stamp)) for path, size, stamp in saved}
    now = {file.path: file for file in files}
    lines = []
    for path in sorted(before | now):
        if path not in now:
            lines.append(f"{path} is gone")
        elif path not in before:
            lines.append(f"{path} is new")
        elif before[path].size != now[path].size:
            lines.append(f"{path} changed its size from {before[path].size} to {now[path].size} bytes")
        elif before[path].stamp != now[path].stamp:
            lines.append(f"{path} was changed: its stamp was {before[path].stamp!r} and is {now[path].stamp!r}")
    return lines if len(lines) <= 5 else [*lines[:5], f"and {len(lines) - 5} more"]
