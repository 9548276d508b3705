"""The configuration of a job: its tables, their contradictions, and how they are read from files and a command line.

Read `job` (the tables of all rooms, nested), `tables` (those of the trainer itself), `mistakes` (what is wrong in a
TOML, as lines), then `load` (from a command line to a `JobConfig`). `registries` names the optimizers and metric sinks.
"""

from .job import JobConfig
from .load import load_config
from .mistakes import describe_problems, table_at, validate
from .registries import OPTIMIZERS, SINKS
from .tables import ActivationCheckpoint, Checkpoint, Continuation, Extrapolation, FineTuning, Lora, Passkey

__all__ = [
    "OPTIMIZERS",
    "SINKS",
    "ActivationCheckpoint",
    "Checkpoint",
    "Continuation",
    "Extrapolation",
    "FineTuning",
    "JobConfig",
    "Lora",
    "Passkey",
    "describe_problems",
    "load_config",
    "table_at",
    "validate",
]
