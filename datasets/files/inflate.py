"""gzip and zstd as plain bytes, by Python's own readers: whole members or frames, one after another, or an error.

What they raise about damaged data becomes `DamagedError`. Python has zstd from 3.14 on; `backports.zstd` is the same
module.
"""

import gzip
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Windows of up to 2^31 bytes, the largest, as `zstd --long=31` writes them.
ZSTD_OPTIONS: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}


class DamagedError(Exception):
    """Compressed data is cut, or does not follow its format."""


class ByteFile(Protocol):
    """The uncompressed bytes of a file."""

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a byte, in what can only be inflated from the start by reading."""
        ...


class InflatedFile:
    """A compressed file as its uncompressed bytes; going back inflates it again from the first.

    Args:
        file: Inflates.
        unit: What the format's parts are called, for messages: "gzip member".
    """

    def __init__(self, file: ByteFile, unit: str) -> None:
        self._file = file
        self._unit = unit

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end. Raises DamagedError."""
        with self._damage():
            return self._file.read(size)

    def seek(self, offset: int, /) -> int:
        """Go to a byte of the uncompressed data. Raises DamagedError, also where there is no such byte."""
        with self._damage():
            at = self._file.seek(offset)
        if at < offset:
            raise DamagedError(f"the file has {at} bytes uncompressed, and byte {offset} was asked for")
        return at

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except EOFError:
            raise DamagedError(f"the file ends within a {self._unit}") from None
        except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise DamagedError(str(error)) from error


def open_gzip(raw: IO[bytes]) -> InflatedFile:
    """Return what the members of a gzip file hold; zeros behind a member are padding."""
    return InflatedFile(gzip.GzipFile(fileobj=raw, mode="rb"), "gzip member")


def open_zstd(raw: IO[bytes]) -> InflatedFile:
    """Return what the frames of a zstd file hold; skippable ones hold nothing."""
    return InflatedFile(zstd.ZstdFile(raw, options=ZSTD_OPTIONS), "zstd frame")
