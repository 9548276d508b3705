"""A corpus in pieces, permuted anew in each epoch and divided among lanes by bytes: arithmetic on the sizes of files.

An epoch lays all pieces of a source in a random order on one line of as many bytes as the files have, and lane l of n
reads what lies between l / n and (l + 1) / n of it (R. McNaughton, "Scheduling with deadlines and loss functions",
Management Science 6, 1959). So lanes are equally long, whatever the sizes of files, and a piece is divided where two
lanes meet: at most lanes - 1 are.

How a piece is divided depends on the file. A piece of bytes is divided at a byte, since it stands for the records that
begin in it. A piece that can be read from its beginning only (gzip, a row group) is read in stripes of consecutive
records: stripe t is its lane's by a fixed rule, see `Part.owner`. One that is a single document goes to the lane in
which its middle lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..files import DataFile, is_remote
from ..randomness import Shuffle, random_bits

# Large enough that a seek costs nothing, small enough that a block of a lane (192 rows) comes from several places.
MIN_PIECE_BYTES, MAX_PIECE_BYTES = 2**16, 2**26
PIECES_PER_LANE = 32
# Of remote files: a request reads 8 MiB ahead, so that a small piece costs what a large one does.
REMOTE_PIECES_PER_LANE = 4
# Bytes of a stripe: a lane's share of a small file is some stripes, and a stripe's own cost is small.
MIN_STRIPE_BYTES, MAX_STRIPE_BYTES = 2**13, 2**20
STRIPES_PER_LANE = 32
PIECES = 2  # what a permutation is of, beside `lanes.raw_documents.ROWS` and `DOCUMENTS`
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio
Integers = npt.NDArray[np.int64]


class Piece(NamedTuple):
    """The records of a file that begin between two places.

    Attributes:
        path: Path or URL.
        start: Its first offset, as its reader counts: a byte of the uncompressed file, or a row.
        end: The offset after its last, None for "to the end" where that is unknown.
        size: Bytes as stored, by which lanes are balanced.
        content: What the reader has read of it already, whole records; None: it is read from the file.
    """

    path: str
    start: int
    end: int | None
    size: int
    content: Any = None

    def share(self, offset: int) -> float | None:
        """Return which share of the piece lies before an offset, None where its end is unknown."""
        if self.end is None:
            return None
        return min((offset - self.start) / max(self.end - self.start, 1), 1.0)


class Part(NamedTuple):
    """A piece that lies in several lanes, and is read in stripes.

    Attributes:
        begin: Its first byte on the line.
        size: Its bytes.
        line: Bytes of the line.
        lanes: How many share the line.
        shift: Random, of 64 bits.
    """

    begin: int
    size: int
    line: int
    lanes: int
    shift: int

    @property
    def even(self) -> int:
        """How many lanes it has bytes for, at least one."""
        return max(round(self.size * self.lanes / self.line), 1)

    def owner(self, stripe: int) -> int:
        """Return the lane of a stripe.

        Each `even` stripes that follow one another lie evenly in the piece, and the golden ratio shifts them from one
        such group to the next. So a lane that lies in it whole gets one stripe of each group, and one that lies in it
        by a share gets that share of the stripes, however many there are.
        """
        even = self.even
        stripe += self.shift % even  # other lanes in each epoch
        place = ((stripe % even << 64) + (GOLDEN * (stripe // even) + self.shift) % 2**64) // even
        return ((self.begin + (self.size * place >> 64)) * self.lanes + self.lanes - 1) // self.line

    @property
    def stripe_bytes(self) -> int:
        """Bytes of a stripe: of a file four times as long, uncompressed, a lane gets some `STRIPES_PER_LANE`."""
        return min(max(4 * self.line // (self.lanes * STRIPES_PER_LANE), MIN_STRIPE_BYTES), MAX_STRIPE_BYTES)


def target_size(files: Sequence[DataFile], lanes: int) -> int:
    """Return the bytes, as stored, that a piece of these files should have."""
    each = REMOTE_PIECES_PER_LANE if any(is_remote(file.path) for file in files) else PIECES_PER_LANE
    return min(max(sum(file.size for file in files) // (each * lanes) + 1, MIN_PIECE_BYTES), MAX_PIECE_BYTES)


@dataclass(eq=False)
class PieceLine:
    """The pieces of a source, and what each lane reads of them in an epoch.

    Attributes:
        pieces: Of all files, in their order.
        divided: How each can be divided: "bytes", "stripes" or "never", see above.
        lanes: How many share them.
        key: (seed, source), from which the order of an epoch follows.
    """

    pieces: Sequence[Piece]
    divided: Sequence[str]
    lanes: int
    key: tuple[int, int]
    _orders: dict[int, tuple[Integers, Integers]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Find the length of the line: a piece without a byte has one, so that it is somebody's."""
        self._sizes = np.array([max(piece.size, 1) for piece in self.pieces], dtype=np.int64)
        self.bytes = int(self._sizes.sum())

    def __getstate__(self) -> dict[str, object]:
        """Travel to a worker without the orders."""
        return {**self.__dict__, "_orders": {}}

    def order(self, epoch: int) -> tuple[Integers, Integers]:
        """Return the numbers of the pieces in the order of an epoch, and where each begins on the line."""
        if epoch not in self._orders:
            count = len(self.pieces)
            order = Shuffle(count, *self.key, epoch, PIECES)[np.arange(count)]
            begins = np.concatenate([[0], np.cumsum(self._sizes[order])])
            # Lanes are in one epoch, or in two that follow one another.
            self._orders = {near: of for near, of in self._orders.items() if abs(near - epoch) == 1}
            self._orders[epoch] = (order, begins)
        return self._orders[epoch]

    def count(self, lane: int, epoch: int) -> tuple[int, int]:
        """Return which places of the line lie, maybe in part, in a lane: the first one, and that behind the last."""
        _, begins = self.order(epoch)
        low, high = self._bounds(lane)
        if low == high:
            return 0, 0
        return int(np.searchsorted(begins, low, side="right")) - 1, int(np.searchsorted(begins, high, side="left"))

    def of_lane(self, lane: int, epoch: int, place: int) -> tuple[Piece | None, Part | None]:
        """Return what a lane reads at a place of the line, if anything, and the part of which it has some stripes."""
        order, begins = self.order(epoch)
        number, begin, end = int(order[place]), int(begins[place]), int(begins[place + 1])
        low, high = self._bounds(lane)
        piece = self.pieces[number]
        if low <= begin and end <= high:
            return piece, None
        if self.divided[number] == "never":
            return piece if low <= (begin + end) // 2 < high else None, None
        if self.divided[number] == "stripes":
            shift = int(random_bits(1, *self.key, epoch, PIECES, place)[0])
            return piece, Part(begin, end - begin, self.bytes, self.lanes, shift)
        assert piece.end is not None
        length, size = piece.end - piece.start, end - begin
        first, last = ((min(max(at, begin), end) - begin) * length // size for at in (low, high))
        cut = piece._replace(start=piece.start + first, end=piece.start + last, size=min(high, end) - max(low, begin))
        return cut if first < last else None, None

    def bytes_of(self, lane: int, epoch: int) -> int:
        """Return how many bytes a lane reads in an epoch; only single documents make lanes unequal."""
        low, high = self._bounds(lane)
        if "never" not in self.divided:
            return high - low
        _, begins = self.order(epoch)
        read = 0
        for place in range(*self.count(lane, epoch)):
            piece, part = self.of_lane(lane, epoch, place)
            if part is not None:
                read += min(high, int(begins[place + 1])) - max(low, int(begins[place]))
            elif piece is not None:
                read += piece.size
        return read

    def _bounds(self, lane: int) -> tuple[int, int]:
        return lane * self.bytes // self.lanes, (lane + 1) * self.bytes // self.lanes
