"""One reader per format of raw files."""

from ..errors import DataConfigError
from ..files import FileStore
from .fasta import FastaReader
from .labels import FORMATS, Label
from .lines import JsonlReader, TsvReader
from .records import Reader
from .text import TextReader


def build_reader(format: str, field: str, storage: FileStore, label: Label | None = None, *, numbers: bool = False) -> Reader:
    """Return the reader of a source's format: `text`, `jsonl`, `tsv` or `parquet` (documents are in `field`), or `fasta`.

    Args:
        format: See above.
        field: The key or column of documents.
        storage: Opens files.
        label: Where and what labels are; None: they are not read.
        numbers: Of jsonl and parquet: whole numbers are documents too, as decimal text.

    Raises:
        DataConfigError: There is no such format, or it has no labels.
    """
    if label is not None and format not in FORMATS:
        have = ", ".join(map(repr, FORMATS))
        raise DataConfigError(f"data.sources.label = {label.field!r}: format {format!r} has no labels; {have} have")
    if format == "text":
        return TextReader(storage)
    if format == "jsonl":
        return JsonlReader(storage, field, label=label, numbers=numbers)
    if format == "tsv":
        return TsvReader(storage, field, label=label)
    if format == "fasta":
        return FastaReader(storage)
    if format == "parquet":
        from .parquet import ParquetReader  # pyarrow takes 0.13 s to import and 60 MB

        return ParquetReader(storage, field, label=label, numbers=numbers)
    raise DataConfigError(f"data.sources.format: {format!r} is not one of 'text', 'jsonl', 'tsv', 'parquet', 'fasta', 'tokens'")
