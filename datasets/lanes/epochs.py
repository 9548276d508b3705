"""Epochs of a source: all lanes end one together, so that no document is read a second time before all were read once.

A lane whose epoch is over gives rows without documents until the last row of the last lane has come; with the next row
of the source all lanes begin the next epoch. So at every row of the run the counts of any two documents of a source
differ by one at most, however unequal the lanes are.

Which row is the last one follows from the lanes alone. But a rank reads some lanes only. Each row of a lane tells how
many of the lane certainly follow, most of a block. Ranks exchange the longest such promise; until it is kept, by the
row of another rank mostly, all know that the epoch goes on. So they exchange a few numbers once in a block of rows of
each lane, and in a last exchange find that no rank has a row left.
"""

from collections.abc import Callable, Sequence

from ..errors import DataError

# Returns the greatest of each value over all ranks, whose calls come in the same order.
Greatest = Callable[[Sequence[int]], Sequence[int]]


class Epochs:
    """The epochs of one source, as one rank follows them.

    Args:
        name: Of the source, for messages.
        began: Epoch in which each lane stands, also those of other ranks: the source is in the earliest.
        own: Lanes of this rank.
        seen: Whether a document may have come in this epoch already.
        greatest: Asks the other ranks.
        most: Epochs to read; None: without end.

    Attributes:
        epoch: Times that all documents have been read.
        over: Whether they have been read `most` times.
    """

    def __init__(
        self,
        name: str,
        began: Sequence[int],
        own: Sequence[int],
        *,
        seen: bool = False,
        greatest: Greatest = list,
        most: int | None = None,
    ) -> None:
        self.epoch = min(began)
        self.over = most is not None and self.epoch >= most
        self._name, self._lanes, self._most, self._greatest = name, len(began), most, greatest
        # Rows of each own lane that certainly follow in this epoch; 0 where the lane's is over.
        self._left = {lane: int(began[lane] == self.epoch) for lane in own}
        self._seen = seen
        # The epoch certainly goes on until so many more rows of this lane have come.
        self._promised, self._by = 0, 0

    def arrive(self, lane: int) -> None:
        """Know that the next row of the source, this rank's or another's, is one of `lane`.

        Raises:
            DataError: An epoch is over, and no document has come in it.
        """
        if not self._promised and not self.over:
            self._ask(lane)
        if lane == self._by:
            self._promised -= 1

    def reads(self, lane: int) -> bool:
        """Return whether an own lane has rows of this epoch to come."""
        return self._left[lane] > 0 and not self.over

    def took(self, lane: int, left: int, documents: bool) -> None:
        """Know what a row of an own lane says of those that follow, and whether it has documents."""
        self._left[lane] = left
        self._seen |= documents

    def _ask(self, lane: int) -> None:
        """Find out whether the epoch goes on, and how long at least; if not, the row of `lane` begins the next one."""
        longest = max(left * self._lanes + own for own, left in self._left.items())
        longest, seen = self._greatest([longest, int(self._seen)])
        self._promised, self._by = divmod(longest, self._lanes)
        if self._promised:
            return
        if not seen:
            raise DataError("no document with a token is in its files", file=self._name)
        self.epoch += 1
        self.over = self._most is not None and self.epoch >= self._most
        self._left = dict.fromkeys(self._left, 1)
        self._seen = False
        # Each lane has a row in each epoch; this one comes last where there is one source.
        self._promised, self._by = 1, (lane - 1) % self._lanes
