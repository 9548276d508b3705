"""Run a test's function on several processes joined by gloo, as a distributed run would call it.

A fresh interpreter takes 3 s of a core to import torch and the trainer. So one server for all tests imports them once, in a
single thread and without touching a random state or a process group, and every rank is a fork of it: as clean, and there at
once. What a fork has not is a hash seed of its own and the end of an interpreter: both are left to tests of the command line.
"""

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

_ROOT = Path(__file__).resolve().parents[2]
mp.set_forkserver_preload(["cistron.tests.helpers.ranks", "cistron.trainer.train", "torch._inductor.compile_fx", "pytest"])


def run_on_ranks(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """Call `function(*args)` on every rank of a fresh gloo group of CPU processes and return the results by rank.

    Args:
        function: defined at the top level of a module in this repository; it asks `torch.distributed` for its rank.
        world_size: number of processes, each with one thread.
        args: picklable, the same for every rank.

    Raises:
        torch.multiprocessing.ProcessRaisedException: with the traceback of the first rank that failed.
        torch.multiprocessing.ProcessExitedException: where a rank was ended by a signal or ended itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        ranks = start_on_ranks(folder, function, world_size, *args)
        while not ranks.join():
            pass
        return [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(world_size)]


def start_on_ranks(folder: str, function: Callable[..., Any], world_size: int, *args: Any) -> mp.ProcessContext:
    """Start what `run_on_ranks` runs and return its processes; rank r leaves its result in `folder`/r.pt."""
    # pytest may have imported the test under a name that only it understands; every process can import cistron.tests.
    file = Path(inspect.getfile(function)).resolve().relative_to(_ROOT)
    module = ".".join(("cistron", *file.with_suffix("").parts))
    rest = (world_size, folder, module, function.__qualname__, args)
    return mp.start_processes(_rank_main, rest, nprocs=world_size, join=False, start_method="forkserver")


def _rank_main(rank: int, world_size: int, folder: str, module: str, name: str, args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        result = getattr(importlib.import_module(module), name)(*args)
        torch.save(result, f"{folder}/{rank}.pt")
    finally:
        if dist.is_initialized():  # a whole run has destroyed it
            dist.destroy_process_group()
        gc.collect()  # a gloo thread kept alive by a cycle ends the process in std::terminate, as in failures.run_command
