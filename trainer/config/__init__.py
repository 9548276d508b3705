"""trainer/config."""

from .job import JobConfig
from .load import describe, load_config
from .registries import OPTIMIZERS, SINKS
from .tables import (
    ActivationCheckpoint,
    Checkpoint,
    Continuation,
    Data,
    Extrapolation,
    Files,
    FineTuning,
    Lora,
    Passkey,
    TokenizerTable,
)

__all__ = [
    "OPTIMIZERS",
    "SINKS",
    "ActivationCheckpoint",
    "Checkpoint",
    "Continuation",
    "Data",
    "Extrapolation",
    "Files",
    "FineTuning",
    "JobConfig",
    "Lora",
    "Passkey",
    "TokenizerTable",
    "describe",
    "load_config",
]
