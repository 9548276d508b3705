"""A lane: one of a source's fixed, deterministic streams of packed rows, without end.

What is read is encoded, cut into blocks and packed; the documents of a block are shuffled before, its rows after that.
Everything follows from (seed, source, lane) and a state of ten integers, so a lane resumes by opening one block again: the
cost is a block, however far the lane has come.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np

from .blocks import BAD, EMPTY, KEPT, Address, AddressedBlock, BlockBuilder, Stretch
from .errors import DataEnd, DataError
from .objectives import PackedRow
from .order import permutation
from .packing import Block, Packer, Part
from .pieces import Piece
from .records import Reader, Records, located
from .tokenizers import Encoded, TokenizeError, Tokenizer

# "cistron.data": one line for each record that is passed over, up to so many of a lane in a process; all are counted.
LOG = logging.getLogger("cistron.data")
LOGGED_RECORDS = 10
ROWS, DOCUMENTS, PIECES = range(3)  # what a permutation is of


class LaneState(NamedTuple):
    """Where a lane stands. All of it is as of the beginning of a block, but for `row`.

    Attributes:
        epoch: Times that the lane has read all of its documents.
        block: Blocks read in this epoch.
        piece: With `offset`, `first` and `skip`: address of the block; offset -1 is the beginning of the piece.
        offset: See `piece`.
        first: See `piece`.
        skip: See `piece`.
        row: Rows taken of the block.
        documents: Documents finished, in all epochs.
        dropped: Documents without tokens met, in all epochs.
        skipped: Bad records passed over, in all epochs.
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
    skipped: int = 0

    @property
    def address(self) -> Address:
        """Of the block."""
        return Address(self.piece, self.offset, self.first, self.skip)


class Documents(Protocol):
    """What a lane reads, over and over."""

    def blocks(self, epoch: int, start: Address) -> Iterator[AddressedBlock]:
        """Yield the blocks of an epoch from an address on; offset -1 is the beginning of its piece."""
        ...


@dataclass(frozen=True)
class Lane:
    """Rows of one lane of one source.

    Attributes:
        documents: What it reads.
        packer: Packs them.
        key: (seed, source, lane), from which all random choices follow.
        state: Where to go on.
        name: Of the source, for messages.
        max_epochs: Times to read all; None: for ever.
    """

    documents: Documents
    packer: Packer
    key: tuple[int, int, int]
    state: LaneState
    name: str
    max_epochs: int | None = None

    def rows(self) -> Iterator[tuple[PackedRow, LaneState]]:
        """Yield rows, each with the state after it.

        Raises:
            DataError: A document cannot be read or encoded, or an epoch holds no document.
            DataEnd: All documents were read `max_epochs` times.
        """
        state = self.state
        while self.max_epochs is None or state.epoch < self.max_epochs:
            empty = True
            for block, documents, dropped, skipped, following in self.documents.blocks(state.epoch, state.address):
                empty = False
                before, taken, after = state[:6], state.row, state[7:]
                for row in self.packer.rows(*self._shuffled(block, state)):
                    taken += 1
                    yield row, LaneState(*before, taken, *after)  # `_replace` takes four times as long
                counts = {
                    "documents": state.documents + documents,
                    "dropped": state.dropped + dropped,
                    "skipped": state.skipped + skipped,
                }
                if following is None:
                    state = LaneState(epoch=state.epoch + 1, **counts)
                else:
                    state = LaneState(state.epoch, state.block + 1, *following, **counts)
            if empty:
                raise DataError("a lane of this source finds no document with a token in its files", file=self.name)
        raise DataEnd(f"source {self.name!r} was read data.sources.max_epochs = {self.max_epochs} times")

    def _shuffled(self, block: Block, state: LaneState) -> tuple[Block, list[list[Part]]]:
        """Return the block with its documents in random order, and those rows of its plan that are still to come."""
        order = permutation(len(block.lengths), *self.key, state.epoch, state.block, DOCUMENTS)
        block = block.in_order(order)
        plan = self.packer.plan(block)
        places = permutation(len(plan), *self.key, state.epoch, state.block, ROWS)
        return block, [plan[place] for place in places[state.row :]]


@dataclass
class RawDocuments:
    """Documents of files that are read in order and encoded on the way.

    Attributes:
        pieces: The lane's parts of files.
        reader: Reads them.
        tokenizer: Encodes them.
        packer: That the blocks are for.
        key: As the lane's: pieces are read in an order drawn per epoch.
        skip_bad: Pass over bad records instead of raising.
    """

    pieces: Sequence[Piece]
    reader: Reader
    tokenizer: Tokenizer
    packer: Packer
    key: tuple[int, int, int]
    skip_bad: bool
    _logged: int = field(default=0, init=False)

    def blocks(self, epoch: int, start: Address) -> Iterator[AddressedBlock]:
        """See `Documents`."""
        order = permutation(len(self.pieces), *self.key, epoch, PIECES)
        stretches = self._stretches([self.pieces[place] for place in order], start)
        return iter(BlockBuilder(stretches, self.packer.seq_len, self.packer.policy))

    def _stretches(self, pieces: Sequence[Piece], start: Address) -> Iterator[Stretch]:
        """Yield the epoch's documents from `start` on."""
        offset, first, skip = start.offset, bool(start.first), start.skip
        for place in range(start.piece, len(pieces)):
            piece = pieces[place]
            groups = self.reader.groups(piece, piece.start if offset < 0 else offset, first)
            for stretch in self._encoded(place, piece, groups if self.tokenizer.streams else _whole_documents(groups)):
                yield stretch.behind(0, skip) if skip else stretch
                skip = 0
            offset, first = -1, True

    def _encoded(self, place: int, piece: Piece, groups: Iterator[Records]) -> Iterator[Stretch]:
        """Encode groups; what has no token is EMPTY, and what is bad is raised, or BAD."""
        tokens = True  # whether the document that a group continues has had any
        abandoned = False  # whether it turned out bad
        for group in groups:
            documents, offsets, first, last, error, bad_offset, stated, _ = group
            begin = 0
            if abandoned and not first and documents:
                begin, abandoned = 1, len(documents) == 1 and not last
            while begin < len(documents):
                opens = first or begin > 0
                encoded, bad = self._encode(documents[begin:])
                end = begin + len(encoded.lengths)
                if end > begin:
                    whole = last or bad is not None
                    of_records = None if stated is None else np.array(stated[begin:end])
                    stretch = self._stretch(place, offsets[begin:end], encoded, opens, whole, tokens)._replace(
                        stated=of_records
                    )
                    tokens = whole or bool(stretch.lengths[-1]) or (tokens and not opens and end - begin == 1)
                    yield stretch
                if bad is not None:
                    self._pass_over(partial(self._located, piece, offsets[end], bad))
                    continued = end == 0 and not first
                    yield self._bad(place, offsets[end], not continued, continued and tokens, stated is not None)
                    abandoned = end == len(documents) - 1 and not last
                    tokens = True
                    end += 1
                begin = end
            if error is not None and not (group.breaks_off and abandoned):
                self._pass_over(partial(located, self.reader, error, bad_offset))
                yield self._bad(place, bad_offset, not group.breaks_off, group.breaks_off and tokens, stated is not None)
            if error is not None:
                abandoned, tokens = False, True

    def _encode(self, documents: list[bytes]) -> tuple[Encoded, TokenizeError | None]:
        """Encode documents up to the first bad one."""
        try:
            return self.tokenizer.encode_batch(documents), None
        except TokenizeError as bad:
            if bad.index == 0:
                return Encoded(np.empty(0, dtype=self.tokenizer.dtype), []), bad
            return self.tokenizer.encode_batch(documents[: bad.index]), bad

    def _stretch(self, place: int, offsets: list[int], encoded: Encoded, first: bool, last: bool, tokens: bool) -> Stretch:
        """Take the eos off a document that goes on, and documents that have nothing else."""
        ids, lengths = encoded.ids, np.array(encoded.lengths, dtype=np.int64)
        empty = lengths == 1
        if not last:
            ids, lengths[-1], empty[-1] = ids[:-1], lengths[-1] - 1, False
        if not first and tokens:
            empty[0] = False
        if empty.any():
            ids = ids[np.repeat(~empty, lengths)]
            lengths[empty] = 0
        return Stretch(ids, lengths, offsets, np.where(empty, EMPTY, KEPT).astype(np.int8), place, first, last)

    def _bad(self, place: int, offset: int, first: bool, ended: bool, labelled: bool) -> Stretch:
        """Return a bad record: nothing, or the eos of the document whose beginning was good and has been yielded."""
        ids = np.full(int(ended), self.tokenizer.eos_id, dtype=self.tokenizer.dtype)
        stated = np.array([np.nan]) if labelled else None
        return Stretch(ids, np.array([len(ids)]), [offset], np.array([BAD], dtype=np.int8), place, first, True, stated=stated)

    def _pass_over(self, problem: Callable[[], DataError]) -> None:
        """Raise a problem, or log it, or only count it, which must not cost the search for its record."""
        if not self.skip_bad:
            raise problem()
        self._logged += 1
        if self._logged <= LOGGED_RECORDS:
            more = "; further ones of this lane are counted only" if self._logged == LOGGED_RECORDS else ""
            LOG.warning("skipped: %s%s", problem(), more)

    def _located(self, piece: Piece, offset: int, bad: TokenizeError) -> DataError:
        record, place = self.reader.locate(piece.path, offset, bad.offset or 0)
        return DataError(bad.problem, file=piece.path, record=record, offset=place)


def _whole_documents(groups: Iterator[Records]) -> Iterator[Records]:
    """Join the stretches of a document, for tokenizers that must see all of it."""
    parts: list[bytes] = []
    begun, opened = 0, True
    for group in groups:
        assert group.last or group.stated is None, "records with labels come whole"
        documents, offsets, first = list(group.documents), list(group.offsets), group.first
        if parts and documents:
            parts.append(documents[0])
            if len(documents) == 1 and not group.last:
                continue
            documents[0], offsets[0], first, parts = b"".join(parts), begun, opened, []
        if group.breaks_off and parts:
            group, first, parts = group._replace(bad_offset=begun), opened, []
        if documents and not group.last:
            opened = bool(documents[1:]) or first
            parts, begun = [documents.pop()], offsets.pop()
        yield Records(documents, offsets, first, True, group.error, group.bad_offset, group.stated)
