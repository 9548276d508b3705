"""The options of the model, and presets by name; loads no torch.

Read `positions.py` ([model.rope], [model.attention]), then `decoder.py` (the shape of a decoder), `presets.py` (shapes
by name), and `tables.py` ([model] and [head], as a TOML has them).
"""

from .decoder import HEAD_KEYS, DecoderConfig
from .positions import (
    ATTENTION_OPTIONS,
    FULL_ATTENTION,
    SCALING_OPTIONS,
    AttentionConfig,
    RopeConfig,
    check_length,
    check_training,
    untrained_attention_warning,
)
from .presets import PRESETS, preset_default
from .tables import Executor, FlexBackend, HeadConfig, ModelConfig

__all__ = [
    "ATTENTION_OPTIONS",
    "FULL_ATTENTION",
    "HEAD_KEYS",
    "PRESETS",
    "SCALING_OPTIONS",
    "AttentionConfig",
    "DecoderConfig",
    "Executor",
    "FlexBackend",
    "HeadConfig",
    "ModelConfig",
    "RopeConfig",
    "check_length",
    "check_training",
    "preset_default",
    "untrained_attention_warning",
]
