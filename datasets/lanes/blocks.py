"""A lane's documents, cut into blocks: the parts of a lane that are packed, shuffled and resumed as one.

A block closes after 4,096 documents or the tokens of `block_tokens`, or somewhat before (`_tight_end`). A document that
continues there is cut at a multiple of `seq_len` tokens, with the next token kept as lookahead. What follows the cut
opens the next block. A block depends only on the tokens from its address on, so it is the same when the lane is opened
again there.
"""

from collections import deque
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ..rows import Block, Packer, Weights, rows_of_best_fit
from ..tokenizers import Ids

MAX_DOCUMENTS = 4096
# Shares of a row that a block may leave empty, tried one after another.
SPARE = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)


class DocumentOutcome(IntEnum):
    """What became of a document that was read: kept, left out since it had no token, or skipped as a bad record."""

    KEPT = 0
    EMPTY = 1
    BAD = 2


class Address(NamedTuple):
    """Where a lane can be opened again.

    Attributes:
        piece: Place of the piece in its lane's order of this epoch.
        offset: Where a document, or a run of one, begins in the piece.
        first: 1 where that run opens its document.
        skip: Number of tokens of that run to skip.
        tag: Length so far of a tag that is still open where that run begins; 0: none is.
        context: Tokens behind the address that were in rows before, and are context only.
    """

    piece: int
    offset: int
    first: int
    skip: int
    tag: int = 0
    context: int = 0


class TokenRun(NamedTuple):
    """Consecutive documents of a piece, encoded; its first and its last may be parts.

    Attributes:
        ids: 1-d integers, the documents one after another.
        lengths: int64 [documents]: tokens of each, its eos included where it ends here; 0 unless kept.
        offsets: Address of each.
        outcomes: int8 [documents]: a `DocumentOutcome` each. A BAD one of some length is the eos that ends a document
            early.
        piece: Of all addresses.
        first: Whether the first document opens here.
        last: Whether the last document ends here.
        skip: Tokens of the first that lie before.
        weights: float32, one for each of `ids`; None: all 1.
        label_values: float64 [documents]: the label of each, a class or a value; None: labels are not read.
        mapped: int64 [documents]: letters of each that were replaced by others; None: none.
        tag: As in `Address`.
        context: As in `Address`.
        ahead: Whether the last document goes on in another lane, so that its last token here is a target only.
    """

    ids: Ids
    lengths: npt.NDArray[np.int64]
    offsets: list[int]
    outcomes: npt.NDArray[np.int8]
    piece: int
    first: bool
    last: bool
    skip: int = 0
    weights: Weights | None = None
    label_values: npt.NDArray[np.float64] | None = None
    mapped: npt.NDArray[np.int64] | None = None
    tag: int = 0
    context: int = 0
    ahead: bool = False

    def behind(self, document: int, tokens: int) -> "TokenRun":
        """Return what lies behind the first `tokens` of `document`: views."""
        lengths = self.lengths[document:].copy()
        start = int(self.lengths[:document].sum()) + tokens
        skip = tokens if document else self.skip + tokens
        if tokens:
            lengths[0] -= tokens
        return TokenRun(
            self.ids[start:],
            lengths,
            self.offsets[document:],
            self.outcomes[document:],
            self.piece,
            self.first if document == 0 else True,
            self.last,
            skip,
            None if self.weights is None else self.weights[start:],
            None if self.label_values is None else self.label_values[document:],
            None if self.mapped is None else self.mapped[document:],
            0 if document else self.tag,
            ahead=self.ahead,
        )

    @property
    def documents(self) -> int:
        """Documents that end in it, those without a token left out."""
        return int(np.count_nonzero(self.lengths)) - (not self.last and bool(self.lengths[-1]))

    @property
    def address(self) -> Address:
        """Address of the first token of the run."""
        return Address(self.piece, self.offsets[0], int(self.first), self.skip, self.tag, self.context)


class Counts(NamedTuple):
    """What was met on the way through documents.

    Attributes:
        documents: Documents that ended.
        dropped: Documents without tokens.
        skipped: Bad records passed over.
        mapped: Letters replaced by others.
        truncated: Documents of which the first row was used.
    """

    documents: int
    dropped: int = 0
    skipped: int = 0
    mapped: int = 0
    truncated: int = 0


class AddressedBlock(NamedTuple):
    """A block with its place in the lane.

    Attributes:
        block: What is packed.
        counts: What was met on the way through it.
        next: Address of the block after it, None when the epoch is over.
    """

    block: Block
    counts: Counts
    next: Address | None


def block_tokens(seq_len: int) -> int:
    """Return the tokens at which a block closes, a multiple of `seq_len`.

    192 rows, but at least 2^18 tokens where rows are short, and at most 2^22 where they are long, though never fewer
    than 8 rows: 512 rows at `seq_len` 512, 192 at 2,048, 64 at 65,536, 8 at 2^20. Some 0.75 rows of a block stay
    empty, whatever its size: with text of lognormal lengths (mean 870, median 450) and `seq_len` 2048, 128 rows are
    used to 99.4 %, 192 rows to 99.6 %. More rows take memory and delay the first batch.
    """
    rows = min(192, max(8, 2**22 // seq_len))
    return max(rows, -(-(2**18) // seq_len)) * seq_len


def unit_bytes(seq_len: int) -> int:
    """Return the tokens, one a byte, at whose multiples a long raw document is cut for several lanes: whole rows."""
    return max(2**20 // seq_len, 8) * seq_len


class BlockBuilder:
    """Cuts runs into blocks, holding no more than a block and a run.

    Args:
        runs: Documents in order; with `truncate` none has more than `seq_len` + 1 tokens.
        packer: Of the rows; a block that begins inside of a document begins with `overlap` tokens of the block before.
        truncate: Of a document that is longer than a row the last token is a target only.
    """

    def __init__(self, runs: Iterator[TokenRun], packer: Packer, *, truncate: bool = False) -> None:
        self._runs = runs
        self._seq_len, self._overlap, self._policy = packer.seq_len, packer.overlap, packer.policy
        self._truncate = truncate
        self._tokens = block_tokens(packer.seq_len)
        self._ahead: deque[TokenRun] = deque()

    def __iter__(self) -> Iterator[AddressedBlock]:
        """Yield blocks until the runs are over."""
        while (built := self._build()) is not None:
            yield built

    def _build(self) -> AddressedBlock | None:
        total = sum(len(run.ids) for run in self._ahead)
        documents = sum(run.documents for run in self._ahead)
        # Enough to know whether the document that crosses the last token fits in a row.
        while total <= self._tokens + self._seq_len and (documents < MAX_DOCUMENTS or self._policy == "concat"):
            run = next(self._runs, None)
            if run is None:
                break
            self._ahead.append(run)
            total += len(run.ids)
            documents += run.documents
        if total == 0:
            return None

        lengths = np.concatenate([run.lengths for run in self._ahead])
        over = np.concatenate([np.ones(len(run.offsets), dtype=bool) for run in self._ahead])
        last = np.cumsum([len(run.offsets) for run in self._ahead]) - 1
        over[last] = [run.last for run in self._ahead]
        shared = np.zeros(len(over), dtype=bool)
        shared[last] = [run.ahead for run in self._ahead]
        shared = shared[over & (lengths > 0)]
        ends = np.cumsum(lengths)[over & (lengths > 0)]
        closed, cut = self._cut(ends, total)
        bounds = np.concatenate([[0], ends[:closed], [cut]] if closed == 0 or ends[closed - 1] < cut else [[0], ends[:closed]])
        segments = len(bounds) - 1
        label_values = None
        if self._ahead[0].label_values is not None:
            each = np.concatenate([run.label_values for run in self._ahead if run.label_values is not None])
            label_values = np.append(each[over & (lengths > 0)][:closed], [np.nan] * (segments - closed))

        ids, weights = self._seen(cut + 1)
        continued = self._ahead[0].context > 0
        counts = self._move(cut, self._overlap if closed < segments else 0)
        lengths, goes_on = np.diff(bounds), np.arange(segments) >= closed
        shared, truncated = shared[:closed], 0
        goes_on[:closed] |= shared
        lengths[:closed] -= shared
        if self._truncate:
            goes_on = lengths > self._seq_len
            lengths, truncated = np.minimum(lengths, self._seq_len), int(goes_on.sum())
        block = Block(
            [ids],
            None if weights is None else [weights],
            np.zeros(segments, dtype=np.int64),
            bounds[:-1],
            lengths,
            goes_on,
            label_values,
            np.arange(segments) < 1 if continued else None,
        )
        counts = counts._replace(documents=closed - int(shared.sum()), truncated=truncated)
        return AddressedBlock(block, counts, self._ahead[0].address if self._ahead else None)

    def _cut(self, ends: npt.NDArray[np.int64], total: int) -> tuple[int, int]:
        """Return the documents that end in the block and its tokens, of `total` at hand in which documents end at
        `ends`.
        """
        if self._policy == "concat":
            cut = min(total, self._tokens)
            return int(np.searchsorted(ends, cut, side="right")), cut
        closed = min(int(np.searchsorted(ends, self._tokens, side="right")), MAX_DOCUMENTS)
        opened = int(ends[closed - 1]) if closed else 0
        full = closed == MAX_DOCUMENTS
        if self._policy == "best_fit" and (full or self._tokens * 3 // 4 < opened < total):
            closed = _tight_end(ends[:closed], self._seq_len, self._overlap)
            return closed, int(ends[closed - 1])
        if full:
            return closed, opened
        if opened == min(total, self._tokens):
            return closed, opened
        # A document is cut only when it is known not to fit in a row.
        room = max(self._tokens - opened, self._seq_len + 1)
        if closed < len(ends) and ends[closed] - opened <= room:
            return closed + 1, int(ends[closed])
        stride = self._seq_len - self._overlap
        return closed, opened + (room - 1 - self._overlap) // stride * stride + self._overlap

    def _seen(self, tokens: int) -> tuple[Ids, Weights | None]:
        """Return the next `tokens`, fewer at the end, and their weights, without moving."""
        ids: list[Ids] = []
        weights: list[Weights] = []
        weighted = False
        for run in self._ahead:
            ids.append(run.ids[:tokens])
            ones = np.broadcast_to(np.float32(1.0), len(ids[-1]))
            weights.append(ones if run.weights is None else run.weights[:tokens])
            weighted |= run.weights is not None
            tokens -= len(ids[-1])
            if not tokens:
                break
        return np.concatenate(ids), np.concatenate(weights) if weighted else None

    def _move(self, cut: int, again: int) -> Counts:
        """Move over `cut` tokens but the last `again`, which are context of the next block; count what was met."""
        outcomes, mapped = np.zeros(3, dtype=np.int64), 0
        left = cut - again
        while self._ahead:
            run = self._ahead.popleft()
            ends = np.cumsum(run.lengths)
            # Over documents without tokens too, so that the next block never consists of them alone.
            document = int(np.searchsorted(ends, left, side="right"))
            outcomes += np.bincount(run.outcomes[:document], minlength=3)
            if run.mapped is not None:
                mapped += int(run.mapped[:document].sum())
            if document < len(run.offsets):
                begun = int(ends[document - 1]) if document else 0
                self._ahead.appendleft(run.behind(document, left - begun)._replace(context=again))
                break
            left -= len(run.ids)
            if not self._ahead and (following := next(self._runs, None)) is not None:
                self._ahead.append(following)
        return Counts(
            0, dropped=int(outcomes[DocumentOutcome.EMPTY]), skipped=int(outcomes[DocumentOutcome.BAD]), mapped=mapped
        )


def _tight_end(ends: npt.NDArray[np.int64], seq_len: int, overlap: int) -> int:
    """Return how many of the documents that end at `ends` make a block that best fit leaves the least room in.

    Best fit leaves about half of one row empty per block, which is 0.26 % of 192 rows. So a block ends at the document,
    among those in its last quarter of tokens, after which its rows are fullest: 99.84 % where the mere number of tokens
    gives 99.56 %, of text in rows of 2,048.
    """
    candidates = np.arange(int(np.searchsorted(ends, ends[-1] * 3 // 4, side="right")), len(ends))
    room = -ends[candidates] % seq_len
    lengths = np.diff(ends, prepend=0)
    best, least = len(ends), np.inf
    for spare in SPARE:
        # The last one of those that come closest to leaving this much room.
        over = (room - int(spare * seq_len)) % seq_len
        count = int(candidates[len(over) - 1 - int(np.argmin(over[::-1]))]) + 1
        tokens = int(ends[count - 1])
        rows = rows_of_best_fit(lengths[:count], seq_len, overlap)
        waste = rows * seq_len / tokens
        if waste < least:
            best, least = count, waste
        if rows == -(-tokens // seq_len):
            break
    return best
