"""Token shards: documents as ids on disk, written whole or not at all, mapped into memory and checked before they are
read.

Read `format` (the files, their manifest and what is checked), then `writer` (how a shard is made).
"""

from .format import Manifest, Record, Shard, SourceRecord, open_shards, verify_shard
from .writer import ShardWriter, id_dtype

__all__ = ["Manifest", "Record", "Shard", "ShardWriter", "SourceRecord", "id_dtype", "open_shards", "verify_shard"]
