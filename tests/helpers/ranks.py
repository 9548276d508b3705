"""Run a test's function on several processes joined by gloo, as a distributed run would call it.

A fresh interpreter takes 3 s of a core to import torch and the trainer. So one server for all tests imports them once,
in a single thread and without touching a random state or a process group, and every rank is a fork of it: as clean, and
there at once. So are data workers and those of `prepare`, which cost 2.5 s and 1 s where they are spawned. What a fork
has not is a hash seed of its own and the end of an interpreter: both are left to tests of the command line.
"""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cistron.datasets.loading import transport
from cistron.datasets.prepare import pool
from torchdata.stateful_dataloader import StatefulDataLoader

_ROOT = Path(__file__).resolve().parents[2]
mp.set_forkserver_preload(["cistron.tests.helpers.ranks", "cistron.trainer.train", "torch._inductor.compile_fx", "pytest"])


class ForkedWorkers(StatefulDataLoader[Any]):
    """A loader whose worker processes are forks of the server."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "multiprocessing_context": "forkserver"})


transport.StatefulDataLoader = ForkedWorkers  # type: ignore[misc]
pool.get_context = lambda _: mp.get_context("forkserver")  # type: ignore[assignment]


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
    rest = (world_size, folder, _module(function), function.__qualname__, args, _server())
    return mp.start_processes(_rank_main, rest, nprocs=world_size, join=False, start_method="forkserver")


class Command:
    """A command line in a fork of the server; it reacts to signals like `subprocess.Popen`, without 3 s of imports.

    It leads a process group of its own, with the data workers that it spawns, and its output goes to one file.
    Environment variables are those of the first fork.

    Args:
        main: what takes the arguments, at the top level of a module.
        argv: of the command line.
    """

    def __init__(self, main: Callable[[list[str]], object], argv: Sequence[str]) -> None:
        self._log = tempfile.NamedTemporaryFile("r")  # noqa: SIM115
        rest = (self._log.name, _module(main), main.__qualname__, list(argv))
        self._process = mp.get_context("forkserver").Process(target=_command_main, args=rest)
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """Return `returncode`, as `Popen.poll` does."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Signal the process alone."""
        os.kill(self.pid, number)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the status."""
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"still running after {timeout} s")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait for its end and return what it printed on either channel."""
        self.wait(timeout)
        return self._log.read(), None


def _server() -> dict[str, Any]:
    """Start the server, unless it runs, and return what its forks need to ask it for more of them."""
    forkserver.ensure_running()
    return {name: value for name, value in vars(forkserver._forkserver).items() if name.endswith(("_address", "_authkey"))}


def _use(server: dict[str, Any]) -> None:
    """Have this fork's own processes made by the server that made it; a second one would import all once more."""
    vars(forkserver._forkserver).update(server, ensure_running=lambda: None)


def _command_main(log: str, module: str, name: str, argv: list[str]) -> None:
    gc.freeze()  # what the server imported: 0.25 s of each collection
    transport.StatefulDataLoader = StatefulDataLoader  # type: ignore[misc]
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, and runs leave it ignored then
    with open(log, "w") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    getattr(importlib.import_module(module), name)(argv)


def _module(function: Callable[..., object]) -> str:
    """Name the module of a function as every process can import it; pytest may know a test by a name of its own."""
    file = Path(inspect.getfile(function)).resolve().relative_to(_ROOT)
    return ".".join(("cistron", *file.with_suffix("").parts))


def _rank_main(
    rank: int, world_size: int, folder: str, module: str, name: str, args: tuple[Any, ...], server: dict[str, Any]
) -> None:
    gc.freeze()  # as above
    _use(server)
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
