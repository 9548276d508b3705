"""Token shards: documents as ids on disk, written whole or not at all, mapped into memory and checked before they are
read.

Read `format` (the files, their manifest and what is checked when they are opened), `blocks` (what is checked when they
are read), then `writer` (how a shard is made).
"""

from .blocks import BlockChecks, verify_shard
from .format import Manifest, Record, Shard, SourceRecord, open_shards
from .writer import ShardWriter, id_dtype, upgrade_shard

__all__ = [
    "BlockChecks",
    "Manifest",
    "Record",
    "Shard",
    "ShardWriter",
    "SourceRecord",
    "id_dtype",
    "open_shards",
    "upgrade_shard",
    "verify_shard",
]
