"""Lanes: the fixed, deterministic streams of packed rows that each source is read in, and the mixture of sources.

Read `lane` (rows of one lane, and its state), `blocks` (what is packed, shuffled and resumed as one), `stripes` (how
lanes share raw files), `raw_documents` and `shard_documents` (what a lane reads), `epochs` (how all lanes end one
together), then `mixer` (which source and which lane each row of the run comes from).
"""

from .blocks import block_tokens, unit_bytes
from .epochs import Epochs, Greatest
from .lane import Documents, Lane, LaneRow, LaneState
from .mixer import Mixer, Mixture
from .raw_documents import RawDocuments
from .shard_documents import ShardCorpus, ShardDocuments
from .stripes import LanePieces

__all__ = [
    "Documents",
    "Epochs",
    "Greatest",
    "Lane",
    "LanePieces",
    "LaneRow",
    "LaneState",
    "Mixer",
    "Mixture",
    "RawDocuments",
    "ShardCorpus",
    "ShardDocuments",
    "block_tokens",
    "unit_bytes",
]
