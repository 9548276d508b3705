"""Tasks over spawned processes: results in order of completion, events on the way, and a death with a name.

Each worker holds one end of a pipe and gets a task when it has answered the one before. A worker whose parent is gone
finds its pipe closed and ends.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from ..errors import DataConfigError, DataError, WorkerError

T = TypeVar("T")
R = TypeVar("R")
Emit = Callable[[Any], None]


def run_tasks(work: Callable[[T, Emit], R], tasks: Sequence[T], processes: int, on_event: Emit) -> Iterator[tuple[T, R]]:
    """Yield each task with the result of `work(task, emit)`, in order of completion.

    Args:
        work: A picklable callable; what it gives to `emit` reaches `on_event`.
        tasks: Named by `str` in the message about a worker that died with one.
        processes: How many at most; each gets its share of the cores for the threads of native libraries.
        on_event: Called in this process.

    Raises:
        DataError: As raised in a worker; so is DataConfigError. The other workers are ended.
        WorkerError: A worker died.
    """
    threads = max(1, (os.cpu_count() or 1) // processes)
    workers = dict(_start(work, threads) for _ in range(min(processes, len(tasks))))
    waiting, idle, busy = list(reversed(tasks)), list(workers), dict[Connection, T]()
    try:
        while waiting or busy:
            while waiting and idle:
                pipe, task = idle.pop(), waiting.pop()
                busy[pipe] = task
                with _death_named(workers[pipe], task):
                    pipe.send(task)
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                with _death_named(workers[ready], busy[ready]):
                    kind, value = ready.recv()
                if kind == "event":
                    on_event(value)
                elif kind == "error":
                    raise value
                else:
                    idle.append(ready)
                    yield busy.pop(ready), value
    finally:
        for pipe, process in workers.items():
            pipe.close()
            process.terminate()
        for process in workers.values():
            process.join()


def _start(work: Callable[[T, Emit], R], threads: int) -> tuple[Connection, BaseProcess]:
    """Return our end of a new worker's pipe, and the worker."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, work, threads), daemon=True)
    process.start()
    theirs.close()
    return ours, process


@contextmanager
def _death_named(process: BaseProcess, task: object) -> Iterator[None]:
    """Say how a worker ended, and with which task, where its pipe turns out closed."""
    try:
        yield
    except (BrokenPipeError, EOFError, ConnectionResetError):
        process.join()
        code = process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        reason = "; SIGKILL most often means that memory ran out" if code == -signal.SIGKILL else ""
        raise WorkerError(f"worker process {process.pid} {how} in the middle of {task}{reason}") from None


def _serve(pipe: Connection, work: Callable[[Any, Emit], Any], threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends us
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # read by `tokenizers` when it encodes first
    try:
        while True:
            task = pipe.recv()
            try:
                result = work(task, lambda event: pipe.send(("event", event)))
            except (DataError, DataConfigError) as error:
                pipe.send(("error", error))
                return
            pipe.send(("result", result))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
