"""trainer/start."""

from .data import TrainData, letters_of, open_data, source_configs
from .origin import origin
from .verify import verify

__all__ = ["TrainData", "letters_of", "open_data", "origin", "source_configs", "verify"]
