"""Text: one file, one document, or one line. A long document can be cut into units of so many bytes."""

from collections.abc import Iterator
from typing import Literal

from typing_extensions import override

from ..files import ByteFile, DataFile
from .lines import LineReader, ParseLine
from .pieces import Piece
from .records import BOM, READERS, Reader, Records, Window, ends_early, even_pieces, whole_piece


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
            window = Window(self.begin(file, piece.path, piece.start), piece, piece.start)
            while window.fill(self.unit + 1):
                start, ahead = window.offset, window.buffer[self.unit :]
                content = window.take(self.unit)
                yield Piece(piece.path, start, window.offset, len(content), content + ahead)

    @override
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        with self.opened(piece) as file:
            stop, whole = piece.end, self.unit is None
            if piece.content is not None:
                first = first and piece.start <= len(BOM)
            elif stop is not None and not whole:
                mark = _mark(file)
                stop = self._next_unit(stop, mark)
                if first and offset == piece.start:
                    offset = self._next_unit(offset, mark)
                    first = offset == 0
            if stop is not None and offset >= stop:
                return
            window = Window(self.begin(file, piece.path, offset), piece if whole else piece._replace(end=None), offset)
            goes_on = True
            while goes_on:
                offset = window.offset
                window.fill(self.group_bytes + 1)  # one ahead, which tells whether this is the last
                data = window.take(self.group_bytes if stop is None else min(self.group_bytes, stop - offset))
                if not (whole or window.buffer) and window.offset < (piece.end or 0):
                    raise ends_early(piece, window.offset)
                ahead = window.buffer[:1] if window.offset == stop else b""
                yield Records([data], [offset], first, not window.buffer, ahead=ahead)
                goes_on, first = bool(window.buffer) and not ahead, False

    def _next_unit(self, at: int, mark: int) -> int:
        """Return the first byte at or behind `at` where a unit begins: whole units behind a byte order mark."""
        assert self.unit is not None
        return max(-(-(at - mark) // self.unit), 1) * self.unit + mark if at else 0

    def locate(self, path: str, offset: int, index: int) -> tuple[None, int]:
        """Add: file and document are the same bytes."""
        return None, offset + index


def _mark(file: ByteFile) -> int:
    """Return the bytes of the mark that a file begins with."""
    found = len(BOM) * (file.read(len(BOM)) == BOM)
    file.seek(0)
    return found


@READERS.add("lines", says="a line of text is a document")
class TextLineReader(LineReader):
    """The bytes of lines as they are."""

    format_name = "lines"
    endings = TextReader.endings

    @override
    def parser(self, path: str) -> tuple[ParseLine, int]:
        return lambda line: (line.removesuffix(b"\r").removeprefix(BOM), 0.0), 0
