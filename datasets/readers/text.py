"""Text: one file, one document. A long one can be cut into units, which begin at the multiples of so many bytes."""

from collections.abc import Iterator
from typing import Literal

from typing_extensions import override

from ..files import DataFile
from .pieces import Piece
from .records import READERS, Reader, Records, Window, ends_early, even_pieces, whole_piece


@READERS.add("text", says="a file is a document")
class TextReader(Reader):
    """The bytes of a file as they are."""

    endings = (".txt",)

    @override
    def split(self, file: DataFile, target: int) -> list[Piece]:
        if self.unit is None or file.size <= self.unit or (length := self.length(file)) is None:
            return whole_piece(file)
        return even_pieces(file, length, -(-length // self.unit))

    @override
    def divided(self, piece: Piece) -> Literal["bytes", "stripes", "never"]:
        if self.unit is None:
            return "never"
        if piece.end is None:
            return "stripes"
        return "bytes" if piece.start or piece.end > self.unit else "never"  # one unit

    @override
    def stripes(self, piece: Piece, size: int) -> Iterator[Piece]:
        """Cut a piece into its units, each with the byte behind it."""
        assert self.unit is not None
        with self.opened(piece) as file:
            window = Window(file, piece, piece.start)
            while window.fill(self.unit + 1):
                start, ahead = window.offset, window.buffer[self.unit :]
                content = window.take(self.unit)
                yield Piece(piece.path, start, window.offset, len(content), content + ahead)

    @override
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        stop = piece.end
        if self.unit is not None and stop is not None:
            stop = -(-stop // self.unit) * self.unit
            if first and offset == piece.start:
                offset = -(-offset // self.unit) * self.unit
                first = offset == 0
            if offset >= stop:
                return
        with self.opened(piece) as file:
            window = Window(file, piece if self.unit is None else piece._replace(end=None), offset)
            goes_on = True
            while goes_on:
                offset = window.offset
                window.fill(self.group_bytes + 1)  # one ahead, which tells whether this is the last
                data = window.take(self.group_bytes if stop is None else min(self.group_bytes, stop - offset))
                if self.unit is not None and not window.buffer and window.offset < (piece.end or 0):
                    raise ends_early(piece, window.offset)
                ahead = window.buffer[:1] if window.offset == stop else b""
                yield Records([data], [offset], first, not window.buffer, ahead=ahead)
                goes_on, first = bool(window.buffer) and not ahead, False

    def locate(self, path: str, offset: int, index: int) -> tuple[None, int]:
        """Add: file and document are the same bytes."""
        return None, offset + index
