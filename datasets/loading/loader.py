"""Batches of packed rows: the entry of this room.

    files --Reader--> records --Tokenizer--> ids --BlockBuilder--> blocks --Packer--> rows --Mixer, workers--> batches
    token shards ------------------------ShardDocuments----------> blocks

Row i of the run is drawn from source `Mixer.source(i)`, and there from lane `Mixer.lane(i)`. Lane l belongs to
data-parallel rank l mod R, and there to worker l // R mod W; as R x W divides `lanes`, each lane is read by one worker
of one rank, and the rows do not depend on R or W.
"""

import atexit
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from types import TracebackType
from typing import Any

from typing_extensions import override

from ..config import DataConfig
from ..documents import content_settings, document_complaints
from ..errors import DataConfigError, refuse
from ..files import fingerprint
from ..lanes import Epochs, LaneState, Mixer
from ..rows import Packer
from ..shards import verify_shard
from ..tokenizers import Tokenizer
from .batch import Batch, RowSettings
from .read_ahead import ReadAhead
from .sources import Source, choose_lanes, open_source
from .state import ALL_DATA, DataShard, DataState, RanksLeft, check_state
from .transport import Row, RowStream, drawn_by_workers, drawn_here, in_order

CLOSE_SECONDS = 10.0
# Batches made ahead: at most 8, fewer where they are large.
MAX_AHEAD = 8
AHEAD_BYTES = 2**26
BYTES_PER_TOKEN = 24


class Loader(AbstractContextManager["Loader"]):
    """An endless iterator of batches with an exact, elastic state; a `with` block closes it at its end.

    Args:
        config: What to read and how.
        tokenizer: Encodes documents.
        rows: How rows become batches.
        shard: Which part of the data this rank has, and where it continues.

    Attributes:
        lanes: How many each source is read in.

    Raises:
        DataConfigError: The config cannot be met; as DataOrderError: the state belongs to another one.
        DataError: A source's files cannot be used.
    """

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, rows: RowSettings, shard: DataShard = ALL_DATA) -> None:
        if not config.sources:
            raise DataConfigError("data.sources: name at least one source")
        refuse([*config.complaints(), *document_complaints(config, tokenizer, config.policy, rows.seq_len)])
        units = config.units and tokenizer.streams
        self.lanes = _lanes_of(config, units, shard)
        self.packer = Packer(
            rows.seq_len,
            tokenizer.eos_id,
            tokenizer.pad_id,
            config.policy,
            rows.objective,
            pad_multiple=config.pad_multiple,
            overlap=config.window_overlap,
        )
        self._config, self._rows = config, rows
        before = shard.inventory or {}
        self.sources = [
            open_source(source, self.lanes, rows, config, before.get(source.name), number=number, units=units)
            for number, source in enumerate(config.sources)
        ]
        self.packer.weighted = any(source.weighted for source in self.sources)

        names = [source.name for source in config.sources]
        identity = {
            "lanes": self.lanes,
            "packing": config.policy,
            "objective": rows.objective.identity(),
            **config.identity(),
            "seq_len": rows.seq_len,
            "seed": rows.seed,
            "tokenizer": tokenizer.fingerprint,
            # Keys are strings, as JSON has no others.
            "stages": {
                str((step - 1) * rows.rows_per_step): dict(zip(names, weights, strict=True))
                for step, weights in config.phases()
            },
            "sources": [
                {
                    "name": source.config.name,
                    "format": source.config.format,
                    "field": source.config.field,
                    "label": source.config.label or "",
                    "files": fingerprint(source.files),
                    **content_settings(source.config.content, tokenizer),
                }
                for source in self.sources
            ],
        }
        state = shard.state
        if state is None:
            row, counts = shard.row, [0] * len(names)
            state = DataState(rows=row, begin=row, counts=counts, drawn=[], rotation=None, lanes={}, config=identity)
        check_state(state, identity, {source.config.name: source.files for source in self.sources}, shard.inventory)
        if len(names) > 1 and state.rows % shard.dp_degree:  # in a rotated round, the ranks would not take a row each
            raise DataConfigError(
                f"the data stands at row {state.rows}, which is no multiple of data-parallel degree {shard.dp_degree}: go on "
                "with the training.global_batch_size of the checkpoint, or with a degree that divides both"
            )
        if config.verify:
            verify_sources(self.sources, shard)
        # Reported by `cistron check`: what turns text into ids.
        self.encoding = tokenizer.kind
        if any(source.pieces for source in self.sources):
            self.encoding = tokenizer.choose_backend(self._sample) or tokenizer.kind
        self._exchange = shard.exchange
        own = range(shard.dp_rank, self.lanes, shard.dp_degree)
        most = [source.max_epochs for source in config.sources]
        self._epochs = [self._epochs_of(*source, state, own) for source in zip(self.sources, most, strict=True)]
        names_of_own = {source.lane_name(lane) for source in self.sources for lane in own}
        lanes = {name: at for name, at in state.lanes.items() if name in names_of_own}
        self._state = state.model_copy(update={"config": identity, "lanes": lanes})
        # What workers need not know.
        shard = replace(shard, state=None, inventory=None, exchange=None)
        self._stream = RowStream(self.sources, tokenizer, self.packer, config, rows, shard, self._state, self.lanes)
        self._depth = batches_ahead(rows.batch_size, rows.seq_len)
        self._ahead: ReadAhead[Batch] | None = None
        self._processes: list[Any] = []  # workers

    def _epochs_of(self, source: Source, most: int | None, state: DataState, own: range) -> Epochs:
        """Return the epochs of a source where the run's state has them."""
        lanes = [state.lanes.get(source.lane_name(lane), LaneState()) for lane in range(self.lanes)]
        return Epochs(
            source.config.name,
            [lane.epoch for lane in lanes],
            own,
            seen=any(lane != LaneState() for lane in lanes),
            greatest=self._exchange or list,
            most=most,
        )

    def _sample(self) -> list[bytes]:
        return [document for source in self.sources if source.pieces for document in source.sample()]

    def next(self, interrupted: Callable[[], bool] = lambda: False) -> Batch | None:
        """Return the next batch, or None when, while waiting for it, `interrupted()` turns true or another rank leaves.

        Raises:
            DataError: A file or record cannot be used.
            DataEnd: A source was read `max_epochs` times.
            WorkerError: A worker died.
        """
        if self._ahead is None:
            # Before multiprocessing's own exit handler, which would wait for workers that nothing tells to stop.
            atexit.register(self.close)
            self._ahead = ReadAhead(self._batches, self._depth)
        try:
            batch = self._ahead.next(interrupted)
        except RanksLeft:
            return None
        if batch is not None and batch.state is not None:
            self._state = batch.state
        if batch is None and self._exchange is not None:
            self._exchange.leave()
        return batch

    def state(self) -> DataState:
        """Return the state after the last batch that `next` returned: as JSON, some 100 bytes for each lane."""
        return self._state

    def inventory(self) -> dict[str, list[list[str | int]]]:
        """Return path, size and stamp of all files by source, in their order, to be kept beside a state."""
        return {source.config.name: [list(file.public) for file in source.files] for source in self.sources}

    def close(self) -> None:
        """Stop reading and end the workers: after 10 s, in which a block is read, by force.

        A worker that waits for a dead disk or encodes a huge document would else hold up the exit for as long.
        """
        if self._ahead is not None:
            if self._exchange is not None:
                self._exchange.leave()
            if not self._ahead.stop(CLOSE_SECONDS):
                for process in self._processes:
                    process.kill()
            atexit.unregister(self.close)

    @override
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _batches(self) -> Iterator[Batch]:
        """Gather rows, in this rank's order, into batches with the state after each."""
        workers = self._config.num_workers
        try:
            stream = self._stream
            with drawn_by_workers(stream, workers, self._processes) if workers else nullcontext(drawn_here(stream)) as draw:
                mixer = stream.mixer()
                yield from self._gathered(mixer, in_order(stream, mixer, self._epochs, draw))
        except BaseException:
            if self._exchange is not None:
                self._exchange.leave()
            raise

    def _gathered(self, mixer: Mixer, rows: Iterator[Row]) -> Iterator[Batch]:
        lanes = dict(self._state.lanes)
        size, buckets = self._rows.batch_size, self._rows.buckets
        while True:
            taken = [next(rows) for _ in range(size * buckets)]
            for (_, source, lane), _, at in taken:
                if at is not None:
                    lanes[self.sources[source].lane_name(lane)] = at
            # Of the batches of a group only the last one's state is used: they are one step's.
            state = self._state.drawn_until(mixer.state(), dict(lanes))
            if buckets > 1:
                taken.sort(key=lambda row: sum(map(len, row.packed.parts)))
            for start in range(0, len(taken), size):
                batch = taken[start : start + size]
                numbers = [row.origin.row for row in batch]
                packed = [row.packed for row in batch]
                planes = self.packer.expand(packed, numbers)
                yield Batch.of(planes, packed, rows=numbers, sources=[row.origin.source for row in batch], state=state)


def batches_ahead(batch_size: int, seq_len: int) -> int:
    """Return how many batches of `batch_size` rows are made ahead of their use."""
    return min(max(AHEAD_BYTES // (BYTES_PER_TOKEN * batch_size * seq_len), 2), MAX_AHEAD)


def verify_sources(sources: Sequence[Source], shard: DataShard) -> None:
    """Compare this rank's share of the token shards with their checksums. Raises DataError."""
    for source in sources:
        for tokens in source.corpus.shards[shard.dp_rank :: shard.dp_degree] if source.corpus else ():
            verify_shard(tokens)


def _lanes_of(config: DataConfig, units: bool, shard: DataShard) -> int:
    """Return how many lanes there are: as the job says, else as its checkpoint, else chosen.

    Raises:
        DataConfigError: The ranks and workers do not divide them: a lane is read by one worker of one rank.
    """
    workers = max(1, config.num_workers)
    owners = shard.dp_degree * workers
    saved = shard.state.config.get("lanes") if shard.state else None
    lanes, whose = config.lanes, ""
    if lanes is None and isinstance(saved, int):
        lanes, whose = saved, ", as the checkpoint has it,"
    if lanes is None:
        return choose_lanes(config, owners, units)
    if lanes < 1 or lanes % owners:
        advice = "go on with as many as divide it" if whose else f"raise it to {-(-max(lanes, 1) // owners) * owners}"
        raise DataConfigError(
            f"data.lanes: {lanes}{whose} is not a multiple of data-parallel degree x workers = {shard.dp_degree} x {workers} "
            f"= {owners}; {advice}"
        )
    return lanes
