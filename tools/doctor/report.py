"""What the doctor finds: a line for each thing it looked at, with the number and what it was compared with."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal, TypeAlias

from rich.table import Table as Grid
from rich.text import Text

from ...base import Table
from ...trainer.processes import Terminal

# From best to worst. "not here" is a thing that this machine or this launch does not have: nothing is wrong with it.
Verdict: TypeAlias = Literal["ok", "not here", "slow", "wrong"]
SEVERITY: dict[Verdict, int] = {"ok": 0, "not here": 1, "slow": 2, "wrong": 3}
COLOURS: dict[Verdict, str] = {"ok": "green", "not here": "dim", "slow": "yellow", "wrong": "bold red"}


class Line(Table):
    """One thing that was looked at."""

    part: str
    """Part of the doctor."""
    name: str
    """What was looked at."""
    verdict: Verdict
    """slow: it works below the rate it is compared with. wrong: training here fails or computes something else."""
    value: float | None = None
    """What was measured; unset where it is no number."""
    unit: str = ""
    """Of the value."""
    compared_with: str = ""
    """Bound, rate or version that the verdict comes from; or why there is none."""
    host: str = ""
    """Machine of the rank."""
    rank: int = 0
    """Rank that measured it; where several ranks did, the one with the worst verdict."""


class Report(Table):
    """What the doctor found on all ranks."""

    version: str
    """Of Cistron."""
    hosts: list[str]
    """Machine of every rank, in rank order; empty: the rank did not report."""
    device: str
    """Name of rank 0's device."""
    config: str
    """Job whose speed was measured."""
    seconds: float
    """How long all of it took."""
    part_seconds: dict[str, float]
    """How long each part took, on the slowest rank."""
    lines: list[Line]
    """In the order in which it was found."""

    def count(self, verdict: Verdict) -> int:
        """Return the number of lines with a verdict."""
        return sum(line.verdict == verdict for line in self.lines)


def merged(ranks: Sequence[Sequence[Line]]) -> list[Line]:
    """Return one line for each name of a part: the worst of the ranks, of equals the first rank's.

    Args:
        ranks: lines of every rank, in rank order. Names come in the order of the ranks' first lines, second lines, ...,
            which is that of checks that ranks have shared.
    """
    names = {line.name: None for row in zip_longest(*ranks) for line in row if line}
    worst: dict[str, Line] = {}
    for line in (line for lines in ranks for line in lines):
        if line.name not in worst or SEVERITY[line.verdict] > SEVERITY[worst[line.name].verdict]:
            worst[line.name] = line
    return [worst[name] for name in names]


def print_part(console: Terminal, part: str, seconds: float, lines: Sequence[Line], processes: int) -> None:
    """Print the lines of one part as a table."""
    console.rule(f"{part}, {seconds:.0f} s")
    grid = Grid("verdict", "what", "measured", "compared with", box=None)
    for line in lines:
        where = f" (rank {line.rank}, {line.host})" if processes > 1 and line.verdict in ("slow", "wrong") else ""
        verdict = Text(line.verdict, style=COLOURS[line.verdict])
        grid.add_row(verdict, line.name + where, measured(line), line.compared_with)
    console.print(grid)


def measured(line: Line) -> str:
    """Return a value and its unit, to three digits."""
    if line.value is None:
        return ""
    if line.unit == "%":
        return f"{line.value:.1%}"
    return f"{line.value:,.0f} {line.unit}" if abs(line.value) >= 1000 else f"{line.value:.3g} {line.unit}"
