"""What a job costs, from shapes alone: parameters, FLOPs of a step, memory of one device.

Read `sizes.py` first (how many parameters there are, and are trained), then `flops.py` and `memory.py`.
"""

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
