"""The last door before the terminal: all that a command prints is made harmless here, whoever wrote it.

`run_command` puts a `PrintableStream` in the place of stdout and stderr, so that `print`, argparse, warnings of
libraries, logging and tracebacks pass it. rich writes control sequences of its own, so it passes by: what it shows is
made harmless by `Terminal`, which every command and sink takes for a console.

Standard output that is data (the text of `cistron generate`, the table of `cistron evaluate`) is written as it is where
it goes to a file or a pipe, since a program reads it; see `data_output`.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import Progress, ProgressColumn
from rich.segment import Segment
from rich.text import Text
from typing_extensions import override

from ...base import presentable, printable


class PrintableStream:
    """A text stream that shows control characters as text and hides credentials.

    Args:
        stream: what is written to.
        show: makes text harmless.

    Attributes:
        rich_proxied_file: the stream; rich, which looks for this name, writes to it directly.
        bar: what shows a progress bar in this terminal, and prints whole lines above it.
    """

    def __init__(self, stream: TextIO, show: Callable[[str], str] = presentable) -> None:
        self.rich_proxied_file, self._show = stream, show
        self.bar: Console | None = None
        self._line = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)

    def write(self, text: str) -> int:
        """Write text, made harmless; above the bar where there is one."""
        if self.bar is None:
            self.rich_proxied_file.write(self._show(text))
        else:
            *lines, self._line = (self._line + text).split("\n")
            for line in lines:
                self.bar.print(line)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each of `lines`."""
        for line in lines:
            self.write(line)


class Terminal(Console):
    """The console of every command: no markup, no emoji codes, no links, since brackets in a name are only brackets."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, **options)

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

    def __init__(self, *columns: str | ProgressColumn, console: Console, transient: bool = False) -> None:
        super().__init__(*columns, console=console, transient=transient, redirect_stdout=False, redirect_stderr=False)

    @override
    def start(self) -> None:
        super().start()
        for stream in _streams():
            stream.bar = self.console if stream.isatty() else None

    @override
    def stop(self) -> None:
        for stream in _streams():
            stream.bar = None
        super().stop()


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
    stream: Any = getattr(sys.stdout, "rich_proxied_file", sys.stdout)
    if stream.isatty():
        return cast("TextIO", PrintableStream(stream, printable))
    stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    return cast("TextIO", stream)


def _streams() -> list[PrintableStream]:
    return [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, PrintableStream)]
