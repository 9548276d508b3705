"""Batches of packed rows: the entry of this room.

    files --Reader--> chunks --Tokenizer--> ids --BlockBuilder, Packer--> rows --Mixer, workers--> batches

Row i of the run is drawn from lane i mod `lanes` of source `Mixer.source(i)`. Data-parallel rank r of R takes the rows
i = r mod R, worker w of W every W-th of these; as R x W divides `lanes`, each lane is read by one worker of one rank,
and the rows do not depend on R or W.
"""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from .errors import DataConfigError
from .files import digest, expand
from .mixer import Mixer
from .packing import LABELS, POSITIONS, SEQUENCE_IDS, TOKENS, Packer
from .pieces import Piece, deal, split
from .readers import build_reader
from .tokenizers import Tokenizer
from .transport import Row, RowStream, in_order

STATE_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Files of one kind.

    Attributes:
        name: Unique among sources.
        format: `text` (a file is a document), `jsonl` or `fasta`.
        paths: Paths, globs or fsspec URLs.
        field: For jsonl: the field that holds the document.
        weight: Share of rows, and so of tokens, relative to the other sources' weights.
    """

    name: str
    format: str
    paths: tuple[str, ...]
    field: str = "text"
    weight: float = 1.0


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


@dataclass(frozen=True, kw_only=True)
class SourceSummary:
    """What a source was found to hold, before reading it.

    Attributes:
        name: Of the source.
        files: Number of files.
        empty_files: Files of them without a byte, which are left out.
        bytes: Size of all files as stored.
        pieces: Parts that the files were split into.
        pieces_per_lane: (fewest, most).
        lanes: Number of lanes.
    """

    name: str
    files: int
    empty_files: int
    bytes: int
    pieces: int
    pieces_per_lane: tuple[int, int]
    lanes: int


def _never() -> bool:
    return False


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
        _check(config, dp_degree)
        self.packer = Packer(config.seq_len, tokenizer.eos_id, tokenizer.pad_id, config.packing)
        self._config = config
        self._batch_size = batch_size
        self._rank, self._degree = dp_rank, dp_degree
        self._plan: list[list[list[Piece]]] = []
        self._summaries: list[SourceSummary] = []
        digests = [self._find(source) for source in config.sources]

        identity = {
            "lanes": config.lanes,
            "packing": config.packing,
            "seq_len": config.seq_len,
            "seed": config.seed,
            "tokenizer": tokenizer.fingerprint,
            "sources": [
                {"name": s.name, "format": s.format, "field": s.field, "weight": s.weight, "files": files}
                for s, files in zip(config.sources, digests, strict=True)
            ],
        }
        self._mixer = Mixer([source.weight for source in config.sources], config.lanes, config.seed)
        if state is None:
            state = {
                "version": STATE_VERSION,
                "rows": 0,
                "mixer": self._mixer.counts(0),
                "lanes": {},
                "config": identity,
            }
        else:
            _check_state(state, identity)
        self._mixer.seek(state["rows"], state["mixer"])
        self._names = [source.name for source in config.sources]
        own = {
            self._lane_name(source, lane)
            for source in range(len(self._names))
            for lane in range((state["rows"] + dp_rank) % dp_degree, config.lanes, dp_degree)
        }
        self._state = {**state, "lanes": {name: list(at) for name, at in state["lanes"].items() if name in own}}
        self._stream = RowStream(
            plan=self._plan,
            readers=[build_reader(source.format, source.field) for source in config.sources],
            weights=[source.weight for source in config.sources],
            tokenizer=tokenizer,
            packer=self.packer,
            lanes=config.lanes,
            seed=config.seed,
            rank=dp_rank,
            degree=dp_degree,
            start=state["rows"],
            mixer_counts=state["mixer"],
            states={
                (source, lane): self._state["lanes"][self._lane_name(source, lane)]
                for source in range(len(self._names))
                for lane in range(config.lanes)
                if self._lane_name(source, lane) in self._state["lanes"]
            },
        )
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(maxsize=2)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def _find(self, source: SourceConfig) -> str:
        files = expand(source.paths)
        reader = build_reader(source.format, source.field)
        pieces = split(files, reader.boundary, self._config.lanes)
        dealt = deal(pieces, self._config.lanes, source.name)
        counts = [len(lane) for lane in dealt]
        self._plan.append(dealt)
        self._summaries.append(
            SourceSummary(
                name=source.name,
                files=len(files),
                empty_files=sum(file.size == 0 for file in files),
                bytes=sum(file.size for file in files),
                pieces=len(pieces),
                pieces_per_lane=(min(counts), max(counts)),
                lanes=self._config.lanes,
            )
        )
        return digest(files)

    def _lane_name(self, source: int, lane: int) -> str:
        return f"{self._names[source]}/{lane}"

    def next(self, interrupted: Callable[[], bool] = _never) -> Batch | None:
        """Return the next batch, or None when `interrupted()` turns true while waiting for it.

        Raises:
            DataError: A file or record cannot be used.
            RuntimeError: A worker died.
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

    def describe(self) -> list[SourceSummary]:
        """Return what each source was found to hold."""
        return self._summaries

    def close(self) -> None:
        """Stop reading and end the workers."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.close)

    def __enter__(self) -> Loader:
        """Return the loader itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        done = self._state["rows"]
        lanes = dict(self._state["lanes"])
        while True:
            taken = [next(rows) for _ in range(self._batch_size)]
            numbers = [done + self._rank + k * self._degree for k in range(self._batch_size)]
            sources = [self._mixer.source(number) for number in numbers]
            for row, number, source in zip(taken, numbers, sources, strict=True):
                assert row.source == source
                lanes[self._lane_name(source, number % self._config.lanes)] = row.state
            done += self._batch_size * self._degree
            planes = torch.stack([row.planes for row in taken])
            yield Batch(
                tokens=planes[:, TOKENS].long(),
                labels=planes[:, LABELS].long(),
                positions=planes[:, POSITIONS].contiguous(),
                sequence_ids=planes[:, SEQUENCE_IDS].contiguous(),
                rows=numbers,
                sources=sources,
                state={**self._state, "rows": done, "mixer": self._mixer.counts(done), "lanes": dict(lanes)},
            )


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join the states of all ranks into one that any number of ranks and workers resumes from.

    Args:
        states: One per data-parallel rank, each after the same number of batches.
    """
    first = states[0]
    for state in states[1:]:
        assert all(state[key] == first[key] for key in ("version", "rows", "mixer", "config")), (
            f"ranks stand at different rows: {[state['rows'] for state in states]}"
        )
    return {**first, "lanes": {name: at for state in states for name, at in state["lanes"].items()}}


def _check(config: DataConfig, degree: int) -> None:
    workers = max(1, config.num_workers)
    if not config.sources:
        raise DataConfigError("data.sources is empty; name at least one source")
    names = [source.name for source in config.sources]
    if len(set(names)) < len(names):
        raise DataConfigError(f"data.sources.name: the names {names} must differ")
    for source in config.sources:
        if not source.weight > 0:
            raise DataConfigError(f"data.sources.weight: {source.weight} of source {source.name!r} must be above 0")
    if config.lanes < 1 or config.lanes % (degree * workers):
        raise DataConfigError(
            f"data.lanes: {config.lanes} is not a multiple of data-parallel degree x workers = {degree} x {workers} = "
            f"{degree * workers}; raise it to {-(-max(config.lanes, 1) // (degree * workers)) * degree * workers}"
        )


def _check_state(state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Refuse a state under which other rows would follow than in the run that wrote it."""
    if state["version"] != STATE_VERSION:
        raise DataConfigError(
            f"data state version: the checkpoint holds {state['version']}, this program {STATE_VERSION}"
        )
    saved = _flatten("data", state["config"])
    present = _flatten("data", identity)
    differences = [
        f"{key}: checkpoint {saved.get(key, 'none')!r}, now {present.get(key, 'none')!r}"
        for key in sorted(saved | present)
        if saved.get(key) != present.get(key)
    ]
    if differences:
        raise DataConfigError("the checkpoint's data order belongs to other settings; " + "; ".join(differences))


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        value = {f"{item['name']}": item for item in value}
    if isinstance(value, dict):
        return {name: leaf for key, item in value.items() for name, leaf in _flatten(f"{prefix}.{key}", item).items()}
    return {prefix: value}
