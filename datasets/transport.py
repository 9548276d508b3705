"""Rows from where they are made to where they are used: worker processes, or this one.

torchdata's StatefulDataLoader moves them, many rows to a message. Its own state is never asked for: the state of a lane
travels with each row.
"""

import atexit
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from .errors import DataError, WorkerError
from .lane import Lane, LaneState
from .mixer import Mixer
from .packing import Packer, Planes
from .sources import Source
from .tokenizers import Tokenizer

# torchdata 0.11 calls a function that torch 2.13 deprecates; its users can do nothing about it.
warnings.filterwarnings("ignore", message=".*set_vital", category=UserWarning, module=r"torchdata\.")

# Tokens per message: 4 MiB of int32 planes, where the cost of a message is small against that of its rows.
MESSAGE_TOKENS = 2**18
MAX_MESSAGE_ROWS = 64


class Row(NamedTuple):
    """A row with the state of its lane after it.

    Attributes:
        planes: int32 [4, seq_len].
        state: Of its lane, plain JSON.
    """

    planes: torch.Tensor
    state: list[int]


class Message(NamedTuple):
    """Consecutive rows of a worker.

    Attributes:
        worker: Its number.
        planes: int32 [rows, 4, seq_len].
        states: Lane state after each row.
    """

    worker: int
    planes: torch.Tensor
    states: list[list[int]]


@dataclass(eq=False)
class RowStream(IterableDataset[Message | DataError]):
    """The rows of one rank, or of one of its workers when iterated there.

    Attributes:
        sources: Where rows are drawn from.
        tokenizer: Encodes documents.
        packer: Packs them.
        seed: Of all random choices.
        rank: Data-parallel rank.
        degree: Data-parallel ranks.
        state: The rank's loader state from which to go on.
    """

    sources: Sequence[Source]
    tokenizer: Tokenizer
    packer: Packer
    seed: int
    rank: int
    degree: int
    state: dict[str, Any]

    def mixer(self) -> Mixer:
        """Return the mixer at the state's row."""
        weights = [source.config.weight for source in self.sources]
        return Mixer(weights, self._lanes, self.seed, self.state["rows"], self.state["mixer"])

    @property
    def _lanes(self) -> int:
        return len(self.sources[0].lanes)

    def __iter__(self) -> Iterator[Message | DataError]:
        """Yield messages for ever; a DataError as an item, since raised through torchdata it would lose its parts."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        size = min(max(MESSAGE_TOKENS // self.packer.seq_len, 1), MAX_MESSAGE_ROWS)
        rows = self._rows(worker, workers)
        while True:
            try:
                batch = [next(rows) for _ in range(size)]
            except DataError as error:
                yield error
                return
            planes = torch.from_numpy(np.stack([planes for planes, _ in batch]))
            yield Message(worker, planes, [list(state) for _, state in batch])

    def _rows(self, worker: int, workers: int) -> Iterator[tuple[Planes, LaneState]]:
        """Yield this worker's rows: every `workers`-th of the rank's, each with its lane's state."""
        mixer = self.mixer()
        lanes: dict[tuple[int, int], Iterator[tuple[Planes, LaneState]]] = {}
        for row in count(self.state["rows"] + self.rank + worker * self.degree, self.degree * workers):
            key = number, lane = mixer.source(row), row % self._lanes
            if key not in lanes:
                source = self.sources[number]
                state = LaneState(*self.state["lanes"].get(source.lane_name(lane), ()))
                lanes[key] = Lane(
                    source.lanes[lane], source.reader, self.tokenizer, self.packer, (self.seed, *key), state
                ).rows()
            yield next(lanes[key])


def in_order(stream: RowStream, workers: int) -> Iterator[Row]:
    """Yield the rows of a rank in order, made by `workers` processes, or in this thread when 0.

    Raises:
        DataError: As it was raised where the row was made.
        WorkerError: A worker died.
    """
    options: dict[str, Any] = {}
    if workers:
        # Spawned: a forked child would hold the parent's CUDA context, gloo sockets and the locks of its threads, and a
        # fork server would die of a SIGTERM to the process group, its children with it.
        options = {"multiprocessing_context": "spawn", "prefetch_factor": 2, "worker_init_fn": _start_worker}
    # No automatic collation, and no snapshots of a state that is never asked for.
    loader = StatefulDataLoader(stream, batch_size=None, num_workers=workers, snapshot_every_n_steps=0, **options)
    messages = iter(loader)
    try:
        while True:
            # Row k of the rank is made by worker k mod W; messages come from workers in turn and are equally long.
            turn = [_receive(messages) for _ in range(max(1, workers))]
            assert [message.worker for message in turn] == list(range(len(turn)))
            for index in range(len(turn[0].states)):
                for message in turn:
                    yield Row(message.planes[index], message.states[index])
    finally:
        if workers:
            # torch ends workers when the iterator is collected, which the traceback of an exception would put off; they
            # ignore signals, so an exit of this process would wait for them.
            messages._shutdown_workers()


def _receive(messages: Iterator[Message | DataError]) -> Message:
    """Return the next message, or raise the error that came in its place."""
    try:
        item = next(messages)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        # A message announces memory that the worker hands over on request, when it may already be dead.
        raise WorkerError(f"a data worker exited unexpectedly while handing over rows ({error!r})") from error
    except RuntimeError as error:
        # What torch raises for a dead worker; an error inside of one reads "Caught ... in DataLoader worker process".
        if "exited unexpectedly" in str(error):
            raise WorkerError(str(error)) from error
        raise
    if isinstance(item, DataError):
        raise item
    return item


def _start_worker(worker: int) -> None:
    """Tie a worker to its parent, whose part it is to act on signals to the process group, and not to outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A queue's thread that is inside of torch when the interpreter winds down ends in std::terminate (1 exit in 10).
    atexit.register(os._exit, 0)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=die_with_parent, name="cistron-watch", daemon=True).start()
