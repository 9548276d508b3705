"""models.config."""

from .decoder import HEAD_KEYS, DecoderConfig
from .positions import (
    PLAIN,
    READ_BY,
    USED_BY,
    AttentionConfig,
    MaskName,
    PositionMap,
    Ramp,
    RopeConfig,
    Scaling,
    check_length,
    check_training,
    untrained,
)
from .presets import PRESETS

__all__ = [
    "HEAD_KEYS",
    "PLAIN",
    "PRESETS",
    "READ_BY",
    "USED_BY",
    "AttentionConfig",
    "DecoderConfig",
    "MaskName",
    "PositionMap",
    "Ramp",
    "RopeConfig",
    "Scaling",
    "check_length",
    "check_training",
    "untrained",
]
