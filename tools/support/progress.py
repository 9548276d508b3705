"""Show how far a long command is: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ...datasets.prepare import Event
from ...trainer.processes import Bar, Terminal

LINE_SECONDS = 10.0
MESSAGES = 20  # printed; all are counted


class ProgressBar:
    """Progress of one command, in stages that follow one another. It is a `prepare.Monitor` too.

    Args:
        name: Of what is worked on.
        live: The bar on a terminal; None: lines on standard error.
        in_bytes: Whether bytes are counted, and their speed is shown.
    """

    def __init__(self, name: str, live: Bar | None, in_bytes: bool) -> None:
        self._name = name
        self._live = live
        self._in_bytes = in_bytes
        self._messages = 0
        self.begin("", 0)

    def begin(self, stage: str, total: float) -> None:
        """Start a stage that is over after `total` units, which are bytes of files or anything else."""
        self._label = f"{self._name}: {stage}" if stage else self._name
        self._total, self._done, self._text = total, 0.0, 0.0
        self._start = self._told = time.monotonic()
        if self._live is not None and total:
            for task in self._live.task_ids:
                self._live.remove_task(task)
            self._task = self._live.add_task(self._label, total=total, speed="")

    def reach(self, done: float, text: float = 0.0) -> None:
        """Count up to `done` units, the last of which held `text` bytes of text."""
        self.advance(done - self._done, text)

    def advance(self, amount: float, text: float = 0.0) -> None:
        """Count `amount` more units, which held `text` bytes of text."""
        self._done += amount
        self._text += text
        now = time.monotonic()
        speed = ""
        if self._in_bytes:  # of text, or of files where no text is counted
            speed = f"{(self._text or self._done) / 1e6 / max(now - self._start, 1e-9):.3g} MB/s"
        if self._live is not None:
            self._live.update(self._task, completed=self._done, speed=speed)
        elif now - self._told >= LINE_SECONDS:
            self._told = now
            left = (now - self._start) * (self._total / self._done - 1) if self._done else float("nan")
            parts = (f"{self._label} {self._done / self._total:.1%}", speed, f"about {left:.0f} s left")
            print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def __call__(self, event: Event) -> None:
        """Count an event of `cistron prepare`, and print its message if there were not too many before."""
        if event.message is not None:
            self._messages += 1
            if self._messages <= MESSAGES:
                more = "; further ones are counted only" if self._messages == MESSAGES else ""
                print(f"{event.message}{more}", file=sys.stderr)
        self.advance(event.stored, event.text)


@contextmanager
def progress_bar(name: str, console: Terminal | None = None, *, in_bytes: bool = True) -> Iterator[ProgressBar]:
    """Show progress while the block runs.

    Args:
        name: Of what is worked on.
        console: Of the command, where it prints while the bar is shown.
        in_bytes: Whether bytes are counted, and their speed is shown.
    """
    console = console or Terminal()
    if not console.is_terminal:
        yield ProgressBar(name, None, in_bytes)
        return
    said, speed = (TextColumn(of, markup=False) for of in ("{task.description}", "{task.fields[speed]}"))
    columns = (said, BarColumn(), TaskProgressColumn(), speed)
    with Bar(*columns, TimeRemainingColumn(), console=console, transient=True) as live:
        yield ProgressBar(name, live, in_bytes)
