"""Stripes of a piece that can be read from its beginning only, cut once for all lanes of a process.

Lanes of a process make rows in turn, so they come to a stripe at nearly the same time. What one of them meets on the
way to its own stripe is held for the others. A lane that comes too late, since it was opened again or since too much
was held, cuts the piece anew by itself and passes over what is not its own, which takes as long as inflating it.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..errors import DataError
from ..readers import Part, Piece, PieceLine, Reader

# Of a source in a process, for lanes that have not come to them: those of a worker are a block of text apart, at most
# 16 MB each and some 2 MB in rows of 2,048.
HELD_BYTES = 2**27


@dataclass(eq=False)
class LanePieces:
    """The pieces of a source as its lanes read them, in the order of an epoch.

    Attributes:
        line: Which piece, or which of its stripes, is which lane's.
        reader: Of the source.
    """

    line: PieceLine
    reader: Reader
    _shared: "dict[tuple[int, int], SharedStripes]" = field(default_factory=dict, init=False)

    def __getstate__(self) -> dict[str, object]:
        """Travel to a worker without what is open."""
        return {**self.__dict__, "_shared": {}}

    def of_lane(self, lane: int, epoch: int, place: int = 0, offset: int = -1) -> Iterator[tuple[int, Piece]]:
        """Yield what a lane reads from a place of its order on, with the place; stripes of a piece share one.

        Args:
            lane: Its number.
            epoch: Times that all has been read.
            place: Of a piece among those of the lane.
            offset: In this piece, where its stripes before are left out; -1: its beginning.
        """
        first, last = self.line.count(lane, epoch)
        for at in range(first + place, last):
            piece, part = self.line.of_lane(lane, epoch, at)
            if piece is not None and part is None:
                yield at - first, piece
            elif piece is not None and part is not None:
                stripes = self._stripes((epoch, at), piece, part)
                for stripe in stripes.of_lane(lane, max(offset, 0)):
                    yield at - first, stripe
                if stripes.over:
                    self._shared.pop((epoch, at), None)
            offset = -1

    def _stripes(self, key: tuple[int, int], piece: Piece, part: Part) -> "SharedStripes":
        if key not in self._shared:
            shared = SharedStripes(
                lambda: self.reader.stripes(piece, part.stripe_bytes), part.owner, HELD_BYTES * part.even // self.line.lanes
            )
            if part.even == 1:  # two lanes have it, one as the last of an epoch and the other as the first
                shared.limit = 0
                return shared
            self._shared[key] = shared
        return self._shared[key]


class SharedStripes:
    """The stripes of one piece.

    Args:
        cut: Yields all of them, from the first on.
        owner: Returns the lane of a stripe by its number.
        limit: Bytes of stripes that are held for lanes that have not come to them, at most.

    Attributes:
        over: Whether all stripes were cut and nothing is held for a lane that has been here.
    """

    def __init__(self, cut: Callable[[], Iterator[Piece]], owner: Callable[[int], int], limit: int = HELD_BYTES) -> None:
        self._cut, self._owner, self.limit = cut, owner, limit
        self._stripes = enumerate(cut())
        self._error: DataError | None = None
        self._held: dict[int, deque[Piece]] = {}  # of each lane
        self._bytes = 0
        self._cut_all = False
        self._come: dict[int, int] = {}  # of each lane that has been here: the end of its last stripe
        self._late: set[int] = set()  # lanes of which something was given up, or given before

    @property
    def over(self) -> bool:
        return self._cut_all and not any(self._held.get(lane) for lane in self._come)

    def of_lane(self, lane: int, offset: int) -> Iterator[Piece]:
        """Yield the stripes of a lane that end behind `offset`.

        Raises:
            DataError: The piece cannot be read.
        """
        if offset < self._come.get(lane, 0):
            self._late.add(lane)
        while lane not in self._late:
            if (stripe := self._next(lane)) is None:
                return
            assert stripe.end is not None
            self._come[lane] = stripe.end
            if stripe.end > offset:
                offset = stripe.end
                yield stripe
        for number, stripe in enumerate(self._cut()):
            if self._owner(number) == lane and (stripe.end or 0) > offset:
                yield stripe

    def _next(self, lane: int) -> Piece | None:
        """Return the next stripe of a lane that is not late; None at the end."""
        if self._held.get(lane):
            stripe = self._held[lane].popleft()
            self._bytes -= stripe.size
            return stripe
        self._come.setdefault(lane, 0)
        if self._error is not None:
            raise self._error
        try:
            for number, stripe in self._stripes:
                if (owner := self._owner(number)) == lane:
                    return stripe
                if owner not in self._late:
                    self._hold(owner, stripe)
        except DataError as error:
            self._error = error
            raise
        self._cut_all = True
        return None

    def _hold(self, lane: int, stripe: Piece) -> None:
        self._held.setdefault(lane, deque()).append(stripe)
        self._bytes += stripe.size
        while self._bytes > self.limit:
            # A lane that was never here may be another process's.
            most = max(self._held, key=lambda lane: (lane not in self._come, sum(held.size for held in self._held[lane])))
            self._bytes -= sum(held.size for held in self._held.pop(most))
            self._late.add(most)
