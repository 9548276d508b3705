"""models.config."""

from .decoder import HEAD_KEYS, DecoderConfig
from .positions import (
    ATTENTION_OPTIONS,
    PLAIN,
    SCALING_OPTIONS,
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
    "ATTENTION_OPTIONS",
    "HEAD_KEYS",
    "PLAIN",
    "PRESETS",
    "SCALING_OPTIONS",
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
