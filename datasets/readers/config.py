"""Tables `[[data.sources]]` and `[[validation.sources]]`: which files hold documents, and where labels are."""

from typing import Annotated

from pydantic import Field
from typing_extensions import override

from ...base import Name, PathText, Positive, Table, Weight
from ..documents import Content
from .formats import has_fields
from .records import READERS


class SourceFiles(Table):
    """Which files hold documents, and in which of their fields."""

    name: Name
    """Name in logs, in metrics.jsonl and in the checkpointed data state."""
    format: Annotated[str, READERS.choice]
    """What a document is in these files."""
    paths: list[PathText] = Field(min_length=1)
    """Files, globs, URLs; tokens: manifests (*.json), folders. {stdlib}: Python's library; {synthetic}: a genome."""
    field: str = "text"
    """The key or column that holds the document, its ids or its messages; of jsonl, tsv, parquet and their kin."""
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
