"""Batches of packed rows: the entry of this room.

    files --Reader--> records --Tokenizer--> ids --BlockBuilder--> blocks --Packer--> rows --Mixer, workers--> batches
    token shards ------------------------ShardDocuments----------> blocks

Row i of the run is drawn from source `Mixer.source(i)`, and there from lane `Mixer.lane(i)`. Lane l belongs to data-parallel
rank l mod R, and there to worker l // R mod W; as R x W divides `lanes`, each lane is read by one worker of one rank, and
the rows do not depend on R or W.
"""

import atexit
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from ..documents import DocumentConfig
from ..errors import DataConfigError
from ..files import FileStore, fingerprint
from ..readers import SourceConfig
from ..rows import PAD_MULTIPLE, NextToken, Objective, Packer
from ..shards import verify_shard
from ..tokenizers import HFTokenizer, Tokenizer
from .batch import Batch
from .read_ahead import ReadAhead
from .sources import Source, open_source
from .state import Inventory, check_state, initial_state
from .transport import RowStream, in_order

CLOSE_SECONDS = 10.0
# Batches made ahead: at most 8, fewer where they are large.
MAX_AHEAD = 8
AHEAD_BYTES = 2**26
BYTES_PER_TOKEN = 24


class Stage(NamedTuple):
    """Other weights from a row on.

    Attributes:
        row: First global row of the stage.
        weights: Of the sources by name; 0 for those that are not named.
    """

    row: int
    weights: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What determines the rows of a run, and from `num_workers` on what does not.

    Attributes:
        sources: At least one.
        lanes: Streams per source; a multiple of data-parallel degree x workers.
        packing: `best_fit` or `concat`, where `layout` is `packed`.
        layout: `packed`, or `padded`: a document, or a fragment of a long one, per row.
        objective: What rows ask for.
        pad_multiple: Padded batches are as wide as their longest row, rounded up to a multiple of this.
        documents: What is done with documents before they are packed.
        seq_len: Tokens per row.
        seed: Of all random choices.
        stages: Weights that replace the sources' own from some row on, ascending.
        buckets: Batches that are made together: their rows are sorted by length and then cut, so that padded rows of about
            one length share a batch. 1: rows stay in order.
        num_workers: Worker processes per rank; 0 reads in a thread of this process.
        on_bad_record: `error`, or `skip`: pass over, log and count it.
        verify: Compare token shards with their checksums before reading; ranks share the work.
        storage: Where remote files are kept.
    """

    sources: Sequence[SourceConfig]
    lanes: int
    packing: str
    seq_len: int
    seed: int
    layout: str = "packed"
    objective: Objective = field(default_factory=NextToken)
    pad_multiple: int = PAD_MULTIPLE
    buckets: int = 1
    documents: DocumentConfig = field(default_factory=DocumentConfig)
    stages: tuple[Stage, ...] = ()
    num_workers: int = 0
    on_bad_record: str = "error"
    verify: bool = False
    storage: FileStore = field(default_factory=FileStore)

    @property
    def policy(self) -> str:
        """How documents become rows, one of `packing.POLICIES`."""
        return "padded" if self.layout == "padded" else self.packing

    def check(self, tokenizer: Tokenizer) -> None:
        """Refuse what can be told to be wrong without looking at a file. Raises DataConfigError."""
        for key, value, known in (
            ("layout", self.layout, ("packed", "padded")),
            ("on_bad_record", self.on_bad_record, ("error", "skip")),
        ):
            if value not in known:
                raise DataConfigError(f"data.{key}: {value!r} is not one of {', '.join(map(repr, known))}")
        self.documents.check(tokenizer, self.policy, self.seq_len)


class Loader:
    """An endless iterator of batches with an exact, elastic state.

    Args:
        config: What to read and how.
        tokenizer: Encodes documents.
        batch_size: Rows per batch of this rank.
        dp_rank: Data-parallel rank.
        dp_degree: Data-parallel ranks.
        state: A state of a loader with the same config, merged over its ranks if there were several.
        inventory: What `inventory` returned then: a refusal names the file that has changed.
        row: Global row to begin at, without a state.

    Raises:
        DataConfigError: The config cannot be met; as DataOrderError: the state belongs to another one.
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
        inventory: Inventory | None = None,
        row: int = 0,
    ) -> None:
        _check_degrees(config.lanes, dp_degree, max(1, config.num_workers))
        names = [source.name for source in config.sources]
        if not names or len(set(names)) < len(names):
            raise DataConfigError(f"data.sources: name at least one source, each by its own name; found {names}")
        config.check(tokenizer)
        policy, documents = config.policy, config.documents
        self.packer = Packer(
            config.seq_len,
            tokenizer.eos_id,
            tokenizer.pad_id,
            policy,
            config.objective,
            pad_multiple=config.pad_multiple,
            overlap=documents.window_overlap,
        )
        self._config = config
        self._batch_size = batch_size
        self._degree = dp_degree
        stages = _stages(config)
        self.sources = [
            open_source(source, config.lanes, config.seq_len, config.storage, documents, config.objective.classes)
            for source in config.sources
        ]
        self.packer.weighted = any(source.weighted for source in self.sources)

        identity = {
            "lanes": config.lanes,
            "packing": policy,
            "objective": config.objective.identity(),
            **documents.identity(),
            "seq_len": config.seq_len,
            "seed": config.seed,
            "tokenizer": tokenizer.fingerprint,
            # Keys are strings, as JSON has no others.
            "stages": {str(row): dict(zip(names, weights, strict=True)) for row, weights in stages},
            "sources": [
                {
                    "name": source.config.name,
                    "format": source.config.format,
                    "field": source.config.field,
                    "label": source.config.label or "",
                    "files": fingerprint(source.files),
                }
                for source in self.sources
            ],
        }
        if state is None:
            state = initial_state(identity, len(names), row)
        check_state(state, identity, {source.config.name: source.files for source in self.sources}, inventory)
        if len(names) > 1 and state["rows"] % dp_degree:  # the ranks' rows would not be one of each in a turned round
            raise DataConfigError(
                f"the data stands at row {state['rows']}, which is no multiple of data-parallel degree {dp_degree}: go on with "
                "the training.global_batch_size of the checkpoint, or with a degree that divides both"
            )
        if config.verify:
            verify_sources(self.sources, dp_rank, dp_degree)
        # Said by `cistron check`: what turns text into ids.
        self.encoding = tokenizer.kind
        if isinstance(tokenizer, HFTokenizer) and any(source.lanes for source in self.sources):
            self.encoding = tokenizer.use_tiktoken_if_equal(
                [document for source in self.sources for document in source.sample()]
            )
        own = {source.lane_name(lane) for source in self.sources for lane in range(dp_rank, config.lanes, dp_degree)}
        lanes = {name: at for name, at in state["lanes"].items() if name in own}
        self._state = {**state, "config": identity, "lanes": lanes}
        self._stream = RowStream(
            self.sources,
            tokenizer,
            self.packer,
            stages,
            config.seed,
            config.on_bad_record == "skip",
            config.lanes,
            dp_rank,
            dp_degree,
            self._state,
        )
        batch_bytes = BYTES_PER_TOKEN * batch_size * config.seq_len
        self._depth = min(max(AHEAD_BYTES // batch_bytes, 2), MAX_AHEAD)
        self._ahead: ReadAhead[Batch] | None = None
        self._processes: list[Any] = []  # workers

    def next(self, interrupted: Callable[[], bool] = lambda: False) -> Batch | None:
        """Return the next batch, or None when `interrupted()` turns true while waiting for it.

        Raises:
            DataError: A file or record cannot be used.
            DataEnd: A source was read `max_epochs` times.
            WorkerError: A worker died.
        """
        if self._ahead is None:
            # Runs before multiprocessing's own exit handler, which would wait for workers that nobody has told to stop.
            atexit.register(self.close)
            self._ahead = ReadAhead(self._batches, self._depth)
        batch = self._ahead.next(interrupted)
        if batch is not None:
            self._state = batch.state
        return batch

    def state(self) -> dict[str, Any]:
        """Return the state after the last batch that `next` returned: plain JSON, at most some 100 bytes per lane."""
        return self._state

    def inventory(self) -> dict[str, list[list[str | int]]]:
        """Return path, size and stamp of all files by source: kept beside a state, it lets a refusal name a changed file."""
        return {source.config.name: [list(file) for file in source.files] for source in self.sources}

    def close(self) -> None:
        """Stop reading and end the workers: after 10 s, in which a block is read, by force.

        A worker that waits for a dead disk or encodes a huge document would else hold up the exit for as long.
        """
        if self._ahead is not None:
            if not self._ahead.stop(CLOSE_SECONDS):
                for process in self._processes:
                    process.kill()
            atexit.unregister(self.close)

    def __enter__(self) -> "Loader":
        """Return the loader itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def _batches(self) -> Iterator[Batch]:
        """Gather rows, in this rank's order, into batches with the state after each."""
        mixer = self._stream.mixer()
        rows = in_order(self._stream, mixer, self._config.num_workers, self._processes)
        done, lanes = self._state["rows"], dict(self._state["lanes"])
        size, buckets = self._batch_size, self._config.buckets
        while True:
            taken = [next(rows) for _ in range(size * buckets)]
            for (_, source, lane), _, at in taken:
                lanes[self.sources[source].lane_name(lane)] = list(at)
            done += size * buckets * self._degree
            # Of the batches of a group only the last one's state is asked for: they are one step's.
            state = {**self._state, "rows": done, "counts": mixer.counts(done), "lanes": dict(lanes)}
            if buckets > 1:
                taken.sort(key=lambda row: sum(map(len, row.packed.parts)))
            for start in range(0, len(taken), size):
                batch = taken[start : start + size]
                numbers = [row.place.row for row in batch]
                planes = self.packer.expand([row.packed for row in batch], numbers)
                yield Batch.of(planes, rows=numbers, sources=[row.place.source for row in batch], state=state)


def verify_sources(sources: Sequence[Source], dp_rank: int, dp_degree: int) -> None:
    """Compare this rank's share of the token shards with their checksums. Raises DataError."""
    for source in sources:
        for shard in source.corpus.shards[dp_rank::dp_degree] if source.corpus else ():
            verify_shard(shard)


def _check_degrees(lanes: int, degree: int, workers: int) -> None:
    """A lane is read by one worker of one rank."""
    owners = degree * workers
    if lanes < 1 or lanes % owners:
        raise DataConfigError(
            f"data.lanes: {lanes} is not a multiple of data-parallel degree x workers = {degree} x {workers} = {owners}; "
            f"raise it to {-(-max(lanes, 1) // owners) * owners}"
        )


def _stages(config: DataConfig) -> list[tuple[int, list[float]]]:
    """Return first row and weights of each stage, the sources' own weights first."""
    names = [source.name for source in config.sources]
    stages: list[tuple[int, list[float]]] = [(0, [source.weight for source in config.sources])]
    for row, weights in config.stages:
        if row <= stages[-1][0]:
            raise DataConfigError(f"data.stages: a stage begins at row {row}, not after the one before it")
        if unknown := [name for name in weights if name not in names]:
            raise DataConfigError(f"data.stages.weights: {unknown[0]!r} is none of the sources {names}")
        stages.append((row, [weights.get(name, 0.0) for name in names]))
    for row, values in stages:
        if min(values) < 0 or not sum(values) > 0:
            raise DataConfigError(f"data.sources.weight: {values} from row {row} on; none may be below 0, one must be above")
    return stages
