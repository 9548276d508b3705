"""Token files that are plain arrays of ids: one-dimensional `.npy` files, or raw dumps.

An eos ends each document, unless a file of offsets beside the array says where documents begin.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from ..errors import DataError
from ..files import DataFile
from ..readers import Piece
from ..tokenizers import Ids
from .imported import CHUNK, TokenIndices, TokenReader, Tokens

# Documents of fewer tokens, or more, on average: then what is taken for an eos is none.
PLAUSIBLE = (2, 10**9)


@dataclass(frozen=True)
class DumpReader(TokenReader):
    """One-dimensional `.npy` arrays, or raw `.bin` files; a piece's start and end are numbers of tokens.

    Attributes:
        eos_id: Ends documents.
        append_eos: The last document may lack it.
        dtype: Of raw files; None where all are `.npy`, which state theirs.
        pad_id: Id of padding that may follow the last eos; None: there is none.
        offsets: What in the name of a file takes the place of `.npy` or `.bin` in that of its offsets; None: there are
            none.
    """

    eos_id: int
    append_eos: bool
    dtype: str | None
    pad_id: int | None = None
    offsets: str | None = None

    @override
    def settings(self) -> dict[str, Any]:
        return {"import": "tokens", "dtype": self.dtype, "eos_id": self.eos_id, "offsets": self.offsets}

    def _ids(self, path: str) -> Ids:
        local = self.storage.local(path)
        try:
            if path.endswith(".npy"):
                ids: npt.NDArray[Any] = np.lib.format.open_memmap(local, mode="r")
            elif self.dtype is None:
                raise DataError("a raw dump does not say how its ids are written; give --dtype", file=path)
            else:
                ids = np.memmap(local, np.dtype(self.dtype).newbyteorder("<"), "r")
        except DataError:
            raise
        except Exception as error:  # numpy's, which evaluates a header as Python: whatever a parser raises of garbage
            raise DataError(f"not an array of ids: {error}", file=path) from None
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise DataError(f"expected integers in one dimension, found {ids.dtype} of shape {ids.shape}", file=path)
        if path.endswith(".npy") and self.dtype is not None and ids.dtype != np.dtype(self.dtype):
            raise DataError(f"--dtype is {self.dtype}, and this array is of {ids.dtype}", file=path)
        return ids

    def _bounds(self, path: str, ids: Ids) -> TokenIndices | None:
        """Return the first token of each document, and behind the last the number of tokens: int64 [documents + 1].

        Raises:
            DataError: The file of offsets says something else.
        """
        if self.offsets is None:
            return None
        name = path.removesuffix(".npy").removesuffix(".bin") + self.offsets
        try:
            bounds: npt.NDArray[Any] = np.lib.format.open_memmap(self.storage.local(name), mode="r")
        except DataError:
            raise
        except Exception as error:  # as above
            raise DataError(f"--offsets {self.offsets}: not an array of offsets: {error}", file=name) from None
        if bounds.ndim != 1 or not np.issubdtype(bounds.dtype, np.integer) or len(bounds) < 2:
            raise DataError(f"expected integers in one dimension, found {bounds.dtype} of shape {bounds.shape}", file=name)
        bounds = bounds.astype(np.int64)
        if bounds[0] != 0 or bounds[-1] != len(ids) or (np.diff(bounds) < 0).any():
            problem = f"from {bounds[0]} to {bounds[-1]}; they must rise from 0 to the {len(ids)} tokens of {path}"
            raise DataError(f"its offsets go {problem}", file=name)
        return bounds

    @override
    def split(self, file: DataFile, target: int) -> list[Piece]:
        """Cut where documents begin, as the offsets say, or behind an eos, after counting all of them.

        Raises:
            DataError: An eos does not end documents, or the offsets do not hold.
        """
        ids = self._ids(file.path)
        itemsize = ids.dtype.itemsize
        bounds = self._bounds(file.path, ids)
        starts = [0]
        if bounds is not None:
            size = max(target // itemsize, 1)
            while (cut := int(bounds[np.searchsorted(bounds, min(starts[-1] + size, len(ids)))])) < len(ids):
                starts.append(cut)
            return self._pieces(file.path, [*starts, len(ids)], itemsize)
        ends = sum(self._count_ends(ids, at) for at in range(0, len(ids), CHUNK))
        low, high = PLAUSIBLE
        if not low * ends <= len(ids) <= high * ends:
            mean = f"{len(ids) / ends:.2f} tokens a document" if ends else "so that there would be no end of a document"
            pads = f", or it fills rows up: then give --pad-id {self.eos_id}" if ends and self.pad_id != self.eos_id else ""
            problem = f"{ends:,} of {len(ids):,} tokens are the eos {self.eos_id}, {mean}"
            raise DataError(f"{problem}; that is not the eos of this dump, or --dtype is not its dtype{pads}", file=file.path)
        if ids[-1] not in (self.eos_id, self.pad_id) and not self.append_eos:
            problem = f"its last document ends with {ids[-1]}, not the eos {self.eos_id}; give --append-eos to end it"
            raise DataError(problem, file=file.path)
        while (cut := self._behind_eos(ids, starts[-1] + max(target // itemsize, 1))) < len(ids):
            starts.append(cut)
        return self._pieces(file.path, [*starts, len(ids)], itemsize)

    def _pieces(self, path: str, cuts: Sequence[int], itemsize: int) -> list[Piece]:
        return [Piece(path, start, end, (end - start) * itemsize) for start, end in pairwise(cuts)]

    def _count_ends(self, ids: Ids, start: int) -> int:
        """Return how many eos there are in a chunk; where they are padding too, how many that follow another token."""
        found = ids[start : start + CHUNK] == self.eos_id
        if self.pad_id == self.eos_id:
            found[1:] &= ~found[:-1]
        return int(np.count_nonzero(found))

    def _behind_eos(self, ids: Ids, start: int) -> int:
        """Return the first place at or after `start` that follows an eos; the end where there is none."""
        for at in range(start - 1, len(ids), CHUNK):
            found = ids[at : at + CHUNK] == self.eos_id
            if found.any():
                return at + int(found.argmax()) + 1
        return len(ids)

    @override
    def tokens(self, piece: Piece) -> Iterator[Tokens]:
        assert piece.end is not None
        ids = self._ids(piece.path)
        bounds = self._bounds(piece.path, ids)
        for start in range(piece.start, piece.end, CHUNK):
            part = ids[start : min(start + CHUNK, piece.end)]
            if bounds is not None:
                low, high = np.searchsorted(bounds, [start, start + len(part)], side="right")
                yield Tokens(part, bounds[low if start else 1 : high] - start, None, part.nbytes)
                continue
            ends = np.flatnonzero(part == self.eos_id) + 1
            if start + len(part) == piece.end and part[-1] != self.eos_id:
                ends = np.append(ends, len(part))
            yield Tokens(part, ends, None, part.nbytes)

    @override
    def first_document(self, piece: Piece) -> int | None:
        bounds = self._bounds(piece.path, self._ids(piece.path))
        if bounds is not None:
            return int(np.searchsorted(bounds, piece.start, side="right")) - 1 if piece.start else 0
        return 0 if piece.start == 0 else None
