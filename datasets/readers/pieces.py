"""A corpus assigned to lanes: files are cut into pieces at record starts, and lanes get equal shares of bytes.

Both steps are deterministic in (files, lanes), so every process that looks at the same files makes the same plan.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import DataConfigError
from ..files import ByteFile, DataFile

# Large enough that a seek and a shuffle per piece cost nothing, small enough to balance lanes.
MAX_PIECE_BYTES = 64 * 2**20
# So that a lane's pieces can be permuted, and that one long record does not empty a lane.
PIECES_PER_LANE = 4
WINDOW_BYTES = 2**16


class Piece(NamedTuple):
    """A part of a file that is read in one go, holding whole documents.

    Attributes:
        path: Path or URL.
        start: Its first offset, as its reader counts: a byte of the uncompressed file, or a row.
        end: The offset after its last, None for "to the end" where that is unknown.
        size: Bytes as stored, by which lanes are balanced.
    """

    path: str
    start: int
    end: int | None
    size: int

    def share(self, offset: int) -> float | None:
        """Return which share of the piece lies before an offset, None where its end is unknown."""
        return None if self.end is None else (offset - self.start) / max(self.end - self.start, 1)


def target_size(files: Sequence[DataFile], lanes: int) -> int:
    """Return the bytes, as stored, that a piece of these files should have."""
    return min(MAX_PIECE_BYTES, sum(file.size for file in files) // (PIECES_PER_LANE * lanes) + 1)


def record_starts(file: ByteFile, size: int, boundary: bytes, target: int) -> list[int]:
    """Return 0 and later record starts at least `target` bytes apart, reading onwards from each to the next.

    Args:
        file: Cheap to seek in.
        size: Its bytes, uncompressed.
        boundary: Its first byte ends a record, the one after that begins the next.
        target: In uncompressed bytes.
    """
    starts = [0]
    at = target - 1  # the boundary's first byte belongs to the record before
    while at < size:
        file.seek(at)
        data = file.read(WINDOW_BYTES)
        found = data.find(boundary)
        if found >= 0 and at + found + 1 < size:
            starts.append(at + found + 1)
            at = starts[-1] + target - 1
        else:
            at += max(len(data) - len(boundary) + 1, 1)
    return starts


def assign(pieces: list[Piece], lanes: int, source: str, split: str) -> list[list[Piece]]:
    """Assign `pieces` to lanes, longest first and each to the lane with the fewest bytes so far.

    Args:
        pieces: Of all files of a source, in their order, which a lane keeps.
        lanes: How many there are.
        source: Name of the source, for messages.
        split: Which files of its format can be split, for messages.

    Raises:
        DataConfigError: There are fewer pieces than lanes.
    """
    if not pieces:
        raise DataConfigError(f"data.sources.paths: no file of source {source!r} has a byte in it")
    if len(pieces) < lanes:
        raise DataConfigError(
            f"data.lanes: {lanes} lanes need as many files, or parts of files that can be split, and source {source!r} "
            f"has {len(pieces)}; lower data.lanes, give it more files, or make token shards of them by `cistron prepare` "
            f"({split})"
        )
    assigned: list[list[int]] = [[] for _ in range(lanes)]
    loads = [(0, lane) for lane in range(lanes)]
    for place in sorted(range(len(pieces)), key=lambda place: -pieces[place].size):
        load, lane = heapq.heappop(loads)
        assigned[lane].append(place)
        heapq.heappush(loads, (load + pieces[place].size, lane))
    return [[pieces[place] for place in sorted(lane)] for lane in assigned]
