"""Whole copies of remote files in a folder of limited size: those used longest ago go first.

Any number of processes share the folder without locks: a copy gets its name only when it is complete, by a rename, and
what another process deletes stays readable for those that have it open. A copy's mtime is the time of its last use.
"""

import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

import xxhash

from .find import DataFile, plain_name

PART = ".part"
PART_SECONDS = 3600  # after which a copy that does not grow belongs to a dead process
COPY_BYTES = 2**22


def find_copy(folder: Path, file: DataFile) -> Path | None:
    """Return the copy of this version of a file, if there is one, and note its use."""
    copy = _place(folder, file)
    with suppress(FileNotFoundError):
        if copy.stat().st_size == file.size:
            os.utime(copy)
            return copy
    return None


def make_copy(folder: Path, limit: float, file: DataFile, source: IO[bytes]) -> Path:
    """Copy `source`, the stored bytes of `file`, after making room for it within `limit` bytes.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _make_room(folder, limit - file.size)
    handle, name = tempfile.mkstemp(suffix=PART, dir=folder)  # `whole` names it by process: hosts may share the folder
    part = Path(name)
    try:
        with open(handle, "wb") as target:  # noqa: PTH123 (a descriptor)
            shutil.copyfileobj(source, target, COPY_BYTES)
            target.flush()
            os.fsync(target.fileno())
        return part.replace(_place(folder, file))
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _place(folder: Path, file: DataFile) -> Path:
    name = re.sub(r"[^\w.-]", "_", plain_name(file.path).rsplit("/", 1)[-1])[-80:]
    return folder / f"{xxhash.xxh3_128_hexdigest(repr(tuple(file)).encode())}-{name}"


def _make_room(folder: Path, room: float) -> None:
    """Delete what was used longest ago until the others fit into `room` bytes."""
    kept = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            stat = path.stat()
            if path.suffix != PART:
                kept.append((stat.st_mtime_ns, stat.st_size, path))
            elif time.time() - stat.st_mtime > PART_SECONDS:
                path.unlink()
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= size
