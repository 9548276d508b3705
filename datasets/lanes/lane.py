"""A lane: one of a source's fixed, deterministic streams of packed rows, without end.

What is read is encoded, cut into blocks and packed; the documents of a block are shuffled before, its rows after that.
Everything follows from (seed, source, lane) and a state of fourteen integers, so a lane resumes by opening one block
again: the cost is a block, however far the lane has come.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ..randomness import permutation
from ..rows import Block, PackedRow, Packer, Part
from .blocks import Address, AddressedBlock, Counts
from .raw_documents import DOCUMENTS, ROWS


class LaneState(NamedTuple):
    """Where a lane stands: in front of a row. All of it is as of the beginning of the row's block, but for `row`.

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


class LaneRow(NamedTuple):
    """A row of a lane.

    Attributes:
        packed: Its documents; none where the lane has none in an epoch, or none with a token behind its last row.
        state: Of the lane after it.
        left: Rows of the lane that certainly follow in the same epoch: 0 exactly at its last one.
    """

    packed: PackedRow
    state: LaneState
    left: int


class Documents(Protocol):
    """What a lane reads, over and over."""

    def blocks(self, epoch: int, start: Address) -> Iterator[AddressedBlock]:
        """Yield the blocks of an epoch from an address on, if any; offset -1 is the beginning of its piece."""
        ...


@dataclass(frozen=True)
class Lane:
    """Rows of one lane of one source.

    Attributes:
        documents: What it reads.
        packer: Packs them.
        key: (seed, source, lane), from which all random choices follow.
        state: Where to continue.
    """

    documents: Documents
    packer: Packer
    key: tuple[int, int, int]
    state: LaneState

    def rows(self) -> Iterator[LaneRow]:
        """Yield rows, at least one for each epoch: where there is no document, one without any.

        So the end of a lane's epoch is always at a row, and nobody has to look beyond a row to know of it.

        Raises:
            DataError: A document cannot be read or encoded.
        """
        state = self.state
        while True:
            epoch = state.epoch
            for block, counts, following in self.documents.blocks(epoch, state.address):
                after = state.behind(counts, following)
                before, taken, rest = state[:6], state.row, state[7:]
                block, plan = self._shuffled(block, state)
                left = len(plan) - 1 + (following is not None)
                for row in self.packer.rows(block, plan):
                    taken += 1
                    within = taken < state.row + len(plan)
                    # `_replace` takes four times as long
                    yield LaneRow(row, LaneState(*before, taken, *rest) if within else after, left)
                    left -= 1
                state = after
                if following is None and not plan:  # a row before has promised one more
                    yield LaneRow(PackedRow([]), state, 0)
            if state.epoch == epoch:
                state = state.behind(Counts(0), None)
                yield LaneRow(PackedRow([]), state, 0)

    def _shuffled(self, block: Block, state: LaneState) -> tuple[Block, list[list[Part]]]:
        """Return the block with its documents in random order, and those rows of its plan that are still to come."""
        order = permutation(len(block.lengths), *self.key, state.epoch, state.block, DOCUMENTS)
        block = block.in_order(order)
        plan = self.packer.plan(block)
        places = permutation(len(plan), *self.key, state.epoch, state.block, ROWS)
        return block, [plan[place] for place in places[state.row :]]
