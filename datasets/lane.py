"""A lane: one of a source's fixed, deterministic streams of packed rows, without end.

Pieces are read in an order drawn per epoch, tokenised, cut into blocks, packed, and the rows of a block shuffled
(`best_fit`) or kept in order (`concat`). Everything follows from (seed, source, lane) and a state of nine integers, so
a lane resumes by opening one block again: the cost is a block, however far the lane has come.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .blocks import Address, BlockBuilder, Span
from .errors import DataError
from .order import permutation
from .packing import Packer, Planes
from .pieces import Piece
from .readers import Chunk, Reader
from .tokenizers import Ids, TokenizeError, Tokenizer


class LaneState(NamedTuple):
    """Where a lane stands. All of it is as of the beginning of a block, but for `row`.

    Attributes:
        epoch: Times that the lane has read all of its pieces.
        block: Blocks read in this epoch.
        piece: With `offset`, `first` and `skip`: address of the block; offset -1 is the beginning of the piece.
        offset: See `piece`.
        first: See `piece`.
        skip: See `piece`.
        row: Rows taken of the block.
        documents: Documents finished, in all epochs.
        dropped: Documents without tokens met, in all epochs.
    """

    epoch: int = 0
    block: int = 0
    piece: int = 0
    offset: int = -1
    first: int = 1
    skip: int = 0
    row: int = 0
    documents: int = 0
    dropped: int = 0


@dataclass(frozen=True)
class Lane:
    """Rows of one lane of one source.

    Attributes:
        pieces: The lane's parts of files.
        reader: Reads them.
        tokenizer: Encodes them.
        packer: Packs them.
        key: (seed, source, lane), from which all random choices follow.
        state: Where to go on.
    """

    pieces: Sequence[Piece]
    reader: Reader
    tokenizer: Tokenizer
    packer: Packer
    key: tuple[int, int, int]
    state: LaneState

    def rows(self) -> Iterator[tuple[Planes, LaneState]]:
        """Yield rows for ever, int32 [4, seq_len], each with the state after it.

        Raises:
            DataError: A document cannot be read or encoded, or an epoch holds no document.
        """
        state = self.state
        while True:
            order = permutation(len(self.pieces), *self.key, state.epoch)
            spans = self._spans([self.pieces[place] for place in order], state)
            builder = BlockBuilder(spans, self.packer.seq_len, self.packer.policy)
            empty = True
            for block, dropped, following in builder:
                empty = False
                plan = self.packer.plan(block)
                if self.packer.policy == "best_fit":
                    shuffled = permutation(len(plan), *self.key, state.epoch, state.block)
                    plan = [plan[place] for place in shuffled]
                for planes in self.packer.assemble(block, plan[state.row :]):
                    state = state._replace(row=state.row + 1)
                    yield planes, state
                counts = {"documents": state.documents + block.closed, "dropped": state.dropped + dropped}
                if following is None:
                    state = LaneState(epoch=state.epoch + 1, **counts)
                else:
                    state = LaneState(state.epoch, state.block + 1, *following, **counts)
            if empty:
                names = ", ".join(sorted({piece.path for piece in self.pieces})[:3])
                raise DataError("a lane finds no document in its files; remove the empty ones", file=names)

    def _spans(self, pieces: Sequence[Piece], state: LaneState) -> Iterator[Span]:
        """Yield the epoch's tokens from the block address of `state` on."""
        offset, first, skip = state.offset, bool(state.first), state.skip
        for place in range(state.piece, len(pieces)):
            piece = pieces[place]
            chunks = self.reader.chunks(piece, piece.start if offset < 0 else offset, first)
            tokens = 0 if first and skip == 0 else 1  # of the current document; the address may be inside of one
            for chunk in chunks if self.tokenizer.streams else _whole_documents(chunks):
                ids = self._encode(piece, chunk)
                tokens = len(ids) + (0 if chunk.first and skip == 0 else tokens)
                if chunk.last and tokens:
                    ids = np.append(ids, np.asarray(self.tokenizer.eos_id, dtype=ids.dtype))
                if len(ids) or chunk.last:
                    yield Span(ids[skip:], Address(place, chunk.offset, int(chunk.first), skip), chunk.last)
                skip = 0
            offset, first = -1, True

    def _encode(self, piece: Piece, chunk: Chunk) -> Ids:
        try:
            return self.tokenizer.encode(chunk.data)
        except TokenizeError as error:
            record, offset = self.reader.locate(piece.path, chunk.offset, error.offset or 0)
            raise DataError(error.problem, file=piece.path, record=record, offset=offset) from None


def _whole_documents(chunks: Iterator[Chunk]) -> Iterator[Chunk]:
    """Join the chunks of each document, for tokenizers that must see all of it."""
    parts: list[Chunk] = []
    for chunk in chunks:
        parts.append(chunk)
        if chunk.last:
            data = chunk.data if len(parts) == 1 else b"".join(part.data for part in parts)
            yield Chunk(data, parts[0].offset, True, True)
            parts = []
