"""A sink that can fail without costing a run, another sink, or more than the records that it was given meanwhile."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress

from .sinks import MetricsRecord, Sink

LONGEST_WAIT_SECONDS = 60.0  # between two tries to open a sink anew, where they take no time
TRIES_APART = 20  # times as long as the last took: at most 5 % of the training's time


class GuardedSink:
    """Hands records to a sink, and counts what it fails at.

    A sink that fails at two records in a row is closed and opened anew for the next one, unless it holds nothing open;
    again after 1, 2, 4, ... 60 s, and 20 times as long as the try took: opening may wait for a network, and training
    waits meanwhile. A failure is told at the 1st, 2nd, 4th, 8th, ... record in a row, its end and the sum of what was
    lost once.

    Args:
        open_after: opens the sink of a run that goes on after the given step.
        start_step: step resumed from.

    Attributes:
        sink: the sink; None while it cannot be opened.
        lost: records that it does not have.
    """

    def __init__(self, open_after: Callable[[int], Sink], start_step: int) -> None:
        self.open_after = open_after
        self.sink: Sink | None = open_after(start_step)
        self.name, self.reopens = type(self.sink).__name__, self.sink.reopens
        self.lost, self.in_a_row = 0, 0
        self.first, self.last = 0, 0  # steps of the records that are lost
        self.openings, self.open_at = 0, 0.0  # since a record was written; when to try next, by `time.monotonic`

    def write(self, record: MetricsRecord) -> None:
        """Write a record, or count and tell that it is lost."""
        self.use(record.step, lambda sink: sink.write(record))

    def use(self, step: int, task: Callable[[Sink], None]) -> None:
        """Have the sink do something with what it is given at `step`."""
        try:
            if self.reopens and self.in_a_row >= 2 and time.monotonic() >= self.open_at:
                self.reopen()
            if self.sink is None:
                raise ConnectionError("it could not be opened")
            task(self.sink)
        except Exception as error:  # of a plug-in or a service: whatever they raise
            self.count(step, error)
            return
        if self.in_a_row:
            warn(f"{self.name} is written again from step {step} on; {self.in_a_row} record(s) before it are lost")
        self.in_a_row, self.openings = 0, 0

    def reopen(self) -> None:
        """Close the sink as far as it can be closed, and open it anew, to go on behind what it was given last."""
        begun, broken, self.sink = time.monotonic(), self.sink, None
        try:
            with suppress(Exception):
                if broken:
                    broken.close()
            self.sink = self.open_after(self.last)
        finally:
            ended = time.monotonic()
            self.open_at = ended + max(min(2.0**self.openings, LONGEST_WAIT_SECONDS), TRIES_APART * (ended - begun))
            self.openings += 1
        for remark in self.sink.remarks:
            warn(remark)

    def count(self, step: int, error: Exception) -> None:
        """Count a record that is lost, and tell it unless that would be said too often."""
        self.first = self.first if self.lost else step
        self.last = step
        self.lost += 1
        self.in_a_row += 1
        if self.in_a_row & (self.in_a_row - 1) == 0:
            where = (error.filename if isinstance(error, OSError) else None) or self.name
            warn(f"step {step} is not in {where}: {error or type(error).__name__}")

    def close(self) -> None:
        """Close the sink, and tell what it has lost; nothing may be written afterwards."""
        try:
            if self.sink:
                self.sink.close()
        except Exception as error:
            warn(f"{self.name} could not be closed, and may lack its last records: {error or type(error).__name__}")
        if self.lost:
            warn(f"{self.name} lacks {self.lost} record(s) of steps {self.first} to {self.last}")


def warn(message: str) -> None:
    """Print a warning on stderr, which may be gone too."""
    with suppress(OSError, ValueError):
        print(f"warning: {message}", file=sys.stderr, flush=True)
