"""What a job costs, from shapes alone: parameters, FLOPs of a step, memory of one device and of its host.

Read `sizes.py` first (how many parameters there are, and are trained), then `flops.py`, `memory.py` and `host.py`;
`relief.py` says which options would take less memory.
"""

from .flops import document_flops, document_pairs, frozen_flops, peak_flops, row_flops
from .host import HOST, host_estimate
from .memory import HOW, JobOnDevice, Moment, checkpoint_bytes, estimate, peak_of
from .relief import Relief, reliefs
from .sizes import sizes_of

__all__ = [
    "HOST",
    "HOW",
    "JobOnDevice",
    "Moment",
    "Relief",
    "checkpoint_bytes",
    "document_flops",
    "document_pairs",
    "estimate",
    "frozen_flops",
    "host_estimate",
    "peak_flops",
    "peak_of",
    "reliefs",
    "row_flops",
    "sizes_of",
]
