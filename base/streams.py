"""Standard output and error that may go away: a disk that fills, a reader that has left, a terminal that was closed.

Training drops what cannot be written, and goes on. A command whose output is its result ends: quietly where the reader
has left, as after `| head`, else with status 2. Letters that the stream's encoding lacks are written as escapes.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast


class OutputError(OSError):
    """Standard output cannot be written. No BrokenPipeError, which others raise of sockets and rich ends runs for."""


class Stream:
    """A text stream that hands its failures to a function.

    Args:
        stream: what to write to; None: there is none, as Python has it where it was closed.
        failed: is given each exception.

    Attributes:
        error: the last failure that nobody has asked for; see `output_failure`.
    """

    def __init__(self, stream: TextIO | None, failed: Callable[[Exception], None]) -> None:
        self.stream = stream or Path(os.devnull).open("w")  # noqa: SIM115 (as long as the stream it stands for)
        self.failed = failed
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        """Return what the stream itself has."""
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write a text, or hand over why not."""
        try:
            try:
                self.stream.write(text)
            except UnicodeEncodeError:
                encoding = self.stream.encoding
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self.fail(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or hand over why not."""
        try:
            self.stream.flush()
        except (OSError, ValueError) as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Keep a failure, and hand it over."""
        self.error = error
        self.failed(error)


def drop(_error: Exception) -> None:
    """Do nothing about a stream that cannot be written."""


def refuse_output(error: Exception) -> None:
    """Raise OutputError for what standard output does not take; of no number that of a closed descriptor."""
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EBADF
    raise OutputError(number, os.strerror(number)) from None


@contextmanager
def guarded_output() -> Iterator[None]:
    """Drop what stderr does not take, and raise OutputError where stdout fails; for a traceback at the end too."""
    occupy_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = cast(TextIO, Stream(sys.stdout, refuse_output)), cast(TextIO, Stream(sys.stderr, drop))
    try:
        yield
    except SystemExit:
        sys.stdout, sys.stderr = before
        raise
    sys.stdout, sys.stderr = before


@contextmanager
def dropped_output() -> Iterator[None]:
    """Drop what stdout and stderr do not take while the block runs."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Stream(stream, drop)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def output_failure() -> Exception | None:
    """Return why stdout could not be written since this was called last; None: it could."""
    stream: Any = sys.stdout
    if not isinstance(stream, Stream):
        return None
    error, stream.error = stream.error, None
    return error


def occupy_descriptors() -> None:
    """Open /dev/null in place of each of stdin, stdout and stderr that is closed.

    The next file would get its number, and what C code prints would go there.
    """
    for descriptor in range(3):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


def discard_unwritten() -> None:
    """Flush stdout and stderr, and drop what they do not take: the interpreter would end with status 120 over it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            continue
        unwritten: list[Exception] = []
        Stream(stream, unwritten.append).flush()
        if unwritten:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
