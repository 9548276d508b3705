"""Which source, and which lane, each global row is drawn from: at every row each source is within a row of its share.

A share is the sum of a source's weights, normalised, over all rows so far. Stages change the weights at given rows. For
n sources, let s = 1 / (2n - 2). The k-th row of a source may come when the share has reached k - 1 + s, and must come
before it exceeds k - s. Such a schedule exists for any weights, and to take the earliest deadline first finds it (R.
Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980). It keeps every count within 1 - s of its
share.

A schedule is often periodic. With row i from lane i mod `lanes`, some lanes of a source would then never be read: of
two equal sources, which alternate, the first would only be read in its even lanes. So each round of `lanes` rows
is rotated: its rows come from the lanes in order, beginning with a random one.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from ..randomness import random_bits

RowWeights = tuple[int, Sequence[float]]  # first row, and the weights of all sources from there on
_PURPOSE = 0x6D6978  # "mix": keeps these draws apart from the lanes'


class Mixer:
    """Sources and lanes of consecutive global rows.

    Args:
        stages: First row and weights of each, ascending, the first from row 0 on. Weights are not negative, not all 0,
            and in any unit.
        lanes: Rows of a round.
        seed: Of the rotations.
        begin: Row at which the counting began.
        row: First row that is needed.
        counts: Rows of each source in `begin`..`row`; zeros where they are the same.
    """

    def __init__(
        self, stages: Sequence[RowWeights], lanes: int, seed: int, begin: int = 0, row: int = 0, counts: Sequence[int] = ()
    ) -> None:
        self._lanes = lanes
        self._seed = seed
        self._row = row
        self._rotation = (-1, 0)  # number of the round, and by how many lanes it is rotated
        self._shares = _Shares(stages, begin)
        sources = len(stages[0][1])
        self._counts = list(counts) or [0] * sources
        self._windows = [self._window(source) for source in range(sources)] if sources > 1 else []

    def lane(self, row: int) -> int:
        """Return the lane of global row `row`."""
        return (row + self.rotation(row)) % self._lanes

    def rotation(self, row: int) -> int:
        """Return by how many lanes the round of `row` is rotated."""
        number = row // self._lanes
        if self._windows and self._rotation[0] != number:
            self._rotation = number, int(random_bits(1, self._seed, _PURPOSE, number)[0]) % self._lanes
        return self._rotation[1]

    def source(self, row: int) -> int:
        """Return the source of global row `row`; call it with ascending rows, each once."""
        assert row >= self._row, "rows are asked for in ascending order"
        chosen = 0
        while self._row <= row:
            chosen = self._next()
        return chosen

    def counts(self, row: int) -> list[int]:
        """Return how many rows of each source come before `row`, which no call of `source` has passed."""
        while self._row < row:
            self._next()
        return list(self._counts)

    def _next(self) -> int:
        chosen = 0
        if self._windows:
            chosen = min(
                (deadline, source) for source, (release, deadline) in enumerate(self._windows) if release <= self._row
            )[1]
        self._counts[chosen] += 1
        self._row += 1
        if self._windows:
            self._windows[chosen] = self._window(chosen)
        return chosen

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
