"""bgzip: gzip in members ("blocks") of at most 64 KiB that hold their own size, so that one can go to any byte.

A block is a gzip member whose extra field BC holds the block's size less one; its last four bytes are the size of what
it holds. An empty block ends the file. Where the blocks begin is read from the `.gzi` file beside it, or found by
hopping from block to block without inflating them. Format: section 4.1 of the SAM specification; `.gzi`: manual of
bgzip.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

HEAD_BYTES = 64  # more than the 18 of bgzip's own headers, for other extra fields before BC
END_MISSING = "it does not end with bgzip's empty block, so a part of it is missing"
NOT_ITS_GZI = "its blocks are not those of the .gzi file beside it; remove that, or make it anew"


class DamagedError(Exception):
    """Compressed data is cut, or does not follow its format."""


class ByteFile(Protocol):
    """The uncompressed bytes of a file."""

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a byte and return its place, which is the file's size where there is no such byte.

        What can only be inflated from the start is read on the way.
        """
        ...


class BlockIndex(NamedTuple):
    """Where blocks begin.

    Attributes:
        stored: int64 [blocks], in the file.
        offsets: int64 [blocks + 1], in the uncompressed data; the last is its size.
    """

    stored: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]

    @property
    def size(self) -> int:
        """Number of bytes when uncompressed."""
        return int(self.offsets[-1])


def block_size(head: bytes) -> int | None:
    """Return the bytes of the block that begins with `head`, None where it is no bgzip block.

    Raises:
        DamagedError: It states fewer bytes than it has before its data.
    """
    if len(head) < 18 or head[:4] != b"\x1f\x8b\x08\x04":
        return None
    at, end = 12, 12 + int.from_bytes(head[10:12], "little")
    while at + 6 <= min(end, len(head)):
        name, length = head[at : at + 2], int.from_bytes(head[at + 2 : at + 4], "little")
        if name == b"BC" and length == 2:
            size = int.from_bytes(head[at + 4 : at + 6], "little") + 1
            if size < end + 8:
                raise DamagedError(f"a bgzip block states a size of {size} bytes")
            return size
        at += 4 + length
    return None


def find_blocks(raw: ByteFile, gzi: bytes | None) -> BlockIndex:
    """Return the index of a bgzip file.

    Args:
        raw: The file, as stored.
        gzi: Contents of the `.gzi` file beside it; what it does not list is found by hopping.

    Raises:
        DamagedError: The file ends within a block, or without the empty one; the `.gzi` file is damaged or belongs to
            another file; a member is no bgzip block.
    """
    stored, offsets = ([0], [0]) if gzi is None else _parse_gzi(gzi)
    if len(stored) > 1 and _hop(raw, 0) != (stored[1], offsets[1]):
        raise DamagedError(NOT_ITS_GZI)
    held = -1
    while (hop := _hop(raw, stored[-1])) is not None:
        size, held = hop
        stored.append(stored[-1] + size)
        offsets.append(offsets[-1] + held)
    if held != 0:
        raise DamagedError(END_MISSING)
    # No one will read an empty block, so that one that is none, but ends in four zeros, would be lost in silence.
    for at in (at for at, begin, end in zip(stored, offsets, offsets[1:], strict=False) if begin == end):
        raw.seek(at)
        if next(bgzf_blocks(raw)):
            raise DamagedError(f"the bgzip block at byte {at} holds something, and states that it is empty")
    return BlockIndex(np.array(stored[:-1], dtype=np.int64), np.array(offsets, dtype=np.int64))


def _hop(raw: ByteFile, at: int) -> tuple[int, int] | None:
    """Return the bytes of the block at `at` and of what it holds; None at the end of the file."""
    raw.seek(at)
    head = raw.read(HEAD_BYTES)
    if not head:
        return None
    size = block_size(head)
    if size is None:
        raise DamagedError(f"there is no bgzip block at byte {at}; if there should be, the .gzi file beside it may be old")
    raw.seek(at + size - 4)
    held = raw.read(4)
    if len(held) < 4:
        raise DamagedError("the file ends within a bgzip block")
    return size, int.from_bytes(held, "little")


def _parse_gzi(gzi: bytes) -> tuple[list[int], list[int]]:
    """Return the places of the blocks that are listed, the first, which is not, included."""
    count = int.from_bytes(gzi[:8], "little")
    if len(gzi) != 8 + 16 * count:
        raise DamagedError(
            f"the .gzi file beside it has {len(gzi)} bytes and should have {8 + 16 * count} for its {count} blocks"
        )
    table = np.frombuffer(gzi, dtype="<u8", offset=8).reshape(count, 2).astype(np.int64)
    table = np.concatenate([np.zeros((1, 2), dtype=np.int64), table])
    if (np.diff(table[:, 0]) <= 0).any() or (np.diff(table[:, 1]) < 0).any():
        raise DamagedError("the places in the .gzi file beside it do not rise")
    return table[:, 0].tolist(), table[:, 1].tolist()


def bgzf_blocks(raw: ByteFile) -> Iterator[bytes]:
    """Yield what the blocks from the present place of `raw` on hold.

    Raises:
        DamagedError: A block is damaged or cut, or the empty one at the end is missing.
        zlib.error: A block is damaged.
    """
    block = b"."
    while head := raw.read(12):
        head += raw.read(int.from_bytes(head[10:12], "little"))
        size = block_size(head)
        if size is None:
            raise DamagedError("the file ends within a bgzip block, or something else follows one")
        stored = head + raw.read(size - len(head))
        member = zlib.decompressobj(wbits=31)
        block = member.decompress(stored)
        if len(stored) < size or not member.eof or member.unused_data:
            raise DamagedError("the file ends within a bgzip block, or a block states a wrong size")
        yield block
    if block:
        raise DamagedError(END_MISSING)


class BgzfFile:
    """A bgzip file as its uncompressed bytes; the index is read when first one goes to another place."""

    def __init__(self, raw: ByteFile, find_index: Callable[[], BlockIndex]) -> None:
        self._raw = raw
        self._find_index = find_index
        self._blocks = bgzf_blocks(raw)
        self._rest = b""
        self._at = 0

    @property
    def size(self) -> int:
        """Number of bytes when uncompressed."""
        return self._find_index().size

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
        """Go to a byte of the uncompressed data, if there is one, by inflating the block that it is in.

        Raises:
            DamagedError: The index is not this file's.
        """
        if offset == self._at:
            return offset
        index = self._find_index()
        offset = min(offset, index.size)
        place = min(int(np.searchsorted(index.offsets, offset, side="right")) - 1, len(index.stored) - 1)
        self._raw.seek(int(index.stored[place]))
        self._rest, self._at = b"", int(index.offsets[place])
        self._blocks = self._checked_blocks(index, place)
        self.read(offset - self._at)
        return offset

    def _checked_blocks(self, index: BlockIndex, place: int) -> Iterator[bytes]:
        """Yield blocks from number `place` on, all of which must hold what the index says."""
        for size, block in zip(np.diff(index.offsets[place:]).tolist(), bgzf_blocks(self._raw), strict=False):
            if len(block) != size:
                raise DamagedError(NOT_ITS_GZI)
            yield block
