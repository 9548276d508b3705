"""Which source each global row is drawn from: exact shares, spread as evenly as rows allow.

Rows are planned in rounds of `lanes`. Within the stream of rounds the sources follow Tijdeman's chairman assignment
(R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32, 1980): among the sources that the next row
does not put ahead of their share, the one whose deadline comes first. Each count is then within a row of its share.

Row i comes from lane i mod lanes of its source, and a regular pattern would marry sources to lanes: two equal sources
alternate, and the odd lanes of the first would never be read. So each round is rotated by a random number of lanes.
A rotation moves rows within their round only; at every row a count is within three rows of its share.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from .order import random_bits

_PURPOSE = 0x6D6978  # "mix": keeps these draws apart from the lanes'


class Mixer:
    """Source numbers of consecutive global rows.

    Args:
        weights: Of the sources, positive, in any unit.
        lanes: Rows of a round.
        seed: Of the rotations.
        row: First row that will be asked for.
        counts: The state at `row`, as `counts(row)` returned it; zeros at row 0.
    """

    def __init__(self, weights: Sequence[float], lanes: int, seed: int, row: int, counts: Sequence[int]) -> None:
        # As integers in proportion: shares never drift, however long the run.
        fractions = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        self._weights = [int(fraction * scale) for fraction in fractions]
        self._lanes = lanes
        self._seed = seed
        self._round = row // lanes - 1
        self._before: list[int] = []
        self._after = list(counts)
        self._plan: list[int] = []

    def source(self, row: int) -> int:
        """Return the source of global row `row`; rows are asked for in ascending order."""
        self._advance(row)
        return self._plan[row % self._lanes]

    def counts(self, row: int) -> list[int]:
        """Return the state at row `row`: rows of each source in all rounds before its own."""
        self._advance(row)
        return list(self._before)

    def _advance(self, row: int) -> None:
        target = row // self._lanes
        assert self._round <= target, "rows are asked for in ascending order"
        while self._round < target:
            self._round += 1
            self._before = list(self._after)
            self._plan = self._next_round()

    def _next_round(self) -> list[int]:
        sources = len(self._weights)
        if sources == 1:
            self._after[0] += self._lanes
            return [0] * self._lanes
        total, counts = sum(self._weights), self._after
        slack = 2 * sources - 2
        plan = []
        for row in range(sum(counts) + 1, sum(counts) + 1 + self._lanes):
            behind = [
                index for index, weight in enumerate(self._weights) if slack * (weight * row - counts[index] * total) >= total
            ]
            chosen = min(behind, key=lambda index: Fraction(slack * (counts[index] + 1) - 1, self._weights[index]))
            counts[chosen] += 1
            plan.append(chosen)
        turn = int(random_bits(1, self._seed, _PURPOSE, self._round)[0]) % self._lanes
        return plan[turn:] + plan[:turn]
