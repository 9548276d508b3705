"""What goes wrong in training: three kinds of a user's mistake, and two that are no mistake of the user."""

from collections.abc import Sequence

from ..base import UserError


class ConfigError(UserError):
    """A user's mistake in the TOML, on the command line, or in how the two fit the machines."""


def refuse(complaints: Sequence[str]) -> None:
    """Raise ConfigError with every complaint on a line of its own; do nothing where there is none."""
    if complaints:
        raise ConfigError("\n  ".join(["the configuration does not fit:", *complaints] if complaints[1:] else complaints))


class EosMismatchError(UserError):
    """Two parties disagree about where documents end; the message has a table of who says what, and where."""


class NonFiniteError(ArithmeticError):
    """Loss or gradient was not finite for too long; raised on every rank, and none of those steps was taken."""


class RankLostError(RuntimeError):
    """A collective failed because another rank is lost; raised on every rank that notices, after it printed so."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another model, or could not be written."""
