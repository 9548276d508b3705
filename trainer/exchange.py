"""How the loaders of all ranks ask each other, in threads of their own: through the store in which ranks have met.

A collective would have to come in one order with those of training. Here each rank enters its values under the number
of the exchange, rank 0 reads all of them and enters the greatest, for which the others poll. A rank that stops reading
says so, and no other one waits for it. Of a rank that is gone nobody hears: the main thread, which waits for rows
meanwhile, gives up after `comm.timeout_seconds`.
"""

import itertools
import json
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from ..datasets.loading import RanksLeft

POLL_SECONDS = (0.0005, 0.05)  # first and longest; each is by a half longer than the one before
LEFT = "left"
_opened = itertools.count()  # in this process: a second training in it must not find the values of the first


class StoreExchange:
    """The exchange of the loader of one rank, see `datasets.loading.Exchange`.

    Args:
        rank: this process among all.
        ranks: how many there are.
        timeout: seconds for which the main thread waits.
        store: which all ranks reach, with nothing in it; None: a part of that of the process group.
    """

    def __init__(self, rank: int, ranks: int, timeout: float, store: Any = None) -> None:
        prefix = f"rows {next(_opened)}"
        self.store = store or dist.PrefixStore(prefix, distributed_c10d._get_default_store())  # type: ignore[attr-defined]
        self.rank, self.ranks, self.timeout = rank, ranks, timeout
        self.number = 0  # of the next exchange
        self.left = False
        self.lock = threading.Lock()  # nothing is entered once this rank has left
        self.waits: tuple[float, list[str]] | None = None  # since when, and for the entries of which ranks

    def __call__(self, values: Sequence[int]) -> list[int]:
        """Return the greatest of each of `values` over all ranks. Raises RanksLeft."""
        number = self.number
        entries = [f"{number} of rank {rank}" for rank in range(self.ranks)]
        with self.lock:
            if self.left:
                raise RanksLeft
            self.store.set(entries[self.rank], json.dumps(list(values)))
        if self.rank == 0:
            self.wait_for(entries, entries)
            everyone = [json.loads(self.store.get(entry)) for entry in entries]
            self.store.set(f"{number}", json.dumps([max(each) for each in zip(*everyone, strict=True)]))
            # all ranks are here, so all have read what came before
            for done in [*entries, f"{number - 1}"]:
                self.store.delete_key(done)
        self.wait_for([f"{number}"], entries)
        greatest: list[int] = json.loads(self.store.get(f"{number}"))
        self.number += 1
        return greatest

    def wait_for(self, entries: list[str], of_ranks: list[str]) -> None:
        """Return once all entries are there, which those of all ranks lead to. Raises RanksLeft."""
        pause, longest = POLL_SECONDS
        self.waits = time.monotonic(), of_ranks
        while not self.store.check(entries):
            if self.left or self.store.check([f"{self.number} {LEFT}"]):
                raise RanksLeft
            time.sleep(pause)
            pause = min(pause * 1.5, longest)
        self.waits = None

    def leave(self) -> None:
        """Let no rank wait for this one in the exchange that it has not finished; others end all those before."""
        with self.lock:
            self.left = True
        with suppress(RuntimeError):  # the process that holds the store is gone
            # others may have finished the one that this rank has entered, and wait in the next
            for number in (self.number, self.number + 1):
                self.store.set(f"{number} {LEFT}", "")

    def watch(self, stop: Callable[[], bool]) -> Callable[[], bool]:
        """Return what the main thread polls while it waits for rows: whether to stop waiting.

        It raises torch.distributed.DistStoreError where other ranks have not entered their values in time.
        """
        begun = time.monotonic()

        def interrupted() -> bool:
            if (waits := self.waits) and time.monotonic() - max(begun, waits[0]) > self.timeout and not stop():
                absent = [rank for rank in range(len(waits[1])) if not self.store.check([waits[1][rank]])]
                missing = f"rank {', '.join(map(str, absent or [0]))}"
                raise dist.DistStoreError(f"waiting for rows: the data of {missing} did not answer in {self.timeout:g} s")
            return stop()

        return interrupted
