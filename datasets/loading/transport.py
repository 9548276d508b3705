"""Rows from where they are made to where they are used: worker processes, or this one.

torchdata's StatefulDataLoader moves them, many rows to a message. Its own state is never used: the state of a lane
travels with each row.
"""

import atexit
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from ..config import DataConfig
from ..errors import DataEnd, DataError, WorkerError
from ..lanes import LaneState, Mixer
from ..rows import PackedRow, Packer, Weights
from ..tokenizers import Ids, Tokenizer
from .batch import RowSettings
from .sources import Source
from .state import DataShard, DataState

# torchdata 0.11 calls a function that torch 2.13 deprecates; its users can do nothing about it.
warnings.filterwarnings("ignore", message=".*set_vital", category=UserWarning, module=r"torchdata\.")
# Tokens per message: 1 MiB of int32, where the cost of a message is small against that of its rows.
MESSAGE_TOKENS = 2**18
MAX_MESSAGE_ROWS = 64
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # which the trainer acts on
PREFETCHED_MESSAGES = 2  # of each worker
MESSAGES_PER_WORKER = PREFETCHED_MESSAGES + 2  # one is made, and the rows of one are used


def message_rows(seq_len: int) -> int:
    """Return how many rows of `seq_len` tokens a message has."""
    return min(max(MESSAGE_TOKENS // seq_len, 1), MAX_MESSAGE_ROWS)


class RowOrigin(NamedTuple):
    """Where a row comes from.

    Attributes:
        row: Its global number.
        source: Number of its source.
        lane: Its lane.
    """

    row: int
    source: int
    lane: int


class Row(NamedTuple):
    """A row with the state of its lane after it."""

    origin: RowOrigin
    packed: PackedRow
    state: LaneState


# Lengths of a row's parts, the number of its weights, the token that follows, labels, and the state of its lane.
Outline = tuple[list[int], int, int | None, list[float] | None, list[int]]


class Message(NamedTuple):
    """Consecutive rows of a worker, and what ended it if it ended.

    Attributes:
        worker: Its number.
        ids: int32: the parts of all rows, one after another.
        weights: float32: of all rows, one after another.
        outlines: Of each row what is not in these.
        error: Comes after the rows.
    """

    worker: int
    ids: torch.Tensor
    weights: torch.Tensor
    outlines: list[Outline]
    error: DataError | DataEnd | None

    def rows(self) -> Iterator[tuple[PackedRow, LaneState]]:
        """Yield the rows, views of the message."""
        ids, weights = self.ids.numpy(), self.weights.numpy()
        at = weighed = 0
        for lengths, weighted, following, label_values, state in self.outlines:
            parts = []
            for length in lengths:
                parts.append(ids[at : at + length])
                at += length
            own = weights[weighed : weighed + weighted] if weighted else None
            yield PackedRow(parts, following, own, label_values), LaneState(*state)
            weighed += weighted


@dataclass(eq=False)
class RowStream(IterableDataset[Message]):
    """The rows of one rank, or of one of its workers when iterated there.

    Attributes:
        sources: Where rows are drawn from.
        tokenizer: Encodes documents.
        packer: Packs them.
        config: What to read and how.
        settings: How rows become batches.
        shard: The rank's part of the data.
        state: Where the data of the rank begins.
    """

    sources: Sequence[Source]
    tokenizer: Tokenizer
    packer: Packer
    config: DataConfig
    settings: RowSettings
    shard: DataShard
    state: DataState

    def mixer(self) -> Mixer:
        """Return the mixer at the state's row."""
        weights = [((step - 1) * self.settings.rows_per_step, weights) for step, weights in self.config.phases()]
        at = self.state
        return Mixer(weights, self.config.lanes, self.settings.seed, at.begin, at.rows, at.counts)

    def origins(self, mixer: Mixer) -> Iterator[RowOrigin]:
        """Yield this rank's rows: of any `degree` rows that follow one another, the one whose lane is its own."""
        degree = self.shard.dp_degree
        for first in count(self.state.rows, degree):
            row = first + (self.shard.dp_rank - mixer.rotation(first) - first) % degree
            yield RowOrigin(row, mixer.source(row), mixer.lane(row))

    def rows(self, origins: Iterator[RowOrigin]) -> Iterator[Row]:
        """Yield the rows of some of this rank's origins."""
        lanes: dict[tuple[int, int], Iterator[tuple[PackedRow, LaneState]]] = {}
        for origin in origins:
            key = origin.source, origin.lane
            if key not in lanes:
                source, epochs = self.sources[origin.source], self.config.sources[origin.source].max_epochs
                state = self.state.lanes.get(source.lane_name(origin.lane), LaneState())
                of_source = (self.settings.seed, origin.source)
                lanes[key] = source.rows(origin.lane, self.tokenizer, self.packer, of_source, state, epochs)
            yield Row(origin, *next(lanes[key]))

    def owner(self, origin: RowOrigin, workers: int) -> int:
        """Return which of this rank's workers reads the lane of `origin`."""
        return origin.lane // self.shard.dp_degree % workers

    def __iter__(self) -> Iterator[Message]:
        """Yield a worker's messages; an error inside of one, since raised through torchdata it would lose its parts."""
        info = get_worker_info()
        assert info is not None
        origins = (origin for origin in self.origins(self.mixer()) if self.owner(origin, info.num_workers) == info.id)
        size = message_rows(self.packer.seq_len)
        rows = self.rows(origins)
        error: DataError | DataEnd | None = None
        while error is None:
            taken: list[Row] = []
            try:
                for row in islice(rows, size):
                    taken.append(row)  # what came before an error stays
            except (DataError, DataEnd) as raised:
                error = raised
            ids: list[Ids] = [np.empty(0, dtype=np.int32)]
            weights: list[Weights] = [np.empty(0, dtype=np.float32)]
            outlines: list[Outline] = []
            for _, (parts, following, own, label_values), state in taken:
                ids += parts
                weights += [] if own is None else [own]
                outlines.append(([*map(len, parts)], 0 if own is None else len(own), following, label_values, list(state)))
            joined = np.concatenate(ids, dtype=np.int32, casting="same_kind")
            yield Message(info.id, torch.from_numpy(joined), torch.from_numpy(np.concatenate(weights)), outlines, error)


def in_order(stream: RowStream, mixer: Mixer, workers: int, processes: list[Any]) -> Iterator[Row]:
    """Yield the rows of a rank in order, made by `workers` processes, or in this thread when 0.

    Args:
        stream: Makes them.
        mixer: At the stream's row.
        workers: Their number.
        processes: Workers are put into this list, for who must end one that hangs.

    Raises:
        DataError: As it was raised where the row was made.
        DataEnd: Likewise.
        WorkerError: A worker died.
    """
    origins = stream.origins(mixer)
    if not workers:
        yield from stream.rows(origins)
        return
    # No automatic collation, and no snapshots of a state that is never used. Workers are spawned: a forked child
    # would hold the parent's CUDA context, gloo sockets and the locks of its threads, and a fork server would die of a
    # SIGTERM to the process group, its children with it.
    loader = StatefulDataLoader(
        stream,
        batch_size=None,
        num_workers=workers,
        snapshot_every_n_steps=0,
        multiprocessing_context="spawn",
        prefetch_factor=PREFETCHED_MESSAGES,
        worker_init_fn=_start_worker,
    )
    with _no_main_module(), _no_signals():
        messages = iter(loader)
    processes += messages._workers
    waiting: list[deque[tuple[PackedRow, LaneState] | Exception]] = [deque() for _ in range(workers)]
    try:
        for origin in origins:
            made = waiting[stream.owner(origin, workers)]
            while not made:
                message = _receive(messages)
                waiting[message.worker].extend(message.rows())
                if message.error is not None:
                    waiting[message.worker].append(message.error)
            item = made.popleft()
            if isinstance(item, Exception):
                raise item
            yield Row(origin, *item)
    finally:
        # torch ends workers when the iterator is collected, which the traceback of an exception would put off; they
        # ignore signals, so an exit of this process would wait for them.
        messages._shutdown_workers()


@contextmanager
def _no_signals() -> Iterator[None]:
    """Start processes that have what asks for a stop blocked from their beginning; here it waits meanwhile.

    A signal to the process group would kill a worker that still imports, and Python's resource tracker, which blocks
    SIGINT and SIGTERM by itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        resource_tracker.ensure_running()  # after which SIGINT and SIGTERM are not blocked here
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Start workers that do not import what the parent runs as its main module.

    `multiprocessing` has every spawned process import it, for classes that were defined there. A worker needs none, and
    the trainer takes 1.3 s and 200 MB; a script without `if __name__ == "__main__"` would run again.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _receive(messages: Iterator[Message]) -> Message:
    """Return the next message of any worker. Raises WorkerError where one has died."""
    try:
        return next(messages)
    except (ConnectionError, EOFError, FileNotFoundError) as error:
        if "Caught " in str(error):  # raised by code inside of a worker
            raise
        # A message announces memory that the worker hands over on request, when it may already be dead.
        raise WorkerError(f"a data worker exited unexpectedly while handing over rows ({error!r})") from error
    except RuntimeError as error:
        # What torch raises for a dead worker; an error inside of one reads "Caught ... in DataLoader worker process".
        if "exited unexpectedly" in str(error):
            raise WorkerError(str(error)) from error
        raise


def _start_worker(worker: int) -> None:
    """Tie a worker to its parent, whose part it is to act on signals to the process group, and not to outlive it."""
    for stop in STOPS:
        signal.signal(stop, signal.SIG_IGN)
    # A queue's thread that is inside of torch when the interpreter winds down ends in std::terminate (1 exit in 10).
    atexit.register(os._exit, 0)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def die_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=die_with_parent, name="cistron-watch", daemon=True).start()
