"""Raw files to documents: one reader per format, each of which reads on from any address that it has given.

Read `records` (what a reader is and gives, and the registry of formats), `text` (the smallest reader), `pieces` (files
cut and assigned to lanes), then `lines`, `tables`, `fasta` and `parquet`; `config` has the tables of sources and finds
readers by name, `sequences` reads whole records.
"""

from .config import SourceConfig, SourceFiles, build_reader, in_folder, raw_formats
from .labels import Label
from .pieces import Piece, assign, target_size
from .records import GROUP_BYTES, READERS, DocumentJoiner, FieldReader, Reader, Records, located, wrong_byte
from .sequences import NamedSequence, SequenceFiles

__all__ = [
    "GROUP_BYTES",
    "READERS",
    "DocumentJoiner",
    "FieldReader",
    "Label",
    "NamedSequence",
    "Piece",
    "Reader",
    "Records",
    "SequenceFiles",
    "SourceConfig",
    "SourceFiles",
    "assign",
    "build_reader",
    "in_folder",
    "located",
    "raw_formats",
    "target_size",
    "wrong_byte",
]
