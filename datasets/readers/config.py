"""Tables `[[data.sources]]` and `[[validation.sources]]`, and from the name of a format to its reader.

Importing this module fills the registry with our own formats.
"""

from typing import Annotated

from pydantic import Field
from typing_extensions import override

from ...base import Name, PathText, Positive, Table, Weight
from ..documents import Content
from ..errors import DataConfigError
from ..files import FileStore
from . import fasta, structured, tables, text  # noqa: F401 (they register)
from .labels import Label
from .records import READERS, FieldReader, Reader

# Known by name, and imported where it is used: pyarrow takes 0.13 s and 60 MB.
READERS.announce("parquet", says="a row is a document", where="cistron.datasets.readers.parquet:ParquetReader")


class SourceFiles(Table):
    """Which files hold documents, and in which of their fields."""

    name: Name
    """Name in logs, in metrics.jsonl and in the checkpointed data state."""
    format: Annotated[str, READERS.choice]
    """What a document is in these files."""
    paths: list[PathText] = Field(min_length=1)
    """Files, globs, URLs; tokens: manifests (*.json), folders. {stdlib}: Python's library; {synthetic}: a genome."""
    field: str = "text"
    """The key (a.b: b of the object at a) or column of the document, its ids or messages: jsonl, csv, tsv, parquet."""
    label: Name | None = None
    """The same formats: key or column of the document's label, for training.objective classification, regression."""

    @property
    def content(self) -> Content | None:
        """What the bytes of a document are; None: token shards, which are not read as bytes."""
        reader = READERS[self.format]
        return None if reader is None else reader.content

    @override
    def complaints(self) -> list[str]:
        if self.label is None or has_fields(self.format):
            return []
        others = ", ".join(filter(has_fields, READERS))
        return [f'label = {self.label!r}: format = "{self.format}" has no labels; {others} have']


class SourceConfig(SourceFiles):
    """One source of documents, and how much of it is read."""

    weight: Weight = 1.0
    """Relative share of packed rows, hence of tokens; 0: none before a stage gives it one."""
    max_epochs: Positive | None = None
    """End training, saved, before this source would be read for one more time than this; unset: it is read for ever."""


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
