"""Whole copies of remote files in a folder of limited size: those used longest ago go first.

A copy is called `<key>-<checksum>-<name>`. The key stands for the URL, the size, and what the store tells of the
version; the checksum is of the content. Its time of last change is set to a time that follows from the checksum: as
long as it is that, nobody has written to the copy, and another one means that its content is compared with the
checksum before it is used. Its atime is the time of its last use.

Any number of processes share the folder without locks: a copy gets its name only when it is complete, by a rename, and
what another process deletes stays readable for those that have it open.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import xxhash

from .atomic import checksum
from .find import DataFile, plain_name
from .remote import RemoteFile

PART = ".part"
COPY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{32}-")
PART_SECONDS = 3600  # after which a copy that does not grow belongs to a dead process
COPY_BYTES = 2**22
END_BYTES = 2**16  # compared at both ends where a store tells no version

Opener = Callable[[], RemoteFile]


def find_copy(folder: Path, file: DataFile, opener: Opener) -> Path | None:
    """Return the copy of this version of a file, if there is a sound one, and note its use.

    Where the store tells no version, first and last 64 KiB must be those of the remote file; a change between them is
    not noticed.

    Args:
        folder: Of the copies.
        file: As its store lists it now.
        opener: Opens it.
    """
    for copy in sorted(folder.glob(f"{_key(file)}-*")):
        if not COPY.match(copy.name):
            continue  # of another version of Cistron, or of somebody else: it goes when room is made
        with suppress(FileNotFoundError):  # another process makes room
            if _is_sound(copy, file.size) and (file.stamp or _same_ends(copy, file.size, opener)):
                os.utime(copy, ns=(time.time_ns(), _unchanged_ns(copy)))
                return copy
            copy.unlink()
    return None


def make_copy(folder: Path, limit: float, file: DataFile, opener: Opener, is_unchanged: Callable[[], bool]) -> Path:
    """Copy the stored bytes of `file`, after making room for it within `limit` bytes.

    Args:
        folder: Of the copies.
        limit: Bytes of all copies.
        file: As its store lists it now.
        opener: Opens it.
        is_unchanged: Asks the store whether it still lists the file so.

    Raises:
        OSError: The folder cannot be written, or the file changed while it was copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _make_room(folder, limit - file.size)
    digest, size = xxhash.xxh3_128(), 0
    handle, name = tempfile.mkstemp(suffix=PART, dir=folder)  # `whole` names it by process: hosts may share the folder
    part = Path(name)
    try:
        with opener() as source, open(handle, "wb") as target:  # noqa: PTH123 (a descriptor)
            while data := source.read(COPY_BYTES):
                target.write(data)
                digest.update(data)
                size += len(data)
            target.flush()
            os.fsync(target.fileno())
        if size != file.size or not is_unchanged():
            raise OSError("it changed while it was copied")
        copy = folder / f"{_key(file)}-{digest.hexdigest()}-{_name(file)}"
        os.utime(part, ns=(time.time_ns(), _unchanged_ns(copy)))
        return part.replace(copy)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _key(file: DataFile) -> str:
    return xxhash.xxh3_128_hexdigest(repr(tuple(file.public)).encode())


def _name(file: DataFile) -> str:
    return re.sub(r"[^\w.-]", "_", plain_name(file.path).rsplit("/", 1)[-1])[-80:]


def _unchanged_ns(copy: Path) -> int:
    """Return the time of last change that a copy has which nobody has written to: a whole second before 2004."""
    return int(copy.name.split("-")[1][:7], 16) * 4 * 10**9


def _is_sound(copy: Path, size: int) -> bool:
    stat = copy.stat()
    if stat.st_size != size:
        return False
    return stat.st_mtime_ns == _unchanged_ns(copy) or checksum(str(copy)).endswith(f":{copy.name.split('-')[1]}")


def _same_ends(copy: Path, size: int, opener: Opener) -> bool:
    with opener() as remote, copy.open("rb") as local:
        for start in (0, max(size - END_BYTES, 0)):
            remote.seek(start)
            local.seek(start)
            if remote.read(END_BYTES) != local.read(END_BYTES):
                return False
    return True


def _make_room(folder: Path, room: float) -> None:
    """Delete what was used longest ago until the others fit into `room` bytes."""
    kept = []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            stat = path.stat()
            if path.suffix != PART:
                kept.append((stat.st_atime_ns, stat.st_size, path))
            elif time.time() - stat.st_mtime > PART_SECONDS:
                path.unlink()
    total = sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= room:
            break
        path.unlink(missing_ok=True)
        total -= size
