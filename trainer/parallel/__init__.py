"""trainer/parallel."""

from .compile import compile_for_all_widths
from .context_parallel import block_size, context_complaints, spread_rows, without_context_parallel
from .float8 import float8_complaints
from .parallelize import parallelize

__all__ = [
    "block_size",
    "compile_for_all_widths",
    "context_complaints",
    "float8_complaints",
    "parallelize",
    "spread_rows",
    "without_context_parallel",
]
