"""The error of a model that does not fit together."""

from ..base import UserError


class ModelError(UserError):
    """A mistake in the model's shape or attention; the message names the `model.*` key."""
