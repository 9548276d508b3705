"""datasets/documents."""

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
