"""trainer/config."""

from .job import JobConfig
from .load import load_config
from .mistakes import validate
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
    "load_config",
    "validate",
]
