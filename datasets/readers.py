"""One reader per format of raw files."""

from .errors import DataConfigError
from .fasta import FastaReader
from .files import Storage
from .jsonl import JsonlReader
from .records import Reader, Records
from .text import TextReader

__all__ = ["Reader", "Records", "build_reader"]


def build_reader(format: str, field: str, storage: Storage) -> Reader:
    """Return the reader of a source's format: `text`, `jsonl` or `parquet` (documents are in `field`), or `fasta`."""
    if format == "text":
        return TextReader(storage)
    if format == "jsonl":
        return JsonlReader(storage, field)
    if format == "fasta":
        return FastaReader(storage)
    if format == "parquet":
        from .parquet import ParquetReader  # pyarrow takes 0.13 s to import and 60 MB

        return ParquetReader(storage, field)
    raise DataConfigError(f"data.sources.format: {format!r} is not one of 'text', 'jsonl', 'parquet', 'fasta', 'tokens'")
