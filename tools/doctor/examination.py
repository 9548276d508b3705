"""What a part of the doctor is given: this process among the others, the job, and where to put what it finds."""

import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from ...trainer.config import JobConfig
from ...trainer.processes import World
from .report import Line, Verdict

T = TypeVar("T")


def in_short(error: Exception) -> str:
    """Return type and first line of an error, 200 characters of it: a line of the report."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]


@dataclass
class Examination:
    """One part on one rank.

    Attributes:
        part: its name.
        world: this process among the others.
        config: the job whose speed is measured; its dump folder is the doctor's own, removed at the end.
        keep: called with every line at once, so that a part that hangs later has said it.
        host: name of this machine.
        lines: what was found so far.
    """

    part: str
    world: World
    config: JobConfig
    keep: Callable[[Line], None] = lambda line: None
    host: str = field(default_factory=socket.gethostname)
    lines: list[Line] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Device of this rank."""
        return self.world.device

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    def share(self, checks: Iterable[T]) -> list[T]:
        """Return what this rank checks: on its GPU all of it, on a CPU its share among the ranks of the host."""
        n = self.world.layout.world_size
        if self.on_gpu or n == 1:
            return list(checks)
        neighbours = [rank for rank, host in enumerate(self.world.gather(self.host)) if host == self.host]
        return list(checks)[neighbours.index(self.world.rank) :: len(neighbours)]

    def find(
        self, name: str, verdict: Verdict, value: float | None = None, unit: str = "", compared_with: str = "", rank: int = -1
    ) -> None:
        """Add a line. `rank`: whom it is about, where not this one; then `compared_with` names its host."""
        line = Line(
            part=self.part,
            name=name,
            verdict=verdict,
            value=value,
            unit=unit,
            compared_with=compared_with,
            host=self.host,
            rank=self.world.rank if rank < 0 else rank,
        )
        self.lines.append(line)
        self.keep(line)

    def within(self, name: str, error: float, most: float, unit: str, what: str) -> None:
        """Add a line about an error: wrong above `most` or where it is no number."""
        right = error <= most
        number = error if abs(error) < float("inf") else None  # no report has NaN or infinity
        self.find(name, "ok" if right else "wrong", number, unit, f"at most {most:g}: {what}")

    def at_least(self, name: str, rate: float, least: float | None, unit: str, what: str) -> None:
        """Add a line about a rate: slow below `least`; None: nothing is known to compare it with."""
        verdict: Verdict = "slow" if least is not None and rate < least else "ok"
        self.find(name, verdict, rate, unit, what if least is None else f"at least {least:,.3g}: {what}")

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], repeats: int = 5) -> float:
        """Return the time of the fastest of some repeats, after one that warms up."""
        times = []
        for _ in range(repeats + 1):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return min(times[1:])
