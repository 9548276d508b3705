"""What the lengths of a corpus' documents say: their histogram, and how they pack.

Lengths are counted, not kept, so that 10^9 documents take the memory of their distinct lengths.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..rows import best_fit
from ..shards import Shard

# Planned in blocks of 4,096 documents, as a loader does: 2^18 documents take 0.25 s.
PLANNED = 2**18
BLOCK_DOCUMENTS = 4096
Lengths = npt.NDArray[np.integer[Any]]


class LengthStatistics(NamedTuple):
    """Documents by their tokens, each document's eos included.

    Attributes:
        documents: How many.
        tokens: Of all of them.
        shortest: Tokens of the shortest.
        median: Tokens of the one in the middle.
        longest: Tokens of the longest.
        histogram: (low, documents): those of `low` to `2 * low - 1` tokens, from the shortest to the longest.
        split: Documents longer than a row.
        fragments: Parts that these are cut into.
        rows: Rows of an epoch under best_fit; an estimate where `planned` is fewer than `documents`.
        packing_efficiency: Share of the rows' positions that hold a token.
        planned: Documents by whose plan `rows` and `packing_efficiency` are known.
    """

    documents: int
    tokens: int
    shortest: int
    median: int
    longest: int
    histogram: list[tuple[int, int]]
    split: int
    fragments: int
    rows: int
    packing_efficiency: float
    planned: int


def length_statistics(lengths: Iterable[Lengths], seq_len: int) -> LengthStatistics:
    """Count lengths, given in arrays of any size, and plan rows of `seq_len` tokens for them, or for a sample of them.

    A corpus may be sorted by length and is read in random order: what is planned is drawn at random.
    """
    counter: Counter[int] = Counter()
    for part in lengths:
        found, times = np.unique(part, return_counts=True)
        counter.update(dict(zip(found.tolist(), times.tolist(), strict=True)))
    assert counter, "a corpus has documents"
    values, counts = (np.array(column, dtype=np.int64) for column in zip(*sorted(counter.items()), strict=True))

    documents, tokens = int(counts.sum()), int((values * counts).sum())
    octaves = np.frexp(values)[1] - 1  # floor of the binary logarithm, exact up to 2^53
    histogram = [
        (1 << octave, int(counts[octaves == octave].sum())) for octave in range(int(octaves.min()), int(octaves.max()) + 1)
    ]
    long = values > seq_len
    rows, planned_tokens, planned = _plan(values, counts, seq_len)
    efficiency = planned_tokens / (rows * seq_len)
    return LengthStatistics(
        documents=documents,
        tokens=tokens,
        shortest=int(values[0]),
        median=int(values[np.searchsorted(np.cumsum(counts), (documents + 1) // 2)]),
        longest=int(values[-1]),
        histogram=histogram,
        split=int(counts[long].sum()),
        fragments=int((-(-values[long] // seq_len) * counts[long]).sum()),
        rows=rows if planned == documents else round(tokens / (efficiency * seq_len)),
        packing_efficiency=efficiency,
        planned=planned,
    )


def _plan(values: Lengths, counts: Lengths, seq_len: int) -> tuple[int, int, int]:
    """Return rows, tokens and documents of a plan."""
    random = np.random.default_rng(0)
    if counts.sum() <= PLANNED:
        drawn = random.permutation(np.repeat(values, counts))
    else:
        drawn = random.choice(values, size=PLANNED, p=counts / counts.sum())
    # A long document fills rows by itself: only what remains of it must be planned.
    whole = int((drawn // seq_len).sum())
    rest = drawn % seq_len
    blocks = (rest[at : at + BLOCK_DOCUMENTS] for at in range(0, len(rest), BLOCK_DOCUMENTS))
    rows = whole + sum(len(best_fit(block[block > 0].tolist(), seq_len)) for block in blocks)
    return rows, int(drawn.sum()), len(drawn)


def shard_lengths(shards: Sequence[Shard]) -> Iterator[Lengths]:
    """Yield the lengths of the documents of shards, at most 4 million at a time."""
    for shard in shards:
        offsets = shard.offsets()
        for at in range(0, shard.documents, 2**22):
            bounds = offsets[at : at + 2**22 + 1].view(np.int64)
            yield bounds[1:] - bounds[:-1]
