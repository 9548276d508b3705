"""trainer/estimates."""

from .flops import document_flops, document_pairs, frozen_flops, peak_flops, row_flops
from .memory import HOW, checkpoint_bytes, estimate
from .sizes import sizes_of

__all__ = [
    "HOW",
    "checkpoint_bytes",
    "document_flops",
    "document_pairs",
    "estimate",
    "frozen_flops",
    "peak_flops",
    "row_flops",
    "sizes_of",
]
