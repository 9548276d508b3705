"""datasets/shards."""

from .format import Manifest, Record, Shard, SourceRecord, open_shards, verify_shard
from .writer import ShardWriter, id_dtype

__all__ = ["Manifest", "Record", "Shard", "ShardWriter", "SourceRecord", "id_dtype", "open_shards", "verify_shard"]
