"""Whether the pieces of a tensor tile it: each element is in one piece, none in two.

By corners, not by elements or pairs of pieces. Take each box's indicator function; differentiated once along every
dimension it is a sum of points, one at each corner, with signs that alternate. A function that vanishes far away is
determined by that derivative, so boxes tile a shape exactly where the corners of all boxes, signs included, add up to
those of the shape. That is 2^dimensions additions a piece, in any order, of many pieces by sorting their corners.
"""

from collections.abc import Iterable, Sequence
from itertools import product

import numpy as np

Box = tuple[tuple[int, ...], tuple[int, ...]]  # where it begins, and its extent, in each dimension
DIMENSIONS = 8  # at most: a box has 2^8 corners
FEW = 32  # boxes, which numpy would be slower for


def wrongly_covered(shape: Sequence[int], boxes: Sequence[Box]) -> tuple[tuple[int, ...], int] | None:
    """Return the first element, row by row, that is not in exactly one box, and in how many it is; None: there is none.

    Args:
        shape: of the tensor.
        boxes: each inside of it.
    """
    whole = ((0,) * len(shape), tuple(shape))
    if len(boxes) == 1 and boxes[0] == whole:
        return None
    if len(boxes) > FEW and shape:
        return _first_left([whole, *boxes])
    rest: dict[tuple[int, ...], int] = {}
    for box, count in ((whole, -1), *((box, 1) for box in boxes)):
        for corner, sign in corners(box):
            rest[corner] = rest.get(corner, 0) + sign * count
    # at the first point that is left over, nothing before it adds to how often that element is covered
    first = min((corner for corner, count in rest.items() if count), default=None)
    return None if first is None else (first, 1 + rest[first])


def _first_left(boxes: Sequence[Box]) -> tuple[tuple[int, ...], int] | None:
    """Do as `wrongly_covered` for many boxes, the first of which is the whole."""
    ends = np.array(boxes, dtype=np.int64)  # [boxes, 2, dimensions]; a sum is inside of the shape, below 2^63
    ends[:, 1] += ends[:, 0]
    columns = np.arange(ends.shape[2])
    sides = np.array(list(product((0, 1), repeat=len(columns))))
    places = np.concatenate([ends[:, side, columns] for side in sides])
    counts = np.concatenate([np.where(np.arange(len(ends)), 1, -1) * (-1) ** side.sum() for side in sides])
    order = np.lexsort(places.T[::-1])
    places, counts = places[order], counts[order]
    new = np.concatenate([[True], (places[1:] != places[:-1]).any(1)])
    sums = np.add.reduceat(counts, np.flatnonzero(new))
    if not sums.any():
        return None
    first = int(sums.astype(np.bool_).argmax())
    return tuple(places[new][first].tolist()), 1 + int(sums[first])


def corners(box: Box) -> Iterable[tuple[tuple[int, ...], int]]:
    """Return the corners of a box and the signs of its mixed derivative there."""
    found: list[tuple[tuple[int, ...], int]] = [((), 1)]
    for begin, extent in zip(*box, strict=True):
        ends = ((begin, 1), (begin + extent, -1))
        found = [((*corner, place), sign * side) for corner, sign in found for place, side in ends]
    return found
