"""trainer/processes."""

from .exit import lost_peers_named, run_command
from .join import check_symmetric_memory, join, limit_collectives, pick_device
from .layout import Layout, check_layout, global_batch_size, world_size
from .signals import StopRequest
from .tensors import DTYPES, gradient, local, offset
from .world import Task, World

__all__ = [
    "DTYPES",
    "Layout",
    "StopRequest",
    "Task",
    "World",
    "check_layout",
    "check_symmetric_memory",
    "global_batch_size",
    "gradient",
    "join",
    "limit_collectives",
    "local",
    "lost_peers_named",
    "offset",
    "pick_device",
    "run_command",
    "world_size",
]
