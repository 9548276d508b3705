"""every error that is a user's, and those that are not."""

from ..datasets.errors import DataConfigError, DataError
from ..models.positions.config import ModelError


class ConfigError(ValueError):
    """A user's mistake in the TOML, on the command line, or in how the two fit the machines."""


class EosMismatchError(ValueError):
    """Two parties disagree about where documents end; the message is a table of who says what, and where it is written."""


class NonFiniteError(ArithmeticError):
    """Loss or gradient was infinite or NaN for too long; raised on every rank, none of those steps was taken (guard.py)."""


class PeerLostError(RuntimeError):
    """A collective failed because of another process; raised on every rank that notices, after it has said so."""


class CheckpointError(ValueError):
    """A checkpoint that was asked for is missing, damaged or of another model, or one could not be written."""


USER_ERRORS = (ConfigError, DataConfigError, DataError, ModelError, EosMismatchError, CheckpointError)
