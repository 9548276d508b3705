"""How a file begins: what is no text, or text of another kind, is refused by its first bytes."""

from ..errors import DataError
from ..files import ByteFile, foreign

HEAD_BYTES = 2**16  # a line of text this long without a line feed is rare, and one with a carriage return rarer
CR_ONLY = "its lines end by a carriage return alone, as on an old Macintosh; convert it, as `tr '\\r' '\\n'` does"


class Rewound:
    """A file whose first bytes were read and are read again: what is compressed goes back at a cost."""

    def __init__(self, file: ByteFile, head: bytes) -> None:
        self._file, self._head, self._at = file, head, 0

    def read(self, size: int, /) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        if self._at >= len(self._head):
            return self._file.read(size)
        data = self._head[self._at : self._at + size]
        self._at += len(data)
        return data if len(data) == size else data + self._file.read(size - len(data))

    def seek(self, offset: int, /) -> int:
        """Go to a byte, and return its place or the file's size where there is none."""
        if self._at < len(self._head) and offset == self._at:
            return offset
        self._at = len(self._head)
        return self._file.seek(offset)


def look(path: str, head: bytes) -> None:
    """Refuse a file by how it begins, uncompressed. Raises DataError."""
    if (problem := foreign(path, head)) is not None:
        raise DataError(problem, file=path, offset=0)


def look_at_lines(path: str, head: bytes) -> None:
    """Refuse a file whose lines end by carriage returns alone. Raises DataError."""
    if b"\r" in head.rstrip(b"\r") and b"\n" not in head:
        raise DataError(CR_ONLY, file=path, offset=head.index(b"\r"))
