"""A thread that works ahead of whoever takes its results.

Each change of threads costs some 50 microseconds, as much as half a batch from token shards takes to make. So neither
side
is woken for a single result where several are about to come: who finds none ready gives the other a millisecond to make
some, and who is too far ahead rests until half of them are taken.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")
GATHER_SECONDS = 0.001
POLL_SECONDS = 0.1


class ReadAhead(Generic[Item]):
    """What an endless iterator yields, made in a thread of its own.

    Args:
        make: Returns the iterator; called in the thread.
        depth: Results that wait to be taken, at most.
    """

    def __init__(self, make: Callable[[], Iterator[Item]], depth: int) -> None:
        self._make = make
        self._depth = depth
        self._ready: deque[Item] = deque()
        self._error: BaseException | None = None
        self._stopped = False
        self._change = threading.Condition()
        self._wanted = 0  # results that `next` waits for; 0 when it does not wait
        self._thread = threading.Thread(target=self._run, name="cistron-data", daemon=True)
        self._thread.start()

    def next(self, interrupted: Callable[[], bool]) -> Item | None:
        """Return the next result, or None when `interrupted()` turns true while waiting for it.

        What the iterator raises is raised here, behind all results before it, and again by every further call.
        """
        if not self._ready:
            self._wait(interrupted)
        if self._ready:
            item = self._ready.popleft()
            if len(self._ready) == self._depth // 2:
                with self._change:
                    self._change.notify()
            return item
        if self._error is not None:
            raise self._error
        return None

    def stop(self, timeout: float) -> bool:
        """Make the thread leave the iterator behind; return whether it did within `timeout` seconds."""
        with self._change:
            self._stopped = True
            self._change.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _wait(self, interrupted: Callable[[], bool]) -> None:
        """Wait for results, an exception or an interruption."""
        with self._change:
            self._wanted = max(self._depth // 2, 1)
            self._change.wait_for(self._due, GATHER_SECONDS)
            self._wanted = 1
            while not self._due():
                if not self._change.wait(POLL_SECONDS) and interrupted():
                    break
            self._wanted = 0

    def _due(self) -> bool:
        return len(self._ready) >= self._wanted or self._error is not None

    def _run(self) -> None:
        """Body of the thread. Without the lock but for changes that the other side may be waiting for."""
        try:
            for item in self._make():
                self._ready.append(item)
                if 0 < self._wanted <= len(self._ready):
                    with self._change:
                        self._change.notify()
                if len(self._ready) >= self._depth:
                    with self._change:
                        self._change.wait_for(lambda: self._stopped or len(self._ready) <= self._depth // 2)
                if self._stopped:
                    return
        except BaseException as error:
            with self._change:
                self._error = error
                self._change.notify()
