"""Whole copies of remote files in a folder of limited size: those used longest ago go first.

A copy is called `<key>-<checksum>-<name>`. The key stands for the URL, the size, and what the store tells of the
version; the checksum is of the content. Its time of last change is a whole second of the last 36 hours before its last
use, which has a remainder that follows from the checksum: as long as it has, nobody has written to the copy, and
another one means that its content is compared with the checksum before it is used. So what deletes old files from a
scratch disk takes it for one in use. Its atime is the time of its last use.

Mirrors behind one name may tell another tag in each answer. Where a tag changes while a file is copied, and its size,
time of last change and both ends do not, the copy is kept by that time instead.

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
REMAINDERS = 2**17  # seconds: a time that somebody else sets has the right one by chance once in so many

Opener = Callable[[], RemoteFile]


def find_copy(folder: Path, file: DataFile, opener: Opener, *, by_time: bool = False) -> Path | None:
    """Return the copy of this version of a file, if there is a sound one, and note its use.

    Where the store tells no version, first and last 64 KiB must be those of the remote file; a change between them is
    not noticed.

    Args:
        folder: Of the copies.
        file: As its store lists it now.
        opener: Opens it.
        by_time: Whether the stamp is the time of last change alone: then the ends must be the same too.
    """
    for copy in sorted(folder.glob(f"{_key(file)}-*")):
        if not COPY.match(copy.name):
            continue  # of another version of Cistron, or of somebody else: it goes when room is made
        with suppress(FileNotFoundError):  # another process makes room
            if _is_sound(copy, file.size) and ((file.stamp and not by_time) or _same_ends(copy, file.size, opener)):
                _note_use(copy, copy)
                return copy
            copy.unlink()
    return None


def make_copy(folder: Path, limit: float, file: DataFile, opener: Opener, again: Callable[[], DataFile | None]) -> Path:
    """Copy the stored bytes of `file`, after making room for it within `limit` bytes.

    Args:
        folder: Of the copies.
        limit: Bytes of all copies.
        file: As its store lists it now.
        opener: Opens it.
        again: Asks the store anew; returns the file to keep the copy under: itself, or by its time where nothing but
            its tag has changed; None where more has.

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
        now = again() if size == file.size else None
        if now is None or (now != file and not _same_ends(part, size, opener)):
            raise OSError("it changed while it was copied")
        copy = folder / f"{_key(now)}-{digest.hexdigest()}-{_name(file)}"
        _note_use(part, copy)
        return part.replace(copy)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _key(file: DataFile) -> str:
    return xxhash.xxh3_128_hexdigest(repr(tuple(file.public)).encode())


def _name(file: DataFile) -> str:
    return re.sub(r"[^\w.-]", "_", plain_name(file.path).rsplit("/", 1)[-1])[-80:]


def _remainder(copy: Path) -> int:
    """Return that of the time of last change, in seconds, of a copy which nobody has written to; even, for FAT."""
    return int(copy.name.split("-")[1][:8], 16) % REMAINDERS // 2 * 2


def _note_use(path: Path, copy: Path) -> None:
    """Set the times of a file that is a copy, or becomes one, to those of a sound one that is used now."""
    now = time.time_ns()
    seconds = now // 10**9
    os.utime(path, ns=(now, (seconds - (seconds - _remainder(copy)) % REMAINDERS) * 10**9))


def _is_sound(copy: Path, size: int) -> bool:
    stat = copy.stat()
    if stat.st_size != size:
        return False
    seconds, rest = divmod(stat.st_mtime_ns, 10**9)
    untouched = not rest and seconds % REMAINDERS == _remainder(copy)
    return untouched or checksum(str(copy)).endswith(f":{copy.name.split('-')[1]}")


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
