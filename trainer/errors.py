"""Errors of the trainer: four kinds of mistakes that a user can correct, and four failures of a run.

UserError
    ConfigError         the TOML or the command line
    RanksDifferError    the processes of a run do not run the same job
    EosMismatchError    who says where documents end
    CheckpointError     a checkpoint
NonFiniteError, MeetingError, RankLostError, OutOfMemoryError
"""

from collections.abc import Sequence

from ..base import UserError


class ConfigError(UserError):
    """A user's mistake in the TOML, on the command line, or in how the two fit the machines."""


def refuse(complaints: Sequence[str]) -> None:
    """Raise ConfigError with every complaint on a line of its own; do nothing where there is none."""
    if complaints:
        raise ConfigError("\n  ".join(["the configuration does not fit:", *complaints] if complaints[1:] else complaints))


class RanksDifferError(UserError):
    """Ranks differ in what all must have alike; the message, the same on all of them, is a table of who has what."""


class EosMismatchError(UserError):
    """Two parties disagree about where documents end; the message is a table of what each says, and where."""


class NonFiniteError(ArithmeticError):
    """Loss or gradient was not finite for too many steps, none of which was taken; raised on every rank."""


class MeetingError(RuntimeError):
    """The processes of a run did not meet within `comm.timeout_seconds`; names the address and who is missing."""


class RankLostError(RuntimeError):
    """A collective failed because another rank is lost; raised on every rank that notices, after it printed so."""


class OutOfMemoryError(RuntimeError):
    """The memory of a device or of its host ran out; raised on the ranks where it did, after they printed so."""


class CheckpointError(UserError):
    """A checkpoint is missing, damaged or of another model, or could not be written."""
