"""datasets/loading."""

from .batch import Batch
from .loader import DataConfig, Loader, Stage
from .single_pass import SinglePass
from .sources import Source
from .state import left_out, merge_states

__all__ = ["Batch", "DataConfig", "Loader", "SinglePass", "Source", "Stage", "left_out", "merge_states"]
