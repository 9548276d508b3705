"""Text: one file, one document, or one line."""

from collections.abc import Iterator

from typing_extensions import override

from .lines import LineReader, ParseLine
from .pieces import Piece
from .records import BOM, READERS, Reader, Records, Window


@READERS.add("text", says="a file is a document")
class TextReader(Reader):
    """The bytes of a file as they are."""

    endings = (".txt",)

    @override
    def groups(self, piece: Piece, offset: int, first: bool) -> Iterator[Records]:
        with self.storage.open(piece.path) as file:
            window = Window(self.begin(file, piece.path, offset), piece, offset)
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


@READERS.add("lines", says="a line of text is a document")
class TextLineReader(LineReader):
    """The bytes of lines as they are."""

    format_name = "lines"
    endings = TextReader.endings

    @override
    def parser(self, path: str) -> tuple[ParseLine, int]:
        return lambda line: (line.removesuffix(b"\r").removeprefix(BOM), 0.0), 0
