"""One base for every mistake that its user can correct. Each room derives its own kinds from it.

    UserError
        datasets.errors     DataConfigError (and DataOrderError), DataError
        models.errors       ModelError
        trainer.errors      ConfigError, RanksDifferError, EosMismatchError, CheckpointError

A command ends with status 2 and the message of a `UserError`; with a traceback where the error is a bug.
"""

import difflib
import sys
from collections.abc import Iterable, Sequence

from typing_extensions import Self

from .outside import one_line, printable, redacted


class UserError(ValueError):
    """A mistake in a TOML, on a command line, in data or in a checkpoint.

    The message names the key, file or record, the value found, and what would be right. Whatever of it
    comes from outside, it holds no control characters and no credentials.

    Attributes:
        passing: whether it may pass by itself, as a disk or a network does that is away: so is what is raised because
            of an OSError, or of another passing error. Other processes get it with the error.
    """

    def __init__(self, message: object = "", *, passing: bool = False) -> None:
        super().__init__(printable(redacted(str(message))))
        cause = sys.exc_info()[1]
        self.passing: bool = passing or isinstance(cause, OSError) or (isinstance(cause, UserError) and cause.passing)

    @classmethod
    def about(cls, file: str, problem: str) -> Self:
        """Return the error about a file."""
        return cls(f"{one_line(file)}: {problem}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `, did you mean …?` for a misspelt name, or the list of valid names where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else f"; valid: {', '.join(known[:30])}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line of text for each row of a table, whose cells stand below each other, with ` | ` between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
