"""trainer/start."""

from .data import Feed, letters_of, open_feed, source_configs
from .origin import origin
from .verify import verify

__all__ = ["Feed", "letters_of", "open_feed", "origin", "source_configs", "verify"]
