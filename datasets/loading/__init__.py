"""datasets/loading."""

from .batch import Batch
from .loader import DataConfig, Loader, Stage
from .single_pass import SinglePass
from .sources import Source, SourceConfig
from .state import left_out, merge_states

__all__ = ["Batch", "DataConfig", "Loader", "SinglePass", "Source", "SourceConfig", "Stage", "left_out", "merge_states"]
