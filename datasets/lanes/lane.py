"""A lane: one of a source's fixed, deterministic streams of packed rows, without end.

What is read is encoded, cut into blocks and packed; the documents of a block are shuffled before, its rows after that.
Everything follows from (seed, source, lane) and a state of fourteen integers, so a lane resumes by opening one block
again: the cost is a block, however far the lane has come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..errors import DataEnd, DataError
from ..randomness import permutation
from ..rows import Block, PackedRow, Packer, Part
from .blocks import Address, AddressedBlock, Counts
from .raw_documents import DOCUMENTS, ROWS

EMPTY_EPOCHS = 1024  # of a lane, where its source has fewer documents than lanes


class LaneState(NamedTuple):
    """Where a lane stands. All of it is as of the beginning of a block, but for `row`.

    Attributes:
        epoch: Times that the lane has read all of its documents.
        block: Blocks read in this epoch.
        piece: Part of the address of the block, see `Address`; with offset -1, the beginning of the piece.
        offset: Part of the address of the block.
        first: Part of the address of the block.
        skip: Part of the address of the block.
        row: Rows taken of the block.
        documents: Documents finished, in all epochs.
        dropped: Documents without tokens met, in all epochs.
        skipped: Bad records passed over, in all epochs.
        mapped: Letters replaced by others, in all epochs.
        truncated: Documents of which the first row was used, in all epochs.
        tag: Part of the address of the block.
        context: Part of the address of the block.
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
    mapped: int = 0
    truncated: int = 0
    tag: int = 0
    context: int = 0

    @property
    def address(self) -> Address:
        """Address of the block that the lane stands in."""
        return Address(self.piece, self.offset, self.first, self.skip, self.tag, self.context)

    def behind(self, counts: Counts, following: Address | None) -> "LaneState":
        """Return the state at the beginning of the block after one in which `counts` were met."""
        met = {name: getattr(self, name) + count for name, count in counts._asdict().items()}
        if following is None:
            return LaneState(epoch=self.epoch + 1, **met)
        return LaneState(epoch=self.epoch, block=self.block + 1, **following._asdict(), **met)


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
        state: Where to continue.
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
        met = state.epoch
        while self.max_epochs is None or state.epoch < self.max_epochs:
            empty = True
            for block, counts, following in self.documents.blocks(state.epoch, state.address):
                empty = empty and not len(block.lengths)
                before, taken, after = state[:6], state.row, state[7:]
                for row in self.packer.rows(*self._shuffled(block, state)):
                    taken += 1
                    yield row, LaneState(*before, taken, *after)  # `_replace` takes four times as long
                state = state.behind(counts, following)
            if not empty:
                met = state.epoch
            elif state.epoch > met + EMPTY_EPOCHS:
                raise DataError("a lane of this source finds no document with a token in its files", file=self.name)
            elif state.block == 0:
                state = state.behind(Counts(0), None)
        raise DataEnd(f"source {self.name!r} was read data.sources.max_epochs = {self.max_epochs} times")

    def _shuffled(self, block: Block, state: LaneState) -> tuple[Block, list[list[Part]]]:
        """Return the block with its documents in random order, and those rows of its plan that are still to come."""
        order = permutation(len(block.lengths), *self.key, state.epoch, state.block, DOCUMENTS)
        block = block.in_order(order)
        plan = self.packer.plan(block)
        places = permutation(len(plan), *self.key, state.epoch, state.block, ROWS)
        return block, [plan[place] for place in places[state.row :]]
