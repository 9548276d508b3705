"""Files anywhere and however compressed: found by pattern, known again by content, written whole or not at all.

Read `find` (names to files) and `globs`, `inventory` (whether they are those of before), `storage` (opening and
inflating them), then `contents` and `bgzip`; `redirects`, `remote` and `cache` (URLs); `atomic` (writing, checksums)
and `lock` (who may write).
"""

from .atomic import (
    TEMPORARY,
    TEMPORARY_NAME,
    check_writable,
    check_writable_folder,
    checksum,
    sync,
    temporary,
    whole,
    write_atomically,
)
from .bgzip import BgzfFile, ByteFile, DamagedError
from .contents import TEXT_HEAD_BYTES, Rewound, look_at_head, look_at_lines
from .find import DataFile, is_compressed, is_remote, uncompressed_name
from .inventory import Listing, changes, deviations, fingerprint, last_name, listed, saved_order
from .lock import Lock, machine, started
from .redirects import file_system
from .storage import FileStore, FileStoreConfig

__all__ = [
    "TEMPORARY",
    "TEMPORARY_NAME",
    "TEXT_HEAD_BYTES",
    "BgzfFile",
    "ByteFile",
    "DamagedError",
    "DataFile",
    "FileStore",
    "FileStoreConfig",
    "Listing",
    "Lock",
    "Rewound",
    "changes",
    "check_writable",
    "check_writable_folder",
    "checksum",
    "deviations",
    "file_system",
    "fingerprint",
    "is_compressed",
    "is_remote",
    "last_name",
    "listed",
    "look_at_head",
    "look_at_lines",
    "machine",
    "saved_order",
    "started",
    "sync",
    "temporary",
    "uncompressed_name",
    "whole",
    "write_atomically",
]
