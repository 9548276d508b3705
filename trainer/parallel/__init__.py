"""A plain decoder laid out over ranks, from outside: split, compiled, recomputed, sharded; and the inputs it is given.

Read `parallelize` (what is applied, in which order), then `tensor_parallel`, `context_parallel`,
`activation_checkpoint`, `compile` and `float8`, each a technique of its own. `inputs` takes a batch to the device.
"""

from .compile import compile_for_all_widths
from .context_parallel import context_block_size, context_complaints, without_context_parallel
from .float8 import float8_complaints
from .inputs import Inputs, stage
from .parallelize import needs_fsdp, parallelize, sum_over_replicas

__all__ = [
    "Inputs",
    "compile_for_all_widths",
    "context_block_size",
    "context_complaints",
    "float8_complaints",
    "needs_fsdp",
    "parallelize",
    "stage",
    "sum_over_replicas",
    "without_context_parallel",
]
