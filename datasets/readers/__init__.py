"""datasets/readers."""

from .formats import build_reader
from .labels import FORMATS, Label
from .pieces import Piece, deal, target_size
from .records import Reader, Records, located, wrong_byte
from .sequences import ENDINGS, NamedSequence, SequenceFiles

__all__ = [
    "ENDINGS",
    "FORMATS",
    "Label",
    "NamedSequence",
    "Piece",
    "Reader",
    "Records",
    "SequenceFiles",
    "build_reader",
    "deal",
    "located",
    "target_size",
    "wrong_byte",
]
