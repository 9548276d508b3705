"""Run a test's function on several processes joined by gloo, as a distributed run would call it."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

_ROOT = Path(__file__).resolve().parents[1]


def run_on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank of a fresh gloo group of CPU processes and return the results by rank.

    Args:
        function: defined at the top level of a module in this repository; it asks `torch.distributed` for its rank.
        world_size: number of processes, each with one thread.
        args: picklable, the same for every rank.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of the first rank that failed.
    """
    # pytest may have imported the test under a name that only it understands; every process can import cistron.tests.
    file = Path(inspect.getfile(function)).resolve().relative_to(_ROOT)
    module = ".".join(("cistron", *file.with_suffix("").parts))
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank_main, args=(world_size, folder, module, function.__qualname__, args), nprocs=world_size)
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world_size)]


def _rank_main(rank: int, world_size: int, folder: str, module: str, name: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        result = getattr(importlib.import_module(module), name)(*args)
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
        gc.collect()  # a gloo thread kept alive by a cycle ends the process in std::terminate, as in failures.run_command
