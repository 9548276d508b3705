"""Batches of packed rows: the entry of this room.

    files --Reader--> chunks --Tokenizer--> ids --BlockBuilder, Packer--> rows --Mixer, workers--> batches

Row i of the run is drawn from lane i mod `lanes` of source `Mixer.source(i)`. Data-parallel rank r of R takes the rows
i = r mod R, worker w of W every W-th of these; as R x W divides `lanes`, each lane is read by one worker of one rank,
and the rows do not depend on R or W.
"""

import atexit
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from .errors import DataConfigError
from .files import digest
from .packing import LABELS, POSITIONS, SEQUENCE_IDS, TOKENS, Packer
from .sources import Source, SourceConfig, find_source
from .state import check_state, documents_dropped, initial_state, merge_states
from .tokenizers import Tokenizer
from .transport import Row, RowStream, in_order

__all__ = ["Batch", "DataConfig", "Loader", "SourceConfig", "documents_dropped", "merge_states"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What determines the rows of a run, and `num_workers`, which does not.

    Attributes:
        sources: At least one.
        lanes: Streams per source; a multiple of data-parallel degree x workers.
        packing: `best_fit` or `concat`.
        seq_len: Tokens per row.
        seed: Of all random choices.
        num_workers: Worker processes per rank; 0 reads in a thread of this process.
    """

    sources: tuple[SourceConfig, ...]
    lanes: int
    packing: str
    seq_len: int
    seed: int
    num_workers: int


@dataclass
class Batch:
    """Rows of one rank.

    Attributes:
        tokens: int64 [batch, seq_len].
        labels: int64 [batch, seq_len], -100 where no loss is taken.
        positions: int32 [batch, seq_len].
        sequence_ids: int32 [batch, seq_len], -1 on padding.
        rows: Global number of each row.
        sources: Source number of each row.
        state: The rank's loader state after this batch, plain JSON.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    positions: torch.Tensor
    sequence_ids: torch.Tensor
    rows: list[int]
    sources: list[int]
    state: dict[str, Any]


class Loader:
    """An endless iterator of batches with an exact, elastic state.

    Args:
        config: What to read and how.
        tokenizer: Encodes documents.
        batch_size: Rows per batch of this rank.
        dp_rank: Data-parallel rank.
        dp_degree: Data-parallel ranks.
        state: A state of a loader with the same config, merged over its ranks if there were several.

    Raises:
        DataConfigError: The config cannot be met, or the state belongs to another one.
        DataError: A source's files cannot be used.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        dp_rank: int = 0,
        dp_degree: int = 1,
        state: dict[str, Any] | None = None,
    ) -> None:
        _check_degrees(config.lanes, dp_degree, max(1, config.num_workers))
        names = [source.name for source in config.sources]
        if not names or len(set(names)) < len(names):
            raise DataConfigError(f"data.sources: name at least one source, each by its own name; found {names}")
        self.packer = Packer(config.seq_len, tokenizer.eos_id, tokenizer.pad_id, config.packing)
        self._config = config
        self._batch_size = batch_size
        self._rank, self._degree = dp_rank, dp_degree
        self.sources = [find_source(source, config.lanes) for source in config.sources]

        identity = _identity(config, self.sources, tokenizer)
        if state is None:
            state = initial_state(identity, len(names))
        check_state(state, identity)
        own = {
            source.lane_name(lane)
            for source in self.sources
            for lane in range((state["rows"] + dp_rank) % dp_degree, config.lanes, dp_degree)
        }
        self._state = {**state, "lanes": {name: at for name, at in state["lanes"].items() if name in own}}
        self._stream = RowStream(self.sources, tokenizer, self.packer, config.seed, dp_rank, dp_degree, self._state)
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def next(self, interrupted: Callable[[], bool] = lambda: False) -> Batch | None:
        """Return the next batch, or None when `interrupted()` turns true while waiting for it.

        Raises:
            DataError: A file or record cannot be used.
            WorkerError: A worker died.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._prefetch, name="cistron-data", daemon=True)
            # Runs before multiprocessing's own exit handler, which would wait for workers that nobody has told to stop.
            atexit.register(self.close)
            self._thread.start()
        while True:
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                if interrupted():
                    return None
                continue
            if isinstance(item, BaseException):
                self._queue.put(item)  # asked again, the loader says the same again
                raise item
            self._state = item.state
            return item

    def state(self) -> dict[str, Any]:
        """Return the state after the last batch that `next` returned: plain JSON, at most some 100 bytes per lane."""
        return self._state

    def close(self) -> None:
        """Stop reading and end the workers; a thread that is still reading a block after 10 s is left to the exit."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10.0)
            atexit.unregister(self.close)

    def __enter__(self) -> "Loader":
        """Return the loader itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _prefetch(self) -> None:
        """Body of the thread: keep the queue filled until stopped."""
        try:
            for batch in self._batches(in_order(self._stream, self._config.num_workers)):
                if not self._put(batch):
                    return
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _batches(self, rows: Iterator[Row]) -> Iterator[Batch]:
        """Gather rows, given in this rank's order, into batches with the state after each."""
        done, lanes = self._state["rows"], dict(self._state["lanes"])
        mixer = self._stream.mixer()
        while True:
            taken = [next(rows) for _ in range(self._batch_size)]
            numbers = [done + self._rank + k * self._degree for k in range(self._batch_size)]
            sources = [mixer.source(number) for number in numbers]
            for row, number, source in zip(taken, numbers, sources, strict=True):
                lanes[self.sources[source].lane_name(number % self._config.lanes)] = row.state
            done += self._batch_size * self._degree
            planes = torch.stack([row.planes for row in taken])
            yield Batch(
                tokens=planes[:, TOKENS].long(),
                labels=planes[:, LABELS].long(),
                positions=planes[:, POSITIONS].contiguous(),
                sequence_ids=planes[:, SEQUENCE_IDS].contiguous(),
                rows=numbers,
                sources=sources,
                state={**self._state, "rows": done, "mixer": mixer.counts(done), "lanes": dict(lanes)},
            )


def _check_degrees(lanes: int, degree: int, workers: int) -> None:
    """A lane is read by one worker of one rank."""
    owners = degree * workers
    if lanes < 1 or lanes % owners:
        raise DataConfigError(
            f"data.lanes: {lanes} is not a multiple of data-parallel degree x workers = {degree} x {workers} = {owners}; "
            f"raise it to {-(-max(lanes, 1) // owners) * owners}"
        )


def _identity(config: DataConfig, sources: Sequence[Source], tokenizer: Tokenizer) -> dict[str, Any]:
    """All that the order and content of rows depend on."""
    return {
        "lanes": config.lanes,
        "packing": config.packing,
        "seq_len": config.seq_len,
        "seed": config.seed,
        "tokenizer": tokenizer.fingerprint,
        "sources": [
            {
                "name": source.config.name,
                "format": source.config.format,
                "field": source.config.field,
                "weight": source.config.weight,
                "files": digest(source.files),
            }
            for source in sources
        ],
    }
