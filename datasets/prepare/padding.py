"""Padding in token files: which ids it is, where it ends, and what merely looks like it.

Padding stands at the ends of documents, and is taken off there. Which ids it is: those under a 0 of the source's own
mask, else `--pad-id`, else the tokenizer's pad where that can be no other token. Rows whose padding nobody states would
become targets; rows that look so are refused with the id.
"""

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..tokenizers import Ids, Tokenizer

PadId: TypeAlias = int | Literal["none"] | None  # "none": there is no padding; None: the source, or the tokenizer, says
Mask = npt.NDArray[np.bool_]
# What looks like padding: more than half of the documents have a run of one id at the same end, of this many on
# average, and are of few lengths. Sampled, as a run may be long.
RUN, SAMPLE = 3, 256


def own_pad(tokenizer: Tokenizer) -> int | None:
    """Return the pad of a tokenizer where it can be nothing else: neither the eos, nor a byte of a text."""
    return None if tokenizer.pad_id == tokenizer.eos_id or tokenizer.alphabet == "bytes" else tokenizer.pad_id


def stated_pad(tokenizer: Tokenizer, pad_id: PadId) -> int | None:
    """Return the id that is padding where a source has no mask, None where none is."""
    return own_pad(tokenizer) if pad_id is None else None if pad_id == "none" else pad_id


def filled_mask(ids: Ids, ends: npt.NDArray[np.int64], pads: Mask, eos_id: int | None) -> Mask:
    """Return which tokens are not in the padding around a document: all from its first to its last that is none.

    Args:
        ids: Of the documents.
        ends: Behind the last token of each.
        pads: Which tokens are of the padding, wherever they are.
        eos_id: Where it is the padding: of those behind a document the first is its own. None: it is not.
    """
    kept = np.flatnonzero(~pads)
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)[: len(ends)]
    low, high = np.searchsorted(kept, starts), np.searchsorted(kept, ends)
    low, high, ends = low[low < high], high[low < high], ends[low < high]
    stops = kept[high - 1] + 1
    if eos_id is not None:
        more = np.flatnonzero(stops < ends)
        stops[more] += ids[stops[more]] == eos_id
    edges = np.zeros(len(ids) + 1, dtype=np.int8)
    edges[kept[low]] += 1
    edges[stops] -= 1
    return np.cumsum(edges[:-1], dtype=np.int8).astype(np.bool_)


def unstated_padding(ids: Ids, ends: npt.NDArray[np.int64], eos_id: int | None) -> tuple[int, int] | None:
    """Return the id that documents look padded with, and how many do; None where they do not.

    Args:
        ids: Of whole documents.
        ends: Behind the last token of each.
        eos_id: Is no padding here; None: it may be, too.
    """
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    lengths = ends - starts
    starts, ends, lengths = starts[lengths > 1], ends[lengths > 1], lengths[lengths > 1]
    for outer, inner, step in ((ends - 1, ends - 2, -1), (starts, starts + 1, 1)):
        runs = ids[outer][ids[outer] == ids[inner]]
        if 2 * len(runs) <= len(ends):
            continue
        values, counts = np.unique(runs, return_counts=True)
        value, count = int(values[counts.argmax()]), int(counts.max())
        found = np.flatnonzero((ids[outer] == value) & (ids[inner] == value))
        if value == eos_id or 2 * count <= len(ends) or 2 * len(np.unique(lengths[found])) > count:
            continue
        sample = [_run(ids[starts[at] : ends[at]][::step], value) for at in found[:SAMPLE]]
        if sum(sample) >= max(RUN * len(sample), 8 + len(sample)):
            return value, count
    return None


def _run(ids: npt.NDArray[Any], value: int) -> int:
    other = ids != value
    return int(other.argmax()) if other.any() else len(ids)
