"""A lane's documents, cut into blocks: the stretches of a lane that are packed, shuffled and resumed as one.

A block closes after 4,096 documents or the tokens of `block_tokens`. A document that is not over by then is
cut, at a multiple of `seq_len` tokens, with the next token kept as lookahead; what lies behind the cut opens the next
block. A block depends on the token stream from its address on and on nothing else, so it is the same when the stream is
re-opened there.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .packing import Block
from .tokenizers import Ids

MAX_DOCUMENTS = 4096


class Address(NamedTuple):
    """Where a stream of tokens can be opened again.

    Attributes:
        piece: Place of the piece in its lane's order of this epoch.
        offset: Byte of the file at which a chunk begins.
        first: 1 where that chunk opens its document.
        skip: Tokens of that chunk that lie before.
    """

    piece: int
    offset: int
    first: int
    skip: int


class Span(NamedTuple):
    """Consecutive tokens of one document; an empty span that `ends` is a document without tokens.

    Attributes:
        ids: 1-d integers, with the eos where `ends`.
        address: Address of the first.
        ends: Whether the document is over with it.
    """

    ids: Ids
    address: Address
    ends: bool


class AddressedBlock(NamedTuple):
    """A block with its place in the stream.

    Attributes:
        block: What is packed.
        dropped: Documents without tokens met on the way.
        next: Address of the block after it, None when the stream is over.
    """

    block: Block
    dropped: int
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


class BlockBuilder:
    """Takes a stream of spans apart into blocks, holding no more than a block and a chunk."""

    def __init__(self, spans: Iterator[Span], seq_len: int, policy: str) -> None:
        self._spans = spans
        self._seq_len = seq_len
        self._whole_rows = policy == "concat"
        self._tokens = block_tokens(seq_len)
        self._ahead: deque[Span] = deque()

    def __iter__(self) -> Iterator[AddressedBlock]:
        """Yield blocks until the stream is over."""
        while (built := self._build()) is not None:
            yield built

    def _pull(self) -> Span | None:
        return self._ahead.popleft() if self._ahead else next(self._spans, None)

    def _build(self) -> AddressedBlock | None:
        spans: list[tuple[int, Span]] = []  # with the place of their first token in the block
        ends: list[int] = []
        count = opened = 0  # tokens so far, and of them those before the current document
        while (room := self._room(count, opened, len(ends))) > 0 and (span := self._pull()) is not None:
            if len(span.ids) > room:
                self._ahead.appendleft(_tail(span, room))
                span = Span(span.ids[:room], span.address, False)
            spans.append((count, span))
            count += len(span.ids)
            if span.ends and len(span.ids):
                ends.append(count)
                opened = count
        if count == 0:
            return None

        ids = np.concatenate([span.ids for _, span in spans], dtype=np.int32, casting="same_kind")
        kept = self._cut(count, opened)
        while spans and spans[-1][0] + len(spans[-1][1].ids) > kept:
            start, span = spans.pop()
            self._ahead.appendleft(_tail(span, max(kept - start, 0)))
        dropped = sum(span.ends and not len(span.ids) for _, span in spans)
        while not self._ahead and (following := next(self._spans, None)) is not None:
            if len(following.ids):
                self._ahead.append(following)
            else:
                dropped += following.ends

        closed = bisect_right(ends, kept)
        bounds = [0, *ends[:closed]]
        if bounds[-1] < kept:
            bounds.append(kept)
        lengths = [end - start for start, end in pairwise(bounds)]
        return AddressedBlock(Block(ids, lengths, closed), dropped, self._ahead[0].address if self._ahead else None)

    def _room(self, count: int, opened: int, documents: int) -> int:
        """Tokens that the block still takes."""
        if self._whole_rows:
            return self._tokens + 1 - count  # one of lookahead
        if count == opened:
            return self._tokens - count if documents < MAX_DOCUMENTS else 0
        # A document is cut only when it is known not to fit in a row.
        return max(self._tokens - count, self._seq_len + 1 - (count - opened))

    def _cut(self, count: int, opened: int) -> int:
        """Tokens that stay in a block of `count`, the others being lookahead."""
        if self._whole_rows:
            return min(count, self._tokens)
        if count == opened:
            return count
        return opened + (count - opened - 1) // self._seq_len * self._seq_len


def _tail(span: Span, start: int) -> Span:
    """What is left of a span after `start` tokens: a view."""
    return Span(span.ids[start:], span.address._replace(skip=span.address.skip + start), span.ends)
