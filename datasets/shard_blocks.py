"""Token shards as a lane reads them: every epoch all documents in a new random order, straight from the maps.

The documents of a source are numbered through its shards, and the numbers permuted without a table (`order.Shuffle`); place
p of an epoch belongs to lane p mod `lanes`. A document longer than `UNIT_TOKENS` is dealt in units of that size, whole rows
each, so that a chromosome is spread over all lanes: unit 0 has the document's own number, further ones follow behind all
documents. Only documents with such units are listed in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .blocks import MAX_DOCUMENTS, Address, AddressedBlock
from .errors import DataConfigError
from .objectives import Weights
from .order import Shuffle
from .packing import Block
from .shards import Shard
from .tokenizers import Ids

# A lane's documents may be of any length, but its share of the tokens must not hang on one of them.
UNIT_TOKENS = 2**20
# A block has 4,096 documents; more where they are short and rows are long, since some 0.75 rows of a block stay empty and
# 4,096 proteins (mean 350) are 175 rows of 8,192, used to 99.45 % where all of them at once are used to 99.93 %; fewer where
# documents are long. Planning takes some 0.8 ms per 1,000 documents.
BLOCK_ROWS = 512
MAX_BLOCK_DOCUMENTS = 16384
BLOCK_TOKENS = 2**24

Integers = npt.NDArray[np.int64]


@dataclass(eq=False)
class ShardCorpus:
    """The units of all documents of a source.

    Attributes:
        shards: In order.
        seq_len: Tokens per row.
        lanes: Lanes of the source.
        name: Of the source, for messages.

    Raises:
        DataConfigError: There are fewer units than lanes.
    """

    shards: Sequence[Shard]
    seq_len: int
    lanes: int
    name: str
    _maps: dict[int, tuple[Ids, Integers, Weights | None]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Number documents and units."""
        self.unit = max(UNIT_TOKENS // self.seq_len, 1) * self.seq_len
        self.first_documents = np.cumsum([0, *(shard.documents for shard in self.shards)])
        self.documents = int(self.first_documents[-1])
        longs, extra = [], []
        for number, shard in enumerate(self.shards):
            if shard.manifest.longest_document > self.unit:
                lengths = np.diff(shard.offsets().astype(np.int64))
                found = np.flatnonzero(lengths > self.unit)
                longs.append(found + self.first_documents[number])
                extra.append(-(-lengths[found] // self.unit) - 1)
        self.longs: Integers = np.concatenate(longs) if longs else np.empty(0, dtype=np.int64)
        # Units beyond the first ones, counted before each long document.
        self.before = np.concatenate([[0], np.cumsum(np.concatenate(extra))]) if extra else np.zeros(1, dtype=np.int64)
        self.units = self.documents + int(self.before[-1])
        if self.units < self.lanes:
            raise DataConfigError(
                f"data.lanes: {self.lanes} lanes need as many documents, or units of {self.unit:,} tokens of long ones, and "
                f"source {self.name!r} has {self.units}; lower data.lanes"
            )

    def __getstate__(self) -> dict[str, object]:
        """Travel to a worker without the maps."""
        return {**self.__dict__, "_maps": {}}

    def maps(self, shard: int) -> tuple[Ids, Integers, Weights | None]:
        """Return ids, document offsets and weights of a shard, opened at the first call."""
        if shard not in self._maps:
            opened = self.shards[shard]
            self._maps[shard] = opened.ids(), opened.offsets().view(np.int64), opened.weights()
        return self._maps[shard]

    def locate(self, units: Integers) -> tuple[Integers, Integers, Integers, npt.NDArray[np.bool_]]:
        """Return shard, first token in it, length, and whether the document goes on behind, for each of `units`."""
        document, part = units.copy(), np.zeros_like(units)
        further = units >= self.documents
        if further.any():
            place = units[further] - self.documents
            long = np.searchsorted(self.before, place, side="right") - 1
            document[further] = self.longs[long]
            part[further] = place - self.before[long] + 1
        shards = np.searchsorted(self.first_documents, document, side="right") - 1
        starts, ends = np.empty_like(units), np.empty_like(units)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            offsets = self.maps(shard)[1]
            local = document[here] - self.first_documents[shard]
            starts[here], ends[here] = offsets[local], offsets[local + 1]
        starts += part * self.unit
        lengths = np.minimum(ends - starts, self.unit)
        return shards, starts, lengths, starts + lengths < ends


@dataclass(frozen=True)
class ShardDocuments:
    """Documents of token shards, as one lane reads them.

    Attributes:
        corpus: All of the source.
        lane: Its number.
        key: (seed, source): all lanes share the permutation of an epoch.
        whole_rows: A block is cut where its last row is full, for `concat`.
    """

    corpus: ShardCorpus
    lane: int
    key: tuple[int, int]
    whole_rows: bool

    def blocks(self, epoch: int, start: Address) -> Iterator[AddressedBlock]:
        """Yield the blocks of an epoch from an address on: `offset` is a place in the lane's order, `skip` as ever."""
        corpus = self.corpus
        shuffle = Shuffle(corpus.units, *self.key, epoch)
        places = (corpus.units - self.lane + corpus.lanes - 1) // corpus.lanes
        limit = max(BLOCK_TOKENS // corpus.seq_len, 1) * corpus.seq_len
        enough = min(BLOCK_ROWS * corpus.seq_len, limit)
        at, skip = max(start.offset, 0), start.skip
        while at < places:
            for most in (MAX_DOCUMENTS, MAX_BLOCK_DOCUMENTS):
                last = min(at + most, places)
                shards, starts, lengths, goes_on = corpus.locate(shuffle[np.arange(at, last) * corpus.lanes + self.lane])
                starts[0] += skip
                lengths[0] -= skip
                ends = np.cumsum(lengths)
                if ends[-1] >= enough or last == places:
                    break
            count = min(int(np.searchsorted(ends, limit)), max(int(np.searchsorted(ends, enough)), MAX_DOCUMENTS - 1)) + 1
            count = min(count, len(ends))
            at, skip = at + count, 0
            flow = np.cumsum(np.where(goes_on, 0, lengths))  # what `concat` cuts; units that go on are whole rows
            surplus = int(flow[count - 1]) % corpus.seq_len
            if self.whole_rows and surplus and at < places and flow[count - 1] > surplus:
                # The beginning of the last row goes to the next block, with all documents that begin in it.
                cut = int(flow[count - 1]) - surplus
                kept = int(np.searchsorted(flow, cut)) + 1
                at, count = at - (count - kept), kept
                over = int(flow[count - 1]) - cut
                if over:
                    at -= 1
                    lengths[count - 1] -= over
                    goes_on[count - 1] = True
                    skip = int(lengths[count - 1]) + (start.skip if count == 1 else 0)
            yield self._block(
                shards[:count],
                starts[:count],
                lengths[:count],
                goes_on[:count],
                Address(0, at, 1, skip) if at < places else None,
            )
            start = Address(0, at, 1, skip)

    def _block(
        self, shards: Integers, starts: Integers, lengths: Integers, goes_on: npt.NDArray[np.bool_], following: Address | None
    ) -> AddressedBlock:
        numbers, array = np.unique(shards, return_inverse=True)
        maps = [self.corpus.maps(number) for number in numbers.tolist()]
        stated = [weights for _, _, weights in maps]
        weights = None
        if any(item is not None for item in stated):
            weights = [
                np.broadcast_to(np.float32(1.0), len(ids)) if item is None else item
                for (ids, _, _), item in zip(maps, stated, strict=True)
            ]
        block = Block([ids for ids, _, _ in maps], weights, array, starts, lengths, goes_on)
        return AddressedBlock(block, int((~goes_on).sum()), 0, 0, following)
