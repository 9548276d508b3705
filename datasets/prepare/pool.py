"""Tasks over spawned processes: results in order of completion, events on the way, and a death with a name.

Each worker holds one end of a pipe and gets a task when it has answered the one before. A worker whose parent is gone
finds its pipe closed and ends.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NamedTuple, TypeVar

from ..errors import DataConfigError, DataError, WorkerError

T = TypeVar("T")
R = TypeVar("R")
Emit = Callable[[Any], None]


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


class Pool(Generic[T, R]):
    """Runs `work(task, emit)` for each task.

    Args:
        work: A picklable callable; what it gives to `emit` reaches `on_event`.
        describe: A task in words, for the message about a worker that died with it.
        processes: How many at most; each gets its share of the cores for the threads of native libraries.
        on_event: Called in this process.
    """

    def __init__(self, work: Callable[[T, Emit], R], describe: Callable[[T], str], processes: int, on_event: Emit) -> None:
        self._work = work
        self._describe = describe
        self._processes = processes
        self._on_event = on_event

    def run(self, tasks: Sequence[T]) -> Iterator[tuple[T, R]]:
        """Yield each task with its result.

        Raises:
            DataError: As raised in a worker; so is DataConfigError. The other workers are ended.
            WorkerError: A worker died.
        """
        waiting = list(reversed(tasks))
        busy: dict[Connection, tuple[_Worker, T]] = {}
        idle = [self._start() for _ in range(min(self._processes, len(tasks)))]
        workers = list(idle)
        try:
            while waiting or busy:
                while waiting and idle:
                    worker, task = idle.pop(), waiting.pop()
                    busy[worker.pipe] = worker, task
                    self._send(worker, task)
                for pipe in wait(list(busy)):
                    assert isinstance(pipe, Connection)
                    worker, task = busy[pipe]
                    kind, value = self._receive(worker, task)
                    if kind == "event":
                        self._on_event(value)
                    elif kind == "error":
                        raise value
                    else:
                        del busy[pipe]
                        idle.append(worker)
                        yield task, value
        finally:
            for worker in workers:
                worker.pipe.close()
                worker.process.terminate()
            for worker in workers:
                worker.process.join()

    def _start(self) -> _Worker:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, (os.cpu_count() or 1) // self._processes)
        process = context.Process(target=_serve, args=(theirs, self._work, threads), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _send(self, worker: _Worker, task: T) -> None:
        try:
            worker.pipe.send(task)
        except BrokenPipeError:
            raise self._death(worker, task) from None

    def _receive(self, worker: _Worker, task: T) -> tuple[str, Any]:
        try:
            message: tuple[str, Any] = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._death(worker, task) from None
        return message

    def _death(self, worker: _Worker, task: T) -> WorkerError:
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        reason = "; SIGKILL most often means that memory ran out" if code == -signal.SIGKILL else ""
        return WorkerError(f"worker process {worker.process.pid} {how} in the middle of {self._describe(task)}{reason}")


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
