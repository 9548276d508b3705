"""The processes of a run: how they divide into a layout, join, talk to each other, and end with one message and status.

Read `layout` (degrees of parallelism), `meeting` (how processes find each other), `agreement` (what they must have
alike), `join` (device, process group, mesh) and `world` (what this process is among the others, and their small CPU
collectives), then `signals`, `memory`, `exit`, `restarts` and `terminal`.
"""

from .agreement import agree
from .exit import FIRST_SPEAKS_SECONDS, first_may_speak, lost_ranks_named, run_command, speak
from .join import NVIDIA_DRIVER, device_remarks, join, limit_collectives, pick_device, symmetric_memory_complaints
from .layout import Layout, degree_complaints, global_batch_size, layout_complaints, split_complaints, world_size
from .meeting import launcher_store
from .memory import device_figures, host_figures, host_memory, private_memory, ran_out, request
from .signals import StopRequest
from .tensors import DTYPES, gradient, local, offset, whole
from .terminal import Bar, Terminal, data_output
from .world import ThreadTask, World, gather

__all__ = [
    "DTYPES",
    "FIRST_SPEAKS_SECONDS",
    "NVIDIA_DRIVER",
    "Bar",
    "Layout",
    "StopRequest",
    "Terminal",
    "ThreadTask",
    "World",
    "agree",
    "data_output",
    "degree_complaints",
    "device_figures",
    "device_remarks",
    "first_may_speak",
    "gather",
    "global_batch_size",
    "gradient",
    "host_figures",
    "host_memory",
    "join",
    "launcher_store",
    "layout_complaints",
    "limit_collectives",
    "local",
    "lost_ranks_named",
    "offset",
    "pick_device",
    "private_memory",
    "ran_out",
    "request",
    "run_command",
    "speak",
    "split_complaints",
    "symmetric_memory_complaints",
    "whole",
    "world_size",
]
