"""What is done with documents between files and rows: letters weighed, strands chosen, long ones cut or refused.

Read `treatment` (the keys of `[data]` about documents, and what they mean together), then `letters` (loss weights and
case of letters), `encoders` (documents that are ids or messages) and `strands` (reverse complements).
"""

from .encoders import IDS, Content, Encoder, content_complaints, content_settings, make_encoder
from .letters import LetterEncoder, Letters, Weighed, Weights, letter_complaints
from .strands import Chosen, Strands, mirrored
from .treatment import DocumentConfig, document_complaints, too_long

__all__ = [
    "IDS",
    "Chosen",
    "Content",
    "DocumentConfig",
    "Encoder",
    "LetterEncoder",
    "Letters",
    "Strands",
    "Weighed",
    "Weights",
    "content_complaints",
    "content_settings",
    "document_complaints",
    "letter_complaints",
    "make_encoder",
    "mirrored",
    "too_long",
]
