"""trainer/processes."""

from .exit import lost_ranks_named, run_command
from .join import join, limit_collectives, pick_device, symmetric_memory_complaints
from .layout import Layout, degree_complaints, global_batch_size, layout_complaints, world_size
from .signals import StopRequest
from .tensors import DTYPES, gradient, local, offset
from .world import Task, World

__all__ = [
    "DTYPES",
    "Layout",
    "StopRequest",
    "Task",
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
    "symmetric_memory_complaints",
    "world_size",
]
