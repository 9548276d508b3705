"""Text: one file, one document."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..files import DataFile, FileStore
from .pieces import Piece
from .records import GROUP_BYTES, Records, Window, whole_piece


@dataclass(frozen=True)
class TextReader:
    """The bytes of a file as they are.

    Attributes:
        storage: Opens files.
        group_bytes: Bytes of a stretch.
    """

    storage: FileStore
    group_bytes: int = GROUP_BYTES

    def split(self, file: DataFile, target: int) -> list[Piece]:
        """See `Reader`."""
        return whole_piece(file)

    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        """See `Reader`."""
        with self.storage.open(piece.path) as file:
            window = Window(file, piece, offset)
            last = False
            while not last:
                window.fill(self.group_bytes + 1)  # one ahead, which tells whether this is the last
                last = len(window.buffer) <= self.group_bytes
                offset = window.offset
                yield Records([window.take(self.group_bytes)], [offset], first, last)
                first = False

    def locate(self, path: str, offset: int, index: int) -> tuple[None, int]:
        """Add: file and document are the same bytes."""
        return None, offset + index
