"""The last door before the terminal: all that a command prints is made harmless here, whoever wrote it.

`run_command` puts a `PrintableStream` in the place of stdout and stderr, so that `print`, argparse, warnings of
libraries, logging and tracebacks pass it. rich writes control sequences of its own: `Terminal`, which every command and
sink takes for a console, makes harmless what it shows, and its text passes as `Rendered`.

Standard output that is data (the text of `cistron generate`, the table of `cistron evaluate`) is written as it is where
it goes to a file or a pipe, since a program reads it; see `data_output`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any, ClassVar, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, ProgressColumn
from rich.segment import Segment
from rich.text import Text
from typing_extensions import override

from ...base import presentable, printable


class Rendered(str):
    """Text that is harmless already, whatever control characters it has."""


class PrintableStream:
    """A text stream that shows control characters as text and hides credentials.

    Args:
        stream: what is written to.

    Attributes:
        bar: what shows a progress bar, and prints above it what is written to a terminal meanwhile.
    """

    bar: ClassVar[Console | None] = None

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._line = stream, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write text, made harmless; above the bar where there is one."""
        if isinstance(text, Rendered):
            return self._stream.write(str(text))
        if self.bar is None or not self.isatty():
            text, self._line = self._line + text, ""
            return self._stream.write(presentable(text))
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self.bar.print(line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)


class _Rendering:
    """Writes what is harmless already to a stream, stdout where none is named.

    Args:
        stream: what is written to; None: stdout of the moment.
        show: makes harmless what is not.
    """

    def __init__(self, stream: IO[str] | None = None, show: Callable[[str], str] = str) -> None:
        self._stream, self._show = stream, show

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream or sys.stdout, name)

    def write(self, text: str) -> int:
        """Write text."""
        return (self._stream or sys.stdout).write(Rendered(self._show(text)))


class Terminal(Console):
    """The console of every command: no markup, no emoji codes, no links, since brackets in a name are only brackets.

    Args:
        file: what it writes to; None: stdout of the moment.
        quiet: whether it writes nothing.
    """

    def __init__(self, file: IO[str] | None = None, *, quiet: bool = False) -> None:
        out = cast("IO[str]", _Rendering(file))
        super().__init__(file=out, quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)

    @override
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(presentable(text), **options)

    @override
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            style = segment.style.update_link(None) if segment.style and segment.style.link else segment.style
            yield segment if segment.control else Segment(printable(segment.text), style)


class Bar(Progress):
    """A progress bar; what is printed meanwhile to the same terminal appears above it."""

    def __init__(self, *columns: str | ProgressColumn, console: Terminal, transient: bool = False) -> None:
        super().__init__(*columns, console=console, transient=transient, redirect_stdout=False, redirect_stderr=False)

    @override
    def start(self) -> None:
        super().start()
        PrintableStream.bar = self.console

    @override
    def stop(self) -> None:
        PrintableStream.bar = None
        super().stop()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, PrintableStream):
                stream.write("")  # the line that nobody has ended


@contextmanager
def printable_output() -> Iterator[None]:
    """Make stdout and stderr harmless in the block, and for the traceback where it ends in a bug."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast("TextIO", stream and PrintableStream(stream)) for stream in before)  # None: closed
    try:
        yield
    except SystemExit:
        sys.stdout, sys.stderr = before
        raise
    sys.stdout, sys.stderr = before


def data_output() -> TextIO:
    """Return where a command writes data, as UTF-8: as it is to a file or a pipe, to a terminal as `printable` text.

    Bytes of a command line that are no UTF-8 stay the same bytes.
    """
    if sys.stdout.isatty():
        return cast("TextIO", _Rendering(show=printable))
    cast("Any", sys.stdout).reconfigure(encoding="utf-8", errors="surrogateescape")
    return cast("TextIO", _Rendering())
