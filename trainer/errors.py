"""What goes wrong in training: three kinds of a user's mistake, and two that are nobody's."""

from collections.abc import Sequence

from ..base import UserError


class ConfigError(UserError):
    """A user's mistake in the TOML, on the command line, or in how the two fit the machines."""


def refuse(complaints: Sequence[str]) -> None:
    """Raise ConfigError with every complaint on a line of its own; do nothing where there is none."""
    if complaints:
        raise ConfigError("\n  ".join(["the configuration does not fit:", *complaints] if complaints[1:] else complaints))


class EosMismatchError(UserError):
    """Two parties disagree about where documents end; the message is a table of who says what, and where it is written."""


class NonFiniteError(ArithmeticError):
    """Loss or gradient was infinite or NaN for too long; raised on every rank, none of those steps was taken (guard.py)."""


class RankLostError(RuntimeError):
    """A collective failed because of another process; raised on every rank that notices, after it has said so."""


class CheckpointError(UserError):
    """A checkpoint that was asked for is missing, damaged or of another model, or one could not be written."""
