"""Files anywhere and however compressed: found by pattern, known again by stamps, written whole or not at all.

Read `find` (names to files), `storage` (opening and inflating them), then `bgzip`; `redirects`, `remote` and `cache`
(URLs); and `atomic` (writing, checksums).
"""

from .atomic import TEMPORARY, check_writable, check_writable_folder, checksum, sync, temporary, whole, write_atomically
from .bgzip import BgzfFile, ByteFile, DamagedError
from .find import DataFile, is_compressed, is_remote, plain_name
from .redirects import file_system
from .storage import FileStore, FileStoreConfig, changes, fingerprint

__all__ = [
    "TEMPORARY",
    "BgzfFile",
    "ByteFile",
    "DamagedError",
    "DataFile",
    "FileStore",
    "FileStoreConfig",
    "changes",
    "check_writable",
    "check_writable_folder",
    "checksum",
    "file_system",
    "fingerprint",
    "is_compressed",
    "is_remote",
    "plain_name",
    "sync",
    "temporary",
    "whole",
    "write_atomically",
]
