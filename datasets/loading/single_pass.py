"""Every document of some sources exactly once, in an order that no layout changes: what validation reads.

    rows of source 0 ─┐
    rows of source 1 ─┼─ one of each, repeatedly ─> row i -> rank i mod R ─> batches, the same number on every rank
    ...              ─┘

Each source is one lane, and each rank reads all of it. So a rank finds the end of the data without asking another rank,
and any number of ranks can share any number of documents, even one. A row of another rank costs the reading and
encoding of its documents. A large validation set is best given as token shards, whose rows are views (0.8 ms per 1,000
documents).
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from ..config import DataConfig
from ..documents import DocumentConfig, document_complaints
from ..errors import DataConfigError, DataEnd, refuse
from ..lanes import LaneState
from ..readers import SourceFiles
from ..rows import PackedRow, Packer
from ..tokenizers import Tokenizer
from .batch import Batch, RowSettings
from .loader import verify_sources
from .sources import open_source
from .state import ALL_DATA, DataShard


class SinglePass:
    """Batches of one rank, anew by each call of `batches`, and the same ones each time.

    Rows are packed by `best_fit` whatever the config's packing is: what a document's loss is does not depend on the
    documents in its row, and a document that fits in a row is never split.

    Args:
        sources: What to read.
        config: How to read it: its keys about documents, but for augmentation, and about files are used,
            `on_bad_record` and `verify`.
        tokenizer: Encodes documents.
        rows: How rows become batches; `buckets` is not used.
        shard: Which rank this is, of how many.

    Raises:
        DataConfigError: A setting is wrong.
        DataError: A source's files cannot be used.
    """

    def __init__(
        self,
        sources: Sequence[SourceFiles],
        config: DataConfig,
        tokenizer: Tokenizer,
        rows: RowSettings,
        shard: DataShard = ALL_DATA,
    ) -> None:
        if not sources:
            raise DataConfigError("validation.sources: name at least one source")
        config = config.as_read
        # Training's sources and packing are not read here: its keys about documents alone must fit.
        refuse([*DocumentConfig.complaints(config), *document_complaints(config, tokenizer, "best_fit", rows.seq_len)])
        ids = tokenizer.eos_id, tokenizer.pad_id
        self.packer = Packer(rows.seq_len, *ids, "best_fit", rows.objective, overlap=config.window_overlap)
        self.sources = [open_source(source, 1, rows, config) for source in sources]
        self.packer.weighted = any(source.weighted for source in self.sources)
        self._tokenizer, self._settings, self._shard = tokenizer, rows, shard
        if config.verify:
            verify_sources(self.sources, shard)

    def batches(self, limit: int | None = None) -> Iterator[Batch]:
        """Yield this rank's batches; every rank gets as many, the last ones filled up with rows of padding.

        Args:
            limit: Rows of all ranks together to end after; None: all there are.

        Raises:
            DataError: A file or record cannot be used.
        """
        rows = enumerate(islice(self._rows(), limit))
        size, rank, degree = self._settings.batch_size, self._shard.dp_rank, self._shard.dp_degree
        while taken := list(islice(rows, size * degree)):
            yield self._batch(taken[rank::degree], size)

    def first_row(self) -> Batch:
        """Return the first of all rows, whichever rank's it is.

        Raises:
            DataError: A file or record cannot be used, or there is no document.
        """
        return self._batch([next(enumerate(self._rows()))], 1)

    def _rows(self) -> Iterator[tuple[int, PackedRow]]:
        """Yield all rows, each with the number of its source; one of each source repeatedly, until they are over."""
        lanes = {
            number: source.rows(0, self._tokenizer, self.packer, (self._settings.seed, number), LaneState(), 1)
            for number, source in enumerate(self.sources)
        }
        while lanes:
            for number, lane in list(lanes.items()):
                try:
                    row, _ = next(lane)
                except DataEnd:
                    del lanes[number]
                else:
                    yield number, row

    def _batch(self, taken: list[tuple[int, tuple[int, PackedRow]]], size: int) -> Batch:
        """Lay out rows, each with its number and its source's; what is missing to `size` is padding, numbered -1."""
        taken = taken + [(-1, (0, PackedRow([])))] * (size - len(taken))
        numbers = [number for number, _ in taken]
        packed = [row for _, (_, row) in taken]
        planes = self.packer.expand(packed, numbers)
        return Batch.of(planes, packed, rows=numbers, sources=[source for _, (source, _) in taken], state=None)
