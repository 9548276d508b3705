"""Which source, and which lane, each global row is drawn from: at every row each source is within a row of its share.

A share is the sum of a source's weights, normalised, over all rows so far. Stages change the weights at given rows. For
n sources, let s = 1 / (2n - 2). The k-th row of a source may come when the share has reached k - 1 + s, and must come
before it exceeds k - s. Such a schedule exists for any weights, and to take the earliest deadline first finds it (R.
Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980). It keeps every count within 1 - s of its
share.

A schedule is often periodic. With row i from lane i mod `lanes`, some lanes of a source would then never be read: of
two equal sources, which alternate, the first would only be read in its even lanes. So each round of `lanes` rows is
rotated: its rows come from the lanes in order, beginning with the one by which sources are drawn most evenly from their
lanes. After 1,000 rounds of 16 lanes the lanes of a source differ by 2 to 5 rows. Random rotations leave 30 to 50, for
which the lanes that are ahead would have to wait, since an epoch lasts until its last lane has been read.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from ..randomness import random_bits

RowWeights = tuple[int, Sequence[float]]  # first row, and the weights of all sources from there on
_PURPOSE = 0x6D6978  # "mix": keeps these draws apart from the lanes'
# Rotations that are compared; of more lanes so many are drawn: 256 lanes of two sources are still within a row.
_CANDIDATES = 64


class Mixture(NamedTuple):
    """Where a mixer stands.

    Attributes:
        begin: Row at which the counting began.
        row: The next row.
        counts: Rows of each source since `begin`.
        lanes: The same for each lane of each source; empty where there is one source, or where all are 0.
        rotation: By how many lanes the round of `row` is rotated, where a part of it has come.
    """

    begin: int = 0
    row: int = 0
    counts: Sequence[int] = ()
    lanes: Sequence[Sequence[int]] = ()
    rotation: int | None = None


BEGINNING = Mixture()


class Mixer:
    """Sources and lanes of consecutive global rows.

    Args:
        stages: First row and weights of each, ascending, the first from row 0 on. Weights are not negative, not all 0,
            and in any unit.
        lanes: Rows of a round.
        seed: Of the rotations, where several are as good.
        at: Where to begin.
    """

    def __init__(self, stages: Sequence[RowWeights], lanes: int, seed: int, at: Mixture = BEGINNING) -> None:
        self._lanes, self._seed = lanes, seed
        self._begin, self._row = at.begin, at.row
        self._shares = _Shares(stages, at.begin)
        sources = len(stages[0][1])
        self._counts = list(at.counts) or [0] * sources  # those of the planned rows included
        self._several = sources > 1
        self._taken = [list(lane) for lane in at.lanes] or [[0] * lanes for _ in range(sources * self._several)]
        self._windows = [self._window(source) for source in range(sources)] if self._several else []
        self._planned: list[int] = []  # sources of the rows of this round that are still to come, the next one last
        self._rotation = 0 if at.rotation is None else at.rotation
        if at.rotation is not None and at.row % lanes:
            self._plan()

    def next(self) -> tuple[int, int]:
        """Return source and lane of the next row."""
        row = self._row
        if not self._several:
            self._row += 1
            self._counts[0] += 1
            return 0, row % self._lanes
        if not self._planned:
            self._plan()
            self._rotate()
        self._row += 1
        source, lane = self._planned.pop(), (row + self._rotation) % self._lanes
        self._taken[source][lane] += 1
        return source, lane

    def state(self) -> Mixture:
        """Return where it stands, by value."""
        if not self._several:
            return Mixture(self._begin, self._row, list(self._counts))
        lanes = [list(lanes) for lanes in self._taken]
        return Mixture(self._begin, self._row, [sum(of) for of in lanes], lanes, self._rotation)

    def _plan(self) -> None:
        """Choose the sources of the rows that are still to come of this round."""
        planned = []
        for row in range(self._row, (self._row // self._lanes + 1) * self._lanes):
            chosen = min((deadline, source) for source, (release, deadline) in enumerate(self._windows) if release <= row)[1]
            self._counts[chosen] += 1
            self._windows[chosen] = self._window(chosen)
            planned.append(chosen)
        self._planned = planned[::-1]

    def _rotate(self) -> None:
        """Choose the rotation of the planned rows whose lanes have had the fewest rows of their sources."""
        row, lanes = self._row, self._lanes
        draws = random_bits(1 + _CANDIDATES, self._seed, _PURPOSE, row // lanes)
        candidates = np.arange(lanes) if lanes <= _CANDIDATES else (draws[1:] % np.uint64(lanes)).astype(np.int64)
        places = (np.arange(row, row + len(self._planned)) + candidates[:, None]) % lanes
        taken = np.array(self._taken)[np.array(self._planned[::-1]), places].sum(1)
        best = candidates[taken == taken.min()]
        self._rotation = int(best[int(draws[0] % np.uint64(len(best)))])

    def _window(self, source: int) -> tuple[int, int]:
        """Return the first and the last row at which the next row of `source` may stand."""
        shares, count = self._shares, self._counts[source]
        # Standing at row r, it is counted in the prefix of r + 1 rows.
        release = shares.row(source, count * shares.unit + shares.slack, up=True) - 1
        return release, shares.row(source, (count + 1) * shares.unit - shares.slack, up=False)


class _Shares:
    """Cumulative shares of the sources, piecewise linear in rows, as integers: exact, however long the run.

    Attributes:
        unit: The share of one row.
        slack: s of the module's docstring, in the same unit.
    """

    def __init__(self, stages: Sequence[RowWeights], begin: int) -> None:
        exact = [[Fraction(str(weight)) for weight in weights] for _, weights in stages]
        rates = [[weight / sum(weights) for weight in weights] for weights in exact]
        self.slack = math.lcm(*(rate.denominator for rates_of_stage in rates for rate in rates_of_stage))
        self.unit = self.slack * (2 * len(stages[0][1]) - 2)
        self._pieces: list[tuple[int, list[int], list[int]]] = []  # first row, shares there, shares per row
        shares = [0] * len(stages[0][1])
        for number, (row, _) in enumerate(stages):
            following = stages[number + 1][0] if number + 1 < len(stages) else None
            if following is not None and following <= begin:
                continue
            first = max(row, begin)
            steps = [int(rate * self.unit) for rate in rates[number]]
            self._pieces.append((first, shares, steps))
            if following is not None:
                shares = [share + step * (following - first) for share, step in zip(shares, steps, strict=True)]

    def row(self, source: int, share: int, *, up: bool) -> int:
        """Return the row at which the share of `source` is `share`, rounded up or down; 2^63 where it never is."""
        for first, before, steps in reversed(self._pieces):
            if before[source] < share:
                if not steps[source]:
                    break
                missing = share - before[source]
                return first + (-(-missing // steps[source]) if up else missing // steps[source])
        return 2**63
