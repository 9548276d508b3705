"""Lanes: the fixed, deterministic streams of packed rows that each source is read in, and the mixture of sources.

Read `lane` (rows of one lane, and its state), `blocks` (what is packed, shuffled and resumed as one), `stripes` (how
lanes share raw files), `raw_documents` and `shard_documents` (what a lane reads), then `mixer` (which source and which
lane each row of the run comes from).
"""

from .blocks import block_tokens, unit_bytes
from .lane import Documents, Lane, LaneState
from .mixer import Mixer
from .raw_documents import RawDocuments
from .shard_documents import ShardCorpus, ShardDocuments
from .stripes import LanePieces

__all__ = [
    "Documents",
    "Lane",
    "LanePieces",
    "LaneState",
    "Mixer",
    "RawDocuments",
    "ShardCorpus",
    "ShardDocuments",
    "block_tokens",
    "unit_bytes",
]
