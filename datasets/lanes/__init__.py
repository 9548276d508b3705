"""datasets/lanes."""

from .lane import Documents, Lane, LaneState
from .mixer import Mixer, Stage
from .raw_documents import RawDocuments
from .shard_documents import ShardCorpus, ShardDocuments

__all__ = ["Documents", "Lane", "LaneState", "Mixer", "RawDocuments", "ShardCorpus", "ShardDocuments", "Stage"]
