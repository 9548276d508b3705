"""Sequences of raw files one by one, each whole and with its name: the input of a trained model."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ..errors import DataConfigError, DataError
from ..files import DataFile, FileStore, uncompressed_name
from .config import build_reader, has_fields, in_folder, raw_formats
from .fasta import ENDINGS
from .pieces import MAX_PIECE_BYTES, Piece
from .records import READERS, DocumentJoiner, Reader, located, wrong_byte


class NamedSequence(NamedTuple):
    """One record.

    Attributes:
        name: Of the record, on one line.
        data: UTF-8 bytes.
        file: Path or URL.
        offset: Its address there, see `records`.
        stored: Bytes of files, as stored, that are known to lie before it.
    """

    name: str
    data: bytes
    file: str = ""
    offset: int = 0
    stored: float = 0.0


class SequenceFiles:
    """The records of some files, in order of the paths and within a file in its own.

    A record's name is the first word of a FASTA header, what `id_field` holds, or the path of a text; without any, its
    number among all records, from 0.

    Args:
        paths: Paths, globs or fsspec URLs; files may be compressed.
        format: `fasta`, `jsonl`, `parquet` or `text` (a file is a record); None: as the files' endings say.
        field: Of jsonl and parquet, what holds the sequence.
        id_field: Of jsonl and parquet, what holds the name: a string or a whole number.

    Attributes:
        files: As found.

    Raises:
        DataConfigError: The format cannot be known, or it has no fields.
        DataError: A file is missing or empty, or cannot be read.
    """

    def __init__(
        self, paths: Iterable[str], format: str | None = None, field: str = "text", id_field: str | None = None
    ) -> None:
        self._storage = FileStore()
        self.files = self._storage.expand(paths, *in_folder(format))
        self._format = format or format_of(self.files)
        if id_field is not None and not has_fields(self._format):
            raise DataConfigError(f"--id-field {id_field}: a {self._format} file has no fields")
        self._reader = build_reader(self._format, field, self._storage)
        if self._reader.content != "text":
            raise DataConfigError(f"--format {self._format}: its documents are {self._reader.content}; give sequences as text")
        self._names = None if id_field is None else build_reader(self._format, id_field, self._storage, numbers=True)

    def __iter__(self) -> Iterator[NamedSequence]:
        """Read all records.

        Raises:
            DataError: A record cannot be read, or there is none.
        """
        number, stored = 0, 0
        for file in self.files:
            for piece in self._reader.split(file, MAX_PIECE_BYTES):
                for offset, data, name in self._piece(piece):
                    known = stored + (piece.share(offset) or 0.0) * piece.size
                    yield NamedSequence(name or str(number), data, file.path, offset, known)
                    number += 1
                stored += piece.size
        if not number:
            raise DataError("the input holds no sequence", file=self.files[0].path)

    def _piece(self, piece: Piece) -> Iterator[tuple[int, bytes, str]]:
        """Yield address, data and name of each record; the name is empty where there is none."""
        if self._names is not None:
            # a second pass over the same lines, which costs little beside a model's, and readers know one field
            for (offset, data, _), (_, name, _) in zip(_whole(self._reader, piece), _whole(self._names, piece), strict=True):
                yield offset, data, " ".join(name.decode(errors="replace").split())
            return
        for offset, data, header in _whole(self._reader, piece):
            words = header.removeprefix(b">").decode(errors="replace").split()
            yield offset, data, piece.path if self._format == "text" else (words or [""])[0]

    def located(self, sequence: NamedSequence, problem: str, index: int = 0) -> DataError:
        """Return an error about byte `index` of a sequence, with its record and its place in the file."""
        return wrong_byte(self._reader, sequence.file, sequence.offset, index, problem)


def format_of(files: Iterable[DataFile]) -> str:
    """Return the one format that the files' names end in, compression aside. Raises DataConfigError."""
    endings = {name: reader.endings for name in READERS if (reader := READERS[name]) is not None}
    formats: dict[str, str] = {}
    for file in files:
        name = uncompressed_name(file.path)
        found = next((format for format in endings if name.endswith(endings[format])), None)
        if found is None:
            if (told := next((told for ending, told in ENDINGS.items() if name.endswith(ending)), None)) is not None:
                raise DataConfigError(f"{file.path}: by its name {told}")
            raise DataConfigError(f"{file.path}: its ending tells no format; name it with --format {'|'.join(raw_formats())}")
        formats[found] = file.path
    if len(formats) > 1:
        raise DataConfigError(f"files of several formats, {' and '.join(formats.values())}: ask for one at a time")
    return next(iter(formats))


def _whole(reader: Reader, piece: Piece) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield address, data and header of each record, whole; the header is empty where the format has none."""
    join = DocumentJoiner()
    for group in reader.groups(piece, piece.start, True):
        records = join(group)
        headers = records.headers or [b""] * len(records.documents)
        yield from zip(records.offsets, records.documents, headers, strict=True)
        if group.error is not None:
            raise located(reader, group.error, group.bad_offset)
