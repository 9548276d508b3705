"""Processes and the device mesh: how many ranks there are, what each one is, and what all must know.

The mesh has the dimensions (replicate, shard, cp, tp). Ranks that differ only in cp or tp see the same rows, cp ranks
different tokens of them; replicate x shard is the data-parallel degree. Parameters are sharded over shard x cp.
Whatever every rank must know before a step (how many targets, has anyone been told to stop, has anyone failed) travels
through one small CPU all-reduce, so that no GPU is ever synchronised for it.
"""

import socket
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ...base import UserError
from .layout import Layout

# torch 2.13's own FSDP2 takes the flattened dimension of shard x cp out of the mesh in the way that it warns of.
warnings.filterwarnings("ignore", message="Slicing a flattened dim", category=UserWarning)
# first and longest pause of a wait: of a run's 15 waits for its disk most are over within 5 ms
POLL_SECONDS = (0.001, 0.05)
T = TypeVar("T")
Number = TypeVar("Number", int, float)


class ThreadTask(Generic[T]):
    """Work in a thread of its own, so that a rank whose disk is slow still answers the others.

    Args:
        work: what is to be done.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self.result: T | OSError | UserError
        self.work = work
        self.thread = threading.Thread(target=self.run, name="cistron-files", daemon=True)
        self.thread.start()

    def run(self) -> None:
        """Do the work, and keep its result or its error; the body of the thread."""
        try:
            self.result = self.work()
        except (OSError, UserError) as e:
            self.result = e
        except BaseException as e:  # a bug, or a store's own way to complain
            traceback.print_exc()
            self.result = OSError(f"{type(e).__name__}: {e}")

    def done(self) -> bool:
        """Return whether the work has ended."""
        return not self.thread.is_alive()

    def outcome(self) -> T | OSError | UserError:
        """Wait for the end of the work; return what it returned, or the exception in which it ended."""
        self.thread.join()
        return self.result


def in_thread(work: Callable[[], T], name: str) -> "Future[T]":
    """Begin work in a thread of this name, which is left behind where it hangs; return where its outcome will be."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def gather(value: T) -> list[T]:
    """Return every rank's value, in rank order, on every rank. For small plain objects."""
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(value: T) -> T:
    """Return rank 0's value on every rank. However large it is, it is sent and kept once."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int
    layout: Layout
    device: torch.device
    mesh: DeviceMesh

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which alone prints and writes reports."""
        return self.rank == 0

    @property
    def dp_rank(self) -> int:
        """Which rows of a step are this rank's."""
        return self.mesh.get_local_rank("replicate") * self.layout.shard + self.mesh.get_local_rank("shard")

    @property
    def tp_rank(self) -> int:
        """0 for exactly one of the ranks that share the same tokens."""
        return self.mesh.get_local_rank("tp")

    @property
    def is_row_leader(self) -> bool:
        """True for exactly one of the ranks that share the same rows."""
        return self.mesh.get_local_rank("cp") == self.tp_rank == 0

    @property
    def data_mesh(self) -> DeviceMesh:
        """The mesh that FSDP2 shards (and, in two dimensions, replicates) over."""
        shard = "shard_cp" if self.layout.cp > 1 else "shard"
        return self.mesh["replicate", shard] if self.layout.replicate > 1 else self.mesh[shard]

    def sum(self, values: list[Number]) -> list[Number]:
        """Sum by element over all ranks, through CPU memory: integers, which wrap at 2^63, or floats, in float64."""
        total = torch.tensor(values, dtype=torch.float64 if isinstance(values[0], float) else torch.int64)
        dist.all_reduce(total)
        return cast("list[Number]", total.tolist())

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in rank order, on every rank. For small plain objects."""
        return gather(value)

    def from_first(self, value: T) -> T:
        """Return rank 0's value on every rank."""
        return from_first(value)

    def wait_for(self, done: Callable[[], bool]) -> None:
        """Return once `done()` holds on all ranks. One may wait for its disk for longer than a collective may take."""
        pause, longest = POLL_SECONDS
        while self.sum([int(done())])[0] < self.layout.world_size:
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def in_thread_on_every_rank(self, work: Callable[[], T]) -> list[T]:
        """Return all ranks' results of work on files, in a thread. Raises OSError, UserError: on all ranks."""
        task = ThreadTask(work)
        self.wait_for(task.done)
        results = self.gather(task.outcome())
        for result in results:
            if isinstance(result, (OSError, UserError)):
                raise result
        return cast("list[T]", results)

    def in_thread_on_rank_zero(self, work: Callable[[], T]) -> T:
        """Return rank 0's result of work on files, on every rank. Raises OSError, UserError: on all ranks."""
        return self.in_thread_on_every_rank(lambda: work() if self.is_first else cast(T, None))[0]

    def on_every_rank(self, step: Callable[[], T]) -> T:
        """Do on every rank what any may fail at; the first rank's error is raised on all. Raises UserError.

        One that only some ranks have, as of a file that their host lacks, says which.
        """
        result, error = None, None
        try:
            result = step()
        except UserError as e:
            error = e
        found = self.gather((error, socket.gethostname()))
        failed = [rank for rank, (other, _) in enumerate(found) if other is not None]
        if failed:
            first, host = found[failed[0]]
            assert first is not None
            if len(failed) < len(found):
                first.args = (f"{first} [found by rank {failed[0]} ({host}), {len(failed)} in all]",)
            raise first
        return cast(T, result)

    def slowly_on_every_rank(self, step: Callable[[], T]) -> T:
        """Do as `on_every_rank`, in a thread: a rank may take longer than a collective may."""
        future = in_thread(step, "cistron-slow")
        self.wait_for(future.done)
        return self.on_every_rank(future.result)

    def raise_together(self, error: Exception | None) -> None:
        """Raise the first rank's error on all ranks, if there is one, so that none waits for a rank that has left."""
        first = next((e for e in self.gather(error) if e is not None), None)
        if first is not None:
            raise first
