"""trainer/parallel."""

from .compile import compile_for_all_widths
from .context_parallel import block_size, check_context, spread_rows, without_context_parallel
from .float8 import check_float8
from .parallelize import parallelize

__all__ = [
    "block_size",
    "check_context",
    "check_float8",
    "compile_for_all_widths",
    "parallelize",
    "spread_rows",
    "without_context_parallel",
]
