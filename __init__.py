"""Cistron: distributed pretraining on eos-delimited packed rows, for text, DNA and protein.

What a notebook needs is here: `train` a job, `open_model`, and ask it: `embed`, `score`, `sample`. Names are loaded
when they are first used, so that `import cistron` takes no time and loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import UserError
    from .datasets.documents import Letters
    from .trainer.config import JobConfig
    from .trainer.inference import embed, open_model, sample, score
    from .trainer.train import train

__version__ = "0.1.0"
__all__ = ["JobConfig", "Letters", "UserError", "__version__", "embed", "open_model", "sample", "score", "train"]

ROOMS = {
    "JobConfig": "trainer.config",
    "Letters": "datasets.documents",
    "UserError": "base",
    "embed": "trainer.inference",
    "open_model": "trainer.inference",
    "sample": "trainer.inference",
    "score": "trainer.inference",
    "train": "trainer.train",
}


def __getattr__(name: str) -> Any:
    """Load a name from the room that has it (PEP 562)."""
    if name not in ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return what `__all__` names."""
    return __all__
