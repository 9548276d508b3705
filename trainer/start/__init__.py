"""trainer/start."""

from .data import TrainData, open_data
from .origin import origin
from .verify import verify

__all__ = ["TrainData", "open_data", "origin", "verify"]
