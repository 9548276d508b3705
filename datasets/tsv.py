"""tsv: a table with a record per line, its columns named by the first line and parted by tabs; nothing is quoted."""

from .errors import DataError
from .lines import LineReader, ParseLine
from .records import BOM

HEADER_BYTES = 2**16


class TsvReader(LineReader):
    """Documents in one column of a table."""

    format_name = "tsv"

    def parser(self, path: str) -> tuple[ParseLine, int]:
        """See `LineReader`; reads the names of the file's columns."""
        with self.storage.open(path, whole=False) as file:
            line, newline, _ = file.read(HEADER_BYTES).partition(b"\n")
        if not newline:
            problem = f"the first line must name the columns, and another follow within {HEADER_BYTES} bytes"
            raise DataError(problem, file=path, record=1, offset=0)
        names = _cells(line.removeprefix(BOM))
        wanted = [self.field, *([self.label.field] if self.label else [])]
        places = []
        for name in wanted:
            if names.count(name.encode()) != 1:
                found = ", ".join(repr(cell.decode("utf-8", errors="replace")) for cell in names[:8])
                problem = f"there must be one column {name!r}; the first line names: {found}"
                raise DataError(problem, file=path, record=1, offset=0)
            places.append(names.index(name.encode()))

        def parse(line: bytes) -> tuple[bytes, float]:
            cells = _cells(line)
            if len(cells) != len(names):
                raise ValueError(f"{len(cells)} cells; the first line names {len(names)} columns")
            document = cells[places[0]]
            try:
                document.decode("utf-8")
                label = cells[places[-1]].decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"not valid UTF-8 ({error.reason})") from None
            return document, 0.0 if self.label is None else self.label.number(label, document)

        return parse, len(line) + 1


def _cells(line: bytes) -> list[bytes]:
    """Return the cells of a line, which may end as in files of Windows."""
    return line.removesuffix(b"\r").split(b"\t")
