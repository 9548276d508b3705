"""A corpus dealt to lanes: files are cut into pieces at record starts, and lanes get equal shares of bytes.

Both steps are deterministic in (files, lanes), so every process that looks at the same files makes the same plan.
"""

import heapq
from itertools import pairwise
from typing import NamedTuple

from .errors import DataConfigError
from .files import DataFile, is_compressed, open_binary

# Large enough that a seek and a shuffle per piece cost nothing, small enough to balance lanes.
MAX_PIECE_BYTES = 64 * 2**20
# So that a lane's pieces can be permuted, and that one long record does not empty a lane.
PIECES_PER_LANE = 4


class Piece(NamedTuple):
    """A part of a file that is read in one go, holding whole documents.

    Attributes:
        path: Path or URL.
        start: First byte.
        end: Byte after the last, None for "to the end" where it is unknown (compressed files).
        size: Bytes as stored, by which lanes are balanced.
    """

    path: str
    start: int
    end: int | None
    size: int


def split(files: list[DataFile], boundary: bytes | None, lanes: int) -> list[Piece]:
    """Cut `files` into pieces; those without a byte vanish.

    Args:
        files: The files of one source.
        boundary: What a record start follows (the reader's), None where files are not split.
        lanes: Lanes of the source, from which the size of pieces follows.
    """
    target = min(MAX_PIECE_BYTES, sum(file.size for file in files) // (PIECES_PER_LANE * lanes) + 1)
    pieces = []
    for path, size in files:
        if is_compressed(path):
            pieces.append(Piece(path, 0, None, size))
        elif boundary is None or size <= target:
            pieces.append(Piece(path, 0, size, size))
        else:
            starts = _record_starts(path, size, boundary, target)
            pieces += [Piece(path, start, end, end - start) for start, end in pairwise([*starts, size])]
    return [piece for piece in pieces if piece.size > 0]


def _record_starts(path: str, size: int, boundary: bytes, target: int) -> list[int]:
    """Return record starts at least `target` bytes apart, reading onwards from each to the next."""
    starts = [0]
    window = 2**16
    with open_binary(path) as file:
        at = target - 1  # the boundary's first byte belongs to the record before
        while at < size:
            file.seek(at)
            data = file.read(window)
            found = data.find(boundary)
            if found >= 0 and at + found + 1 < size:
                starts.append(at + found + 1)
                at = starts[-1] + target - 1
            else:
                at += max(len(data) - len(boundary) + 1, 1)
    return starts


def deal(pieces: list[Piece], lanes: int, source: str) -> list[list[Piece]]:
    """Deal `pieces` to lanes, longest first and each to the lane with the fewest bytes so far.

    Raises:
        DataConfigError: There are fewer pieces than lanes.
    """
    if not pieces:
        raise DataConfigError(f"data.sources.paths: no file of source {source!r} has a byte in it")
    if len(pieces) < lanes:
        raise DataConfigError(
            f"data.lanes: {lanes} lanes need as many files, or parts of files that can be split, and source {source!r} "
            f"has {len(pieces)}; lower data.lanes, or give it more files (jsonl and FASTA split when not compressed)"
        )
    dealt: list[list[Piece]] = [[] for _ in range(lanes)]
    loads = [(0, lane) for lane in range(lanes)]
    for piece in sorted(pieces, key=lambda piece: (-piece.size, piece.path, piece.start)):
        load, lane = heapq.heappop(loads)
        dealt[lane].append(piece)
        heapq.heappush(loads, (load + piece.size, lane))
    return [sorted(lane) for lane in dealt]
