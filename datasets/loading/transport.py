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
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
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
from ..lanes import Epochs, LaneRow, LaneState, Mixer
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
    """A row, and the state of its lane after it; None where the lane waits for others to end the epoch."""

    origin: RowOrigin
    packed: PackedRow
    state: LaneState | None


# Number of a source, and of one of its lanes.
LaneKey = tuple[int, int]
# The lane, lengths of a row's parts, the number of its weights, the token that follows, labels, the state of the lane,
# and its rows that certainly follow.
Outline = tuple[LaneKey, list[int], int, int | None, list[float] | None, list[int], int]


class Message(NamedTuple):
    """Rows of a worker, of each lane those that follow one another.

    Attributes:
        ids: int32: the parts of all rows, one after another.
        weights: float32: of all rows, one after another.
        outlines: Of each row what is not in these.
        errors: What comes instead of the next row of a lane, once for each lane.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    outlines: list[Outline]
    errors: list[tuple[LaneKey, DataError]]

    def rows(self) -> Iterator[tuple[LaneKey, LaneRow]]:
        """Yield the rows, views of the message."""
        ids, weights = self.ids.numpy(), self.weights.numpy()
        at = weighed = 0
        for (source, lane), lengths, weighted, following, label_values, state, left in self.outlines:
            parts = []
            for length in lengths:
                parts.append(ids[at : at + length])
                at += length
            own = weights[weighed : weighed + weighted] if weighted else None
            yield (source, lane), LaneRow(PackedRow(parts, following, own, label_values), LaneState(*state), left)
            weighed += weighted


@dataclass(eq=False)
class RowStream(IterableDataset[Message]):
    """The rows of one rank, or of one of its workers when iterated there.

    A worker does not know which lanes wait for others to end an epoch. It makes rows in the order of rows without any
    waiting, and reads in shared memory how often each lane has waited so far: so many rows fewer need be made. A worker
    is never short of a row, and ahead of their use by no more than its messages.

    Attributes:
        sources: Where rows are drawn from.
        tokenizer: Encodes documents.
        packer: Packs them.
        config: What to read and how.
        settings: How rows become batches.
        shard: The rank's part of the data.
        state: Where the data of the rank begins.
        waited: int64 [sources, lanes], shared with workers: rows that each lane has waited for others.
    """

    sources: Sequence[Source]
    tokenizer: Tokenizer
    packer: Packer
    config: DataConfig
    settings: RowSettings
    shard: DataShard
    state: DataState
    lanes: int
    waited: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Make the memory that is shared, where there are workers."""
        self.waited = torch.zeros(len(self.sources), self.lanes, dtype=torch.int64)
        if self.config.num_workers:
            self.waited.share_memory_()

    def mixer(self) -> Mixer:
        """Return the mixer at the state's row."""
        weights = [((step - 1) * self.settings.rows_per_step, weights) for step, weights in self.config.phases()]
        return Mixer(weights, self.lanes, self.settings.seed, self.state.mixture)

    def lane(self, key: LaneKey) -> Iterator[LaneRow]:
        """Return the rows of a lane of this rank."""
        number, lane = key
        source = self.sources[number]
        state = self.state.lanes.get(source.lane_name(lane), LaneState())
        return source.rows(lane, self.tokenizer, self.packer, (self.settings.seed, number), state)

    def owner(self, lane: int, workers: int) -> int:
        """Return which of this rank's workers reads a lane."""
        return lane // self.shard.dp_degree % workers

    def __iter__(self) -> Iterator[Message]:
        """Yield a worker's messages: of so many rows that are its own, or of fewer where lanes have waited."""
        info = get_worker_info()
        assert info is not None
        shard, mixer, waited = self.shard, self.mixer(), self.waited.numpy()
        size = message_rows(self.packer.seq_len)
        lanes: dict[LaneKey, Iterator[LaneRow]] = {}
        come: dict[LaneKey, int] = {}  # rows of the run that a lane's rows are for, if it never waits
        made: dict[LaneKey, int] = {}
        while True:
            taken: list[tuple[LaneKey, LaneRow]] = []
            errors: list[tuple[LaneKey, DataError]] = []
            own = 0
            while own < size:
                key = mixer.next()
                lane = key[1]
                if lane % shard.dp_degree != shard.dp_rank or self.owner(lane, info.num_workers) != info.id:
                    continue
                own += 1
                if key not in come:
                    lanes[key], come[key], made[key] = self.lane(key), 0, 0
                come[key] += 1
                if made[key] < come[key] - waited[key]:
                    made[key] += 1
                    try:
                        taken.append((key, next(lanes[key])))
                    except DataError as error:
                        errors.append((key, error))
                        made[key] = sys.maxsize
            yield _message(taken, errors)


def _message(taken: Sequence[tuple[LaneKey, LaneRow]], errors: list[tuple[LaneKey, DataError]]) -> Message:
    """Return rows and errors as they travel: an error that is raised through torchdata would lose its fields."""
    ids: list[Ids] = [np.empty(0, dtype=np.int32)]
    weights: list[Weights] = [np.empty(0, dtype=np.float32)]
    outlines: list[Outline] = []
    for key, ((parts, following, own, label_values), state, left) in taken:
        ids += parts
        weights += [] if own is None else [own]
        weighted = 0 if own is None else len(own)
        outlines.append((key, [*map(len, parts)], weighted, following, label_values, list(state), left))
    joined = np.concatenate(ids, dtype=np.int32, casting="same_kind")
    return Message(torch.from_numpy(joined), torch.from_numpy(np.concatenate(weights)), outlines, errors)


def in_order(stream: RowStream, mixer: Mixer, epochs: Sequence[Epochs], draw: Callable[[LaneKey], LaneRow]) -> Iterator[Row]:
    """Yield the rows of a rank in order; a lane whose epoch is over before that of its source waits.

    Of any `degree` rows that follow one another the rank has the one whose lane is its own. It looks at all of them, as
    all ranks do, so that they ask each other in the same order.

    Args:
        stream: Of the rank.
        mixer: At the stream's row.
        epochs: Of each source.
        draw: Returns the next row of a lane.

    Raises:
        DataError: As it was raised where the row was made; or a source has no document.
        DataEnd: A source was read `max_epochs` times. What is left of that step are rows of other sources, and waiting.
        RanksLeft: As `Exchange` says.
    """
    rank, degree, settings = stream.shard.dp_rank, stream.shard.dp_degree, stream.settings
    # Rows that are trained on together, or not at all.
    step = max(settings.rows_per_step, settings.batch_size * settings.buckets * degree)
    waited = stream.waited.numpy()
    nothing = PackedRow([])
    over = ""
    for first in count(0, degree):
        mine: Row | None = None
        for row in range(first, first + degree):
            key = mixer.next()
            source, lane = key
            at = epochs[source]
            at.arrive(lane)
            if at.over and not over:
                source_config = stream.config.sources[source]
                over = f"source {source_config.name!r} was read data.sources.max_epochs = {source_config.max_epochs} times"
            if over and row % step == 0:
                raise DataEnd(over)
            if lane % degree != rank:
                continue
            origin = RowOrigin(stream.state.rows + row, source, lane)
            if at.reads(lane):
                packed, state, left = draw(key)
                at.took(lane, left, bool(packed.parts))
                mine = Row(origin, packed, state)
            else:
                waited[key] += 1
                mine = Row(origin, nothing, None)
        assert mine is not None
        yield mine


def drawn_here(stream: RowStream) -> Callable[[LaneKey], LaneRow]:
    """Return what makes the next row of a lane in this thread."""
    lanes: dict[LaneKey, Iterator[LaneRow]] = {}

    def draw(key: LaneKey) -> LaneRow:
        if key not in lanes:
            lanes[key] = stream.lane(key)
        return next(lanes[key])

    return draw


@contextmanager
def drawn_by_workers(stream: RowStream, workers: int, processes: list[Any]) -> Iterator[Callable[[LaneKey], LaneRow]]:
    """Start processes, and give what returns the next row of a lane that they made; end them with the block.

    Args:
        stream: Makes the rows.
        workers: Their number.
        processes: Workers are put into this list, for who must end one that hangs.

    Raises:
        DataError: As it was raised where the row was made.
        WorkerError: A worker died.
    """
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
    made: defaultdict[LaneKey, deque[LaneRow | DataError]] = defaultdict(deque)

    def draw(key: LaneKey) -> LaneRow:
        of_lane = made[key]
        while not of_lane:
            message = _receive(messages)
            for of, row in message.rows():
                made[of].append(row)
            for (source, lane), error in message.errors:  # torch makes lists of tuples
                made[source, lane].append(error)
        item = of_lane.popleft()
        if isinstance(item, DataError):
            raise item
        return item

    try:
        yield draw
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
