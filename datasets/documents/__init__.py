"""What is done with documents between files and rows: letters weighed, strands chosen, long ones cut or refused.

Read `treatment` (the keys of `[data]` about documents, and what they mean together), then `letters` (loss weights and
case of letters) and `strands` (reverse complements).
"""

from .letters import LetterEncoder, Letters, Weighed, Weights, letter_complaints
from .strands import Chosen, Strands, mirrored
from .treatment import DocumentConfig, document_complaints, too_long

__all__ = [
    "Chosen",
    "DocumentConfig",
    "LetterEncoder",
    "Letters",
    "Strands",
    "Weighed",
    "Weights",
    "document_complaints",
    "letter_complaints",
    "mirrored",
    "too_long",
]
