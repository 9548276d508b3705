"""trainer/start."""

from .data import TrainData, letters_of, open_data, source_configs
from .origin import origin
from .verify import job_complaints, launch_complaints, verify

__all__ = ["TrainData", "job_complaints", "launch_complaints", "letters_of", "open_data", "origin", "source_configs", "verify"]
