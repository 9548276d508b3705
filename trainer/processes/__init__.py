"""The processes of a run: how they divide into a layout, join, talk to each other, and end with one message and status.

Read `layout` (degrees of parallelism), `join` (device, process group, mesh) and `world` (what this process is among the
others, and their small CPU collectives), then `signals` and `exit`.
"""

from .exit import lost_ranks_named, run_command
from .join import join, limit_collectives, pick_device, symmetric_memory_complaints
from .layout import Layout, degree_complaints, global_batch_size, layout_complaints, split_complaints, world_size
from .signals import StopRequest
from .tensors import DTYPES, gradient, local, offset
from .world import ThreadTask, World

__all__ = [
    "DTYPES",
    "Layout",
    "StopRequest",
    "ThreadTask",
    "World",
    "degree_complaints",
    "global_batch_size",
    "gradient",
    "join",
    "layout_complaints",
    "limit_collectives",
    "local",
    "lost_ranks_named",
    "offset",
    "pick_device",
    "run_command",
    "split_complaints",
    "symmetric_memory_complaints",
    "world_size",
]
