"""Token shards as a lane reads them: every epoch all documents in a new random order, straight from the maps.

The documents of a source are numbered through its shards, and the numbers permuted without a table
(`randomness.Shuffle`). Place p of an epoch belongs to lane p mod `lanes`. A document longer than `UNIT_TOKENS` is
assigned in units of that size, whole rows or windows each, so that a chromosome is spread over all lanes. Unit 0 has
the number of the document. Further units are numbered behind all documents, and begin with the last `window_overlap`
tokens of the unit before. Only documents with such units are listed in memory. A document that is read as its reverse
complement is divided in the same way.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..documents import Chosen, DocumentConfig, Strands, mirrored, too_long
from ..errors import BadRecords, DataError
from ..files import last_name
from ..randomness import Shuffle
from ..rows import Block, Weights
from ..shards import BlockChecks, Shard
from ..tokenizers import Ids, TokenizeError
from .blocks import MAX_DOCUMENTS, Address, AddressedBlock, Counts

# A lane's documents may be of any length, but its share of the tokens must not hang on one of them.
UNIT_TOKENS = 2**20
# A block has 4,096 documents; more where they are short and rows are long, since some 0.75 rows of a block stay empty
# and 4,096 proteins (mean 350) are 175 rows of 8,192, used to 99.45 % where all of them at once are used to 99.93 %;
# fewer where documents are long. Planning takes some 0.8 ms per 1,000 documents.
BLOCK_ROWS = 512
MAX_BLOCK_DOCUMENTS = 16384
BLOCK_TOKENS = 2**24
Integers = npt.NDArray[np.int64]


class Units(NamedTuple):
    """Units and where they lie; int64 each.

    Attributes:
        shards: Number of the shard.
        documents: Number of the document in the shard.
        begins: First token of the document in the shard.
        ends: Behind its last.
        starts: First token of the unit in the shard.
        lengths: Tokens of the unit.
    """

    shards: Integers
    documents: Integers
    begins: Integers
    ends: Integers
    starts: Integers
    lengths: Integers

    @property
    def open(self) -> npt.NDArray[np.bool_]:
        """Whether the document goes on behind."""
        return self.starts + self.lengths < self.ends

    def chosen(self, places: Integers | slice | npt.NDArray[np.bool_]) -> "Units":
        """Return the units at `places`: indices, a slice, or a mask."""
        return Units(*(values[places] for values in self))


@dataclass(eq=False)
class ShardCorpus:
    """The units of all documents of a source.

    Attributes:
        shards: In order.
        seq_len: Tokens per row.
        lanes: Lanes of the source.
        config: What is done with documents.
    """

    shards: Sequence[Shard]
    seq_len: int
    lanes: int
    config: DocumentConfig = field(default_factory=DocumentConfig)
    _maps: dict[int, tuple[Ids, Integers, Weights | None]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Count documents and units, and list the documents of several units."""
        self.checks = BlockChecks(self.shards)
        overlap = self.config.window_overlap
        # Tokens from the beginning of a unit to that of the next.
        self.unit = max((UNIT_TOKENS - overlap) // (self.seq_len - overlap), 1) * (self.seq_len - overlap)
        divided = self.config.long_documents in ("split", "window")
        self.first_documents = np.cumsum([0, *(shard.documents for shard in self.shards)])
        self.documents = int(self.first_documents[-1])
        longs, extra = [], []
        for number, shard in enumerate(self.shards):
            if divided and shard.manifest.longest_document > self.unit + overlap:
                lengths = np.diff(shard.offsets().astype(np.int64))
                found = np.flatnonzero(lengths > self.unit + overlap)
                longs.append(found + self.first_documents[number])
                extra.append(-(-(lengths[found] - overlap) // self.unit) - 1)
        self.longs: Integers = np.concatenate(longs) if longs else np.empty(0, dtype=np.int64)
        # Units beyond the first ones, counted before each long document.
        self.before = np.concatenate([[0], np.cumsum(np.concatenate(extra))]) if extra else np.zeros(1, dtype=np.int64)
        self.units = self.documents + int(self.before[-1])

    def __getstate__(self) -> dict[str, object]:
        """Travel to a worker without the maps."""
        return {**self.__dict__, "_maps": {}}

    def maps(self, shard: int) -> tuple[Ids, Integers, Weights | None]:
        """Return ids, document offsets and weights of a shard, opened at the first call."""
        if shard not in self._maps:
            opened = self.shards[shard]
            self._maps[shard] = opened.ids(), opened.offsets().view(np.int64), opened.weights()
        return self._maps[shard]

    def check(self, shards: Integers, begins: Integers, ends: Integers) -> None:
        """Check tokens `begins` to `ends` of `shards` where they are read for the first time.

        Raises:
            DataError: They are not as they were written; names the file and the document.
        """
        for shard, blocks in self.checks.fresh(shards, begins, ends):
            ids, offsets, weights = self.maps(shard)
            self.checks.check(shard, blocks, offsets, ids, weights)

    def locate(self, units: Integers) -> Units:
        """Look up units by their numbers. Of a document that is truncated, the one unit is its first row."""
        document, part = units.copy(), np.zeros_like(units)
        further = units >= self.documents
        if further.any():
            place = units[further] - self.documents
            long = np.searchsorted(self.before, place, side="right") - 1
            document[further] = self.longs[long]
            part[further] = place - self.before[long] + 1
        shards = np.searchsorted(self.first_documents, document, side="right") - 1
        local = document - self.first_documents[shards]
        begins, ends = np.empty_like(units), np.empty_like(units)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            offsets = self.maps(shard)[1]
            begins[here], ends[here] = offsets[local[here]], offsets[local[here] + 1]
        starts = begins + part * self.unit
        longest = {"truncate": self.seq_len, "error": np.iinfo(np.int64).max}.get(
            self.config.long_documents, self.unit + self.config.window_overlap
        )
        return Units(shards, local, begins, ends, starts, np.minimum(ends - starts, longest))


@dataclass(frozen=True)
class ShardDocuments:
    """Documents of token shards, as one lane reads them.

    Attributes:
        corpus: All of the source.
        lane: Its number.
        key: (seed, source): all lanes share the permutation of an epoch.
        whole_rows: A block is cut where its last row is full, for `concat`.
        strands: Which documents are read as their reverse complement; None: none.
        pass_over: What becomes of a document that is too long or has no reverse complement.
    """

    corpus: ShardCorpus
    lane: int
    key: tuple[int, int]
    whole_rows: bool
    strands: Strands | None = None
    pass_over: BadRecords = field(default_factory=lambda: BadRecords(skip=False))

    def blocks(self, epoch: int, start: Address) -> Iterator[AddressedBlock]:
        """Yield the blocks of an epoch from an address on: `offset` is a place in the lane's order, `skip` as ever.

        Raises:
            DataError: A document is bad.
        """
        corpus = self.corpus
        shuffle = Shuffle(corpus.units, *self.key, epoch)
        places = (corpus.units - self.lane + corpus.lanes - 1) // corpus.lanes
        limit = max(BLOCK_TOKENS // corpus.seq_len, 1) * corpus.seq_len
        enough = min(BLOCK_ROWS * corpus.seq_len, limit)
        at, skip = max(start.offset, 0), start.skip
        while at < places:
            for most in (MAX_DOCUMENTS, MAX_BLOCK_DOCUMENTS):
                last = min(at + most, places)
                units = corpus.locate(shuffle[np.arange(at, last) * corpus.lanes + self.lane])
                units.starts[0] += skip
                units.lengths[0] -= skip
                ends = np.cumsum(units.lengths)
                if ends[-1] >= enough or last == places:
                    break
            count = min(int(np.searchsorted(ends, limit)), max(int(np.searchsorted(ends, enough)), MAX_DOCUMENTS - 1)) + 1
            count = min(count, len(ends))
            at, skip = at + count, 0
            flow = np.cumsum(np.where(units.open, 0, units.lengths))  # what `concat` cuts; units that go on are whole rows
            surplus = int(flow[count - 1]) % corpus.seq_len
            if self.whole_rows and surplus and at < places and flow[count - 1] > surplus:
                # The beginning of the last row goes to the next block, with all documents that begin in it.
                cut = int(flow[count - 1]) - surplus
                kept = int(np.searchsorted(flow, cut)) + 1
                at, count = at - (count - kept), kept
                over = int(flow[count - 1]) - cut
                if over:
                    at -= 1
                    units.lengths[count - 1] -= over
                    skip = int(units.lengths[count - 1]) + (start.skip if count == 1 else 0)
            following = Address(0, at, 1, skip)
            yield self._block(units.chosen(slice(count)), epoch, following if at < places else None)
            start = following

    def _block(self, units: Units, epoch: int, following: Address | None) -> AddressedBlock:
        bad = self._too_long(units)
        numbers, array = np.unique(units.shards, return_inverse=True)
        maps = [self.corpus.maps(number) for number in numbers.tolist()]
        arrays, starts = [ids for ids, _, _ in maps], units.starts.copy()
        weights: list[Weights] | None = None
        if any(item is not None for _, _, item in maps):
            weights = [np.broadcast_to(np.float32(1.0), len(ids)) if item is None else item for ids, _, item in maps]
        mirrored_units = self._mirrored(units, epoch) & ~bad
        self._check(units.chosen(~bad), mirrored_units[~bad])
        if self.strands is not None:
            for place in np.flatnonzero(mirrored_units).tolist():
                _, _, begin, end, start, length = (int(values[place]) for values in units)
                part = (start - begin, min(start + length + 1, end) - begin)  # with the token behind
                try:
                    arrays.append(self.strands.reverse_complement(arrays[array[place]][begin:end], *part))
                except TokenizeError as problem:
                    bad[place] = True
                    self._refuse(units, place, problem.problem)
                    continue
                if weights is not None:
                    weights.append(mirrored(weights[array[place]][begin:end], *part))
                array[place], starts[place] = len(arrays) - 1, 0
        skipped = int(bad.sum())
        if skipped:
            units, array, starts = units.chosen(~bad), array[~bad], starts[~bad]
        goes_on = units.open
        truncated = int(goes_on.sum()) if self.corpus.config.long_documents == "truncate" else 0
        continued = units.starts > units.begins if self.corpus.config.window_overlap else None
        block = Block(arrays, weights, array, starts, units.lengths, goes_on, continued=continued)
        counts = Counts(int((~goes_on).sum()) + truncated, skipped=skipped, truncated=truncated)
        return AddressedBlock(block, counts, following)

    def _too_long(self, units: Units) -> Chosen:
        """Tell which documents are longer than they may be."""
        seq_len, refused = self.corpus.seq_len, self.corpus.config.long_documents == "error"
        long = (units.lengths > seq_len) & refused
        for place in np.flatnonzero(long).tolist():
            self._refuse(units, place, too_long(int(units.lengths[place]), seq_len))
        return long

    def _mirrored(self, units: Units, epoch: int) -> Chosen:
        """Tell which units are of documents that are read on their other strand."""
        chosen = np.zeros(len(units.shards), dtype=bool)
        if self.strands is None or not self.strands.share:
            return chosen
        for shard in np.unique(units.shards).tolist():
            here = units.shards == shard
            chosen[here] = self.strands.chosen(last_name(self.corpus.shards[shard].path), units.documents[here], epoch)
        return chosen

    def _check(self, units: Units, mirrored_units: Chosen) -> None:
        """Check the tokens of units, and those behind that are a label only, before they are used."""
        shards, begins, ends = units.shards, units.starts, units.starts + units.lengths + units.open
        if mirrored_units.any():
            # As far from the last letter of their document as the unit is from the first; and the eos.
            eos = units.ends - 1
            across = units.begins + eos
            low = np.maximum(across - ends, units.begins)
            high = np.maximum(across - begins, low + 1)
            begins, ends = np.where(mirrored_units, low, begins), np.where(mirrored_units, high, ends)
            shards = np.concatenate([shards, shards[mirrored_units]])
            begins, ends = np.concatenate([begins, eos[mirrored_units]]), np.concatenate([ends, eos[mirrored_units] + 1])
        self.corpus.check(shards, begins, ends)

    def _refuse(self, units: Units, place: int, problem: str) -> None:
        path = self.corpus.shards[int(units.shards[place])].path
        self.pass_over(lambda: DataError(problem, file=path, record=int(units.documents[place])))
