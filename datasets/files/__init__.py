"""Files anywhere and however compressed: found by pattern, known again by stamps, written whole or not at all.

Read `find` (names to files), `storage` (opening them), then `inflate` and `bgzip` (compression), `remote` and `cache`
(URLs), and `atomic` (writing, checksums).
"""

from .atomic import TEMPORARY, checksum, sync, temporary, whole, write_atomically
from .bgzip import BgzfFile
from .find import DataFile, is_compressed, is_remote, plain_name
from .inflate import ByteFile
from .storage import FileStore, FileStoreConfig, changes, fingerprint

__all__ = [
    "TEMPORARY",
    "BgzfFile",
    "ByteFile",
    "DataFile",
    "FileStore",
    "FileStoreConfig",
    "changes",
    "checksum",
    "fingerprint",
    "is_compressed",
    "is_remote",
    "plain_name",
    "sync",
    "temporary",
    "whole",
    "write_atomically",
]
