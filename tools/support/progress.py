"""How far a long command is: a bar with the time left where a person watches, a line now and then where a file does."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ...datasets.prepare import Event

LINE_SECONDS = 10.0
MESSAGES = 20  # printed; all are counted


class Bar:
    """A `prepare.Monitor`: counts bytes of text and shares of the files, and shows both.

    Args:
        name: Of what is worked on.
        progress: The live bar, None for plain lines.
    """

    def __init__(self, name: str, progress: Progress | None) -> None:
        self._name = name
        self._progress = progress
        self._messages = 0
        self.begin("", 0)

    def begin(self, stage: str, stored: int) -> None:
        """Start a stage that is over after `stored` bytes of files."""
        self._stage, self._total, self._done, self._text = stage, stored, 0.0, 0
        self._start = self._told = time.monotonic()
        if self._progress is not None and stored:
            for task in self._progress.task_ids:
                self._progress.remove_task(task)
            self._task = self._progress.add_task(f"{self._name}: {stage}", total=stored, speed="")

    def __call__(self, event: Event) -> None:
        """Count an event; say what is worth a line."""
        if event.message is not None:
            self._messages += 1
            if self._messages <= MESSAGES:
                more = "; further ones are counted only" if self._messages == MESSAGES else ""
                print(f"{event.message}{more}", file=sys.stderr)
        self._done += event.stored
        self._text += event.text
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done, speed=f"{self._speed():.3g} MB/s")
        elif time.monotonic() - self._told >= LINE_SECONDS:
            self._told = time.monotonic()
            left = (self._told - self._start) * (self._total / self._done - 1) if self._done else float("nan")
            share = self._done / self._total
            print(f"{self._name}: {self._stage} {share:.1%}, {self._speed():.3g} MB/s, {left:.0f} s left", flush=True)

    def _speed(self) -> float:
        """MB of text, or of files where no text is counted, per second."""
        return (self._text or self._done) / 1e6 / max(time.monotonic() - self._start, 1e-9)


@contextmanager
def make_monitor(name: str) -> Iterator[Bar]:
    """Show progress while the block runs."""
    if not sys.stdout.isatty():
        yield Bar(name, None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[speed]}"))
    with Progress(*columns, TimeRemainingColumn(), transient=True) as progress:
        yield Bar(name, progress)
