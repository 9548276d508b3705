"""gzip and zstd, read from the start on: whole members or frames, one after another, or an error."""

import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard

READ_BYTES = 2**18
BLOCK_BYTES = 2**20
# What zstd is fed at once: it gives all that comes of it, and four bytes of a frame can stand for 128 KiB.
ZSTD_FEED_BYTES = 2**11
# A window of `zstd --long=31`, its largest.
ZSTD_WINDOW_BYTES = 2**31


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


def gzip_blocks(raw: ByteFile) -> Iterator[bytes]:
    """Yield what the members of a gzip file hold, in blocks of at most 1 MiB; zeros between members are padding.

    Raises:
        DamagedError: The file ends within a member.
        zlib.error: The data is damaged, or is no gzip.
    """
    data = raw.read(READ_BYTES)
    while data:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            block = member.decompress(data, BLOCK_BYTES)
            yield block
            data = member.unconsumed_tail
            if not data and not member.eof and len(block) < BLOCK_BYTES and not (data := raw.read(READ_BYTES)):
                raise DamagedError("the file ends within a gzip member")
        data = member.unused_data.lstrip(b"\0")
        while not data and (more := raw.read(READ_BYTES)):
            data = more.lstrip(b"\0")


def zstd_blocks(raw: ByteFile) -> Iterator[bytes]:
    """Yield what the frames of a zstd file hold.

    Raises:
        DamagedError: The file ends within a frame.
        zstandard.ZstdError: The data is damaged, or is no zstd.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    frame = decompressor.decompressobj()
    inside = False
    while data := raw.read(READ_BYTES):
        at = 0
        while at < len(data):
            feed = data[at : at + ZSTD_FEED_BYTES]
            yield frame.decompress(feed)
            at += len(feed) - len(frame.unused_data)
            inside = not frame.eof
            if frame.eof:
                frame = decompressor.decompressobj()
    if inside:
        raise DamagedError("the file ends within a zstd frame")


class InflatedFile:
    """A compressed file as its uncompressed bytes; going back inflates it again from the first."""

    def __init__(self, raw: ByteFile, blocks: Callable[[ByteFile], Iterator[bytes]]) -> None:
        self._raw = raw
        self._inflate = blocks
        self._start()

    def _start(self) -> None:
        self._blocks = self._inflate(self._raw)
        self._rest = b""
        self._at = 0

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        parts = [self._rest]
        missing = size - len(self._rest)
        while missing > 0 and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            missing -= len(block)
        data = b"".join(parts)
        self._rest = data[size:]
        data = data[:size] if self._rest else data
        self._at += len(data)
        return data

    def seek(self, offset: int, /) -> int:
        """Go to a byte of the uncompressed data.

        Raises:
            DamagedError: There is no such byte.
        """
        if offset < self._at:
            self._raw.seek(0)
            self._start()
        while self._at < offset:
            if not self.read(min(BLOCK_BYTES, offset - self._at)):
                raise DamagedError(f"the file has {self._at} bytes uncompressed, and byte {offset} was asked for")
        return offset
