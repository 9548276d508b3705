"""Files known again by what decides rows: their order, the last part of each name, size and content.

Neither the folder nor the time of a file is part of it: a corpus may be copied, touched, or mounted elsewhere. The last
part of the name is, since it is a key of `documents.Strands`. Every process stamps all files at its start, so that the
bytes which are read for that are bounded.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from urllib.parse import urlsplit

import xxhash

from ..errors import DataError
from .find import DataFile, is_remote, local_path

# Files of up to so many bytes together are hashed whole: 256 MiB took 0.3 s from the page cache on a busy CPU.
WHOLE_BYTES = 2**30
# Else so much of each: a corpus of 1 TB has 10^3 to 10^5 files, each read of which takes 1 ms from a cold network disk.
BLOCKS, BLOCK_BYTES = 8, 2**14
CHUNK, THREADS = 2**22, 16
# (path, size, stamp) of files as JSON keeps them.
Listing = Sequence[Sequence[str | int]]
NAMED = 5  # changes that a message tells one by one


def stamped(files: Sequence[DataFile]) -> list[DataFile]:
    """Give local files, which are found without one, a stamp: the xxh3 of their content, or of a sample of it.

    All bytes of files that have no more than `WHOLE_BYTES` together; else eight blocks of 16 KiB of each file, evenly
    from its first byte to its last.

    Raises:
        DataError: A file cannot be read.
    """
    whole = sum(file.size for file in files if local_path(file.path)) <= WHOLE_BYTES
    with ThreadPoolExecutor(THREADS, "cistron-stamps") as pool:
        return list(pool.map(partial(_stamped, whole=whole), files))


def _stamped(file: DataFile, whole: bool) -> DataFile:
    if (path := local_path(file.path)) is None:
        return file
    length, starts = CHUNK, list(range(0, file.size, CHUNK))
    if not whole and file.size > BLOCKS * BLOCK_BYTES:
        length = BLOCK_BYTES
        starts = [(file.size - length) * place // (BLOCKS - 1) for place in range(BLOCKS)]
    digest = xxhash.xxh3_64()
    try:
        with open(path, "rb", buffering=0) as opened:  # noqa: PTH123 (a Path takes half as much time again)
            for start in starts:
                digest.update(os.pread(opened.fileno(), length, start))
    except OSError as error:
        raise DataError(f"cannot be read: {error}", file=file.path) from error
    return file._replace(stamp=digest.hexdigest())


def last_name(path: str) -> str:
    """Return the last part of a path or URL, without a URL's query, which may be a signature of the day."""
    return (urlsplit(path).path if is_remote(path) else path).rpartition("/")[2]


def identity(file: DataFile) -> tuple[str, int, str]:
    """Return what decides the rows of a file: the last part of its name, its size and its stamp."""
    return last_name(file.public.path), file.size, file.stamp


def fingerprint(files: Iterable[DataFile]) -> str:
    """Return a hash over the identities of files, in their order, by which a resumed run knows its corpus again."""
    listing = "\n".join("\t".join(map(str, identity(file))) for file in files)
    return xxhash.xxh3_128_hexdigest(listing.encode())


def listed(saved: Listing) -> list[DataFile]:
    """Return the files of a listing."""
    return [DataFile(str(path), int(size), str(stamp)) for path, size, stamp in saved]


def saved_order(saved: Listing | None, files: Sequence[DataFile]) -> list[int]:
    """Return the places of `files` in the order of a listing of the same files; in their own where it is of others.

    Files are found sorted by path, and folders that move may sort otherwise.
    """
    before = listed(saved or ())
    if Counter(map(identity, before)) != Counter(map(identity, files)):
        return list(range(len(files)))
    places = defaultdict(list)
    for place in reversed(range(len(files))):
        places[identity(files[place])].append(place)
    return [places[identity(file)].pop() for file in before]


def changes(saved: Listing, files: Sequence[DataFile]) -> list[str]:
    """Return a line for each file that is not as it was, at most five and a line for the number of others.

    Args:
        saved: The files as they were.
        files: As they are.
    """
    pairs, gone, new = _compared(listed(saved), files)
    resized = [f"{b.path} changed its size from {a.size} to {b.size} bytes" for a, b in pairs if a.size != b.size]
    others = [f"{b.path} was changed: its checksum was {a.stamp!r} and is {b.stamp!r}" for a, b in pairs if a.size == b.size]
    lines = [*resized, *(f"{file.path} is gone" for file in gone), *(f"{file.path} is new" for file in new), *others]
    return _told(lines, listed(saved), files)


def deviations(first: Sequence[DataFile], files: Sequence[DataFile]) -> list[str]:
    """Return a line for each file of a rank that is not as rank 0 found it, as `changes` does.

    Args:
        first: The files of rank 0.
        files: Those of the rank.
    """
    pairs, missing, more = _compared([file.public for file in first], files)
    resized = [f"{b.path}: {b.size} bytes, and {a.size} on rank 0" for a, b in pairs if a.size != b.size]
    others = [f"{b.path}: checksum {b.stamp!r}, and {a.stamp!r} on rank 0" for a, b in pairs if a.size == b.size]
    lines = [*(f"{file.path}: missing" for file in missing), *(f"{file.path}: not on rank 0" for file in more)]
    return _told([*resized, *lines, *others], first, files)


def _compared(
    before: Sequence[DataFile], now: Sequence[DataFile]
) -> tuple[list[tuple[DataFile, DataFile]], list[DataFile], list[DataFile]]:
    """Return files of the same path, else of the same name, that differ in pairs; those that are gone; and new ones."""
    gone, new = _unmatched(before, now), [file.public for file in _unmatched(now, before)]
    pairs = _pairs(gone, new, lambda file: file.path) + _pairs(gone, new, lambda file: last_name(file.path))
    return pairs, gone, new


def _told(lines: list[str], before: Sequence[DataFile], now: Sequence[DataFile]) -> list[str]:
    if not lines and fingerprint(before) != fingerprint(now):
        return ["its files are the same, and come in another order"]
    return lines if len(lines) <= NAMED else [*lines[:NAMED], f"and {len(lines) - NAMED} more"]


def _unmatched(files: Sequence[DataFile], others: Sequence[DataFile]) -> list[DataFile]:
    """Return those of `files` without one of the same identity among `others`."""
    left = Counter(map(identity, others))
    found = []
    for file in files:
        if left[identity(file)]:
            left[identity(file)] -= 1
        else:
            found.append(file)
    return found


def _pairs(before: list[DataFile], now: list[DataFile], key: Callable[[DataFile], str]) -> list[tuple[DataFile, DataFile]]:
    """Take files that have the same key out of both lists, and return them in pairs."""
    places = {key(now[place]): place for place in reversed(range(len(now)))}
    pairs: list[tuple[DataFile, DataFile]] = []
    left: list[DataFile] = []
    taken: set[int] = set()
    for file in before:
        if (place := places.pop(key(file), None)) is None:
            left.append(file)
        else:
            pairs.append((file, now[place]))
            taken.add(place)
    before[:], now[:] = left, [file for place, file in enumerate(now) if place not in taken]
    return pairs
