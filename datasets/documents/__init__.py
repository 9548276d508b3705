"""datasets/documents."""

from .letters import PLAIN, LetterEncoder, Letters, Weighed, Weights
from .strands import Chosen, Strands, mirrored
from .treatment import DocumentConfig, too_long

__all__ = [
    "PLAIN",
    "Chosen",
    "DocumentConfig",
    "LetterEncoder",
    "Letters",
    "Strands",
    "Weighed",
    "Weights",
    "mirrored",
    "too_long",
]
