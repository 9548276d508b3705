"""From a format's name to its reader. Importing this module fills the registry with our own formats."""

from ..errors import DataConfigError
from ..files import FileStore
from . import fasta, lines, structured, text  # noqa: F401 (they register)
from .labels import Label
from .records import READERS, FieldReader, Reader

# Known by name, and imported where it is used: pyarrow takes 0.13 s and 60 MB.
READERS.announce("parquet", says="a row is a document", where="cistron.datasets.readers.parquet:ParquetReader")


def build_reader(format: str, field: str, storage: FileStore, label: Label | None = None, *, numbers: bool = False) -> Reader:
    """Return the reader of a format.

    Args:
        format: A name in `READERS`, of raw files.
        field: The key or column of documents, where records have some.
        storage: Opens files.
        label: Where and what labels are, of a format that has some; None: they are not read.
        numbers: Where records have fields: whole numbers are documents too, as decimal text.

    Raises:
        DataConfigError: Files of this format are not read.
        UserError: There is no such format.
    """
    reader = READERS[format]
    if reader is None:
        raise DataConfigError(f"data.sources.format = {format!r}: raw files are read; formats are {', '.join(raw_formats())}")
    if issubclass(reader, FieldReader):
        return reader(storage, field, label=label, numbers=numbers)
    return reader(storage)


def raw_formats() -> list[str]:
    """Return the names of the formats of raw files."""
    return [name for name in READERS if READERS[name] is not None]


def in_folder(format: str | None = None) -> tuple[str | None, tuple[str, ...]]:
    """Return for which files a folder stands, as `FileStore.expand` takes it: all below with an ending of the format.

    None as the format is any; a format without endings has no such folders.
    """
    readers = [READERS[name] for name in (raw_formats() if format is None else [format])]
    endings = tuple(dict.fromkeys(ending for reader in readers if reader is not None for ending in reader.endings))
    return "**/*" if endings else None, endings


def has_fields(format: str) -> bool:
    """Return whether records of a format have named fields, so that labels can be read."""
    reader = READERS[format]
    return reader is not None and issubclass(reader, FieldReader)
