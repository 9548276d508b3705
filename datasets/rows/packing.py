"""Documents of a block into rows: plans on lengths alone, and batches from rows.

`best_fit` is best-fit decreasing: the longest segment first, into the open row that it leaves the least room in, found
by bisection among the amounts of room that are open: 0.8 ms per 1,000 documents in rows of 2^11 as of 2^20 tokens,
where a bit-set of the amounts, quick to search, would take 42 ms to copy. `concat` cuts the concatenated documents
every `seq_len` tokens. `padded` gives each document rows of its own. With an `overlap` the rows of a long document are
windows: each begins with the last `overlap` tokens of the one before, which are context there and no targets.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import DataConfigError
from ..tokenizers import Ids
from .objectives import IGNORE, LaidOutRows, NextToken, Objective, PackedRow, TokenMask, Weights

POLICIES = ("best_fit", "concat", "padded")
PAD_MULTIPLE = 128  # of the width of a padded batch: few shapes for compilers, whole blocks for masks
Part = tuple[int, int, int]  # segment, its first token in this row, how many


class Block(NamedTuple):
    """Consecutive documents of a lane.

    Attributes:
        arrays: Token ids, 1-d; what segments are parts of.
        weights: Loss weights, one for each id of `arrays`; None where there are none.
        array: int64 [segments]: in which of `arrays` a segment lies.
        starts: int64 [segments]: where it begins there.
        lengths: int64 [segments]: its tokens, the eos included.
        open: bool [segments]: it goes on behind its last token, so has no eos. It is full rows or windows, except under
            `concat`, where the last segment of the block may end anywhere.
        label_values: float64 [segments]: label of each document, NaN of one that goes on; None: there are no labels.
        continued: bool [segments]: its first `overlap` tokens are context, from the end of another segment; None: of
            none.
    """

    arrays: Sequence[Ids]
    weights: Sequence[Weights] | None
    array: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]
    open: npt.NDArray[np.bool_]
    label_values: npt.NDArray[np.float64] | None = None
    continued: npt.NDArray[np.bool_] | None = None

    def in_order(self, order: Sequence[int]) -> "Block":
        """Return the same segments in another order."""
        places = np.array(order, dtype=np.int64)
        return self._replace(
            array=self.array[places],
            starts=self.starts[places],
            lengths=self.lengths[places],
            open=self.open[places],
            label_values=None if self.label_values is None else self.label_values[places],
            continued=None if self.continued is None else self.continued[places],
        )


class Planes(NamedTuple):
    """A batch.

    Attributes:
        tokens: int64 [batch, width].
        labels: int64 [batch, width], -100 where no loss is taken.
        positions: int32 [batch, width].
        sequence_ids: int32 [batch, width], -1 on padding.
        weights: float32 [batch, width]: of each label, 0 where there is none; None: 1 for each label.
        values: float32 [batch, width]: of each label; None where labels are classes.
    """

    tokens: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int32]
    sequence_ids: npt.NDArray[np.int32]
    weights: Weights | None
    values: npt.NDArray[np.float32] | None


def best_fit(lengths: Sequence[int], seq_len: int, overlap: int = 0) -> list[list[Part]]:
    """Plan rows so that segments that fit in one are whole and few rows are needed.

    A longer segment becomes full rows and a remainder. Segments keep their order within a row.
    """
    rows, items = _whole_rows(lengths, seq_len, overlap)
    items.sort(key=itemgetter(2), reverse=True)
    rooms: list[int] = []  # ascending: the amounts of room that some row has left
    rows_with_room: dict[int, list[list[Part]]] = {}
    for part in items:
        length = part[2]
        tightest = bisect_left(rooms, length)
        if tightest < len(rooms):
            open_rows = rows_with_room[rooms[tightest]]
            left = rooms[tightest] - length
            row = open_rows.pop()
            if not open_rows:
                del rooms[tightest]
        else:
            left = seq_len - length
            row = []
            rows.append(row)
        row.append(part)
        if left:
            open_rows = rows_with_room.setdefault(left, [])
            if not open_rows:
                insort(rooms, left)
            open_rows.append(row)
    for row in rows:
        row.sort()
    return rows


def rows_of_best_fit(lengths: npt.NDArray[np.int64], seq_len: int, overlap: int = 0) -> int:
    """Return how many rows `best_fit` plans, in half of its time."""
    full = np.maximum(lengths - overlap, 0) // (seq_len - overlap)
    rests = lengths - full * (seq_len - overlap)
    rests[(full > 0) & (rests == overlap)] = 0
    rows = int(full.sum())
    rooms: list[int] = []  # ascending, one for each row that has room
    for length in np.sort(rests[rests > 0])[::-1].tolist():
        tightest = bisect_left(rooms, length)
        if tightest < len(rooms):
            left = rooms.pop(tightest) - length
        else:
            left = seq_len - length
            rows += 1
        if left:
            insort(rooms, left)
    return rows


def concat(lengths: Sequence[int], seq_len: int) -> list[list[Part]]:
    """Plan rows that cut the concatenated segments every `seq_len` tokens."""
    rows: list[list[Part]] = []
    room = 0
    for segment, length in enumerate(lengths):
        start = 0
        while start < length:
            if room == 0:
                rows.append([])
                room = seq_len
            taken = min(room, length - start)
            rows[-1].append((segment, start, taken))
            start += taken
            room -= taken
    return rows


def padded(lengths: Sequence[int], seq_len: int, overlap: int = 0) -> list[list[Part]]:
    """Plan rows of one segment each; one that is longer than a row becomes full rows and a remainder."""
    rows, items = _whole_rows(lengths, seq_len, overlap)
    return rows + [[part] for part in items]


def _whole_rows(lengths: Sequence[int], seq_len: int, overlap: int) -> tuple[list[list[Part]], list[Part]]:
    """Return the full rows that long segments make on their own, and what is left of each segment, if anything.

    What is left has its `overlap` tokens of context before it.
    """
    rows: list[list[Part]] = []
    rest = []
    stride = seq_len - overlap
    for segment, length in enumerate(lengths):
        start, covered = 0, 0
        if length >= seq_len:
            start = (length - overlap) // stride * stride
            covered = start + overlap
            rows += [[(segment, at, seq_len)] for at in range(0, start, stride)]
        if length > covered:
            rest.append((segment, start, length - start))
    return rows, rest


class Packer:
    """Blocks to rows to batches. States the ids that it writes, for the eos contract.

    Attributes:
        weighted: Every batch has weights, also one whose rows have none: what a row is and what is compiled for it must
            not depend on its neighbours in the batch.
    """

    def __init__(
        self,
        seq_len: int,
        eos_id: int,
        pad_id: int,
        policy: str,
        objective: Objective | None = None,
        *,
        pad_multiple: int = PAD_MULTIPLE,
        overlap: int = 0,
    ) -> None:
        if policy not in POLICIES:
            raise DataConfigError(f"data.packing: {policy!r} is not one of {', '.join(map(repr, POLICIES[:2]))}")
        self.seq_len = seq_len
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.policy = policy
        self.objective = objective or NextToken()
        self.pad_multiple = pad_multiple
        self.overlap = overlap
        self.weighted = False
        self._padding = np.full(seq_len, pad_id)
        self._ramp = np.arange(0, dtype=np.int32)

    def plan(self, block: Block) -> list[list[Part]]:
        """Return the rows of a block, in order of the plan."""
        lengths: list[int] = block.lengths.tolist()
        if self.policy == "padded":
            return padded(lengths, self.seq_len, self.overlap)
        if self.policy == "best_fit":
            return best_fit(lengths, self.seq_len, self.overlap)
        # Open segments are whole rows by themselves; but one may end anywhere, and then fills the block's last row.
        alone = block.open & (block.lengths % self.seq_len == 0)
        tail = block.open & ~alone
        rows = [
            [(segment, start, self.seq_len)]
            for segment in np.flatnonzero(alone).tolist()
            for start in range(0, lengths[segment], self.seq_len)
        ]
        order = [*np.flatnonzero(~block.open).tolist(), *np.flatnonzero(tail).tolist()]
        for row in concat([lengths[segment] for segment in order], self.seq_len):
            rows.append([(order[place], start, length) for place, start, length in row])
        return rows

    def rows(self, block: Block, plan: Sequence[Sequence[Part]]) -> Iterator[PackedRow]:
        """Yield the rows of `plan`, views of the block's arrays."""
        arrays, weighted = block.arrays, block.weights
        array, starts, lengths, goes_on = (field.tolist() for field in (block.array, block.starts, block.lengths, block.open))
        for parts in plan:
            views = [arrays[array[at]][(begin := starts[at] + start) : begin + length] for at, start, length in parts]
            last, start, length = parts[-1]
            unfinished = goes_on[last] or start + length < lengths[last]
            assert unfinished or views[-1][-1] == self.eos_id, "a segment that does not go on ends with eos"
            following = int(arrays[array[last]][starts[last] + start + length]) if unfinished else None
            weights = self._weights(block, parts, unfinished) if weighted is not None or self.overlap else None
            label_values = None
            if block.label_values is not None:
                ended = (start + length == lengths[at] and not goes_on[at] for at, start, length in parts)
                label_values = [
                    float(block.label_values[at]) if end else np.nan for (at, _, _), end in zip(parts, ended, strict=True)
                ]
            yield PackedRow(views, following, weights, label_values)

    def _weights(self, block: Block, parts: Sequence[Part], unfinished: bool) -> Weights | None:
        """Return the weights of a row's tokens, and of the one behind where there is one; None where all are 1.

        The first `overlap` targets of a window were those of the window before.
        """
        continued = block.continued
        contexts = [self.overlap > 0 and (start > 0 or (continued is not None and continued[at])) for at, start, _ in parts]
        if block.weights is None and not any(contexts):
            return None
        stretches = []
        for place, ((at, start, length), context) in enumerate(zip(parts, contexts, strict=True)):
            size = length + (unfinished and place == len(parts) - 1)
            if block.weights is None:
                own = np.ones(size, dtype=np.float32)
            else:
                begin = int(block.starts[at]) + start
                own = block.weights[block.array[at]][begin : begin + size]
            if context:
                own = own.copy()
                own[: self.overlap + self.objective.shift] = 0.0
            stretches.append(own)
        return np.concatenate(stretches)

    def expand(self, rows: Sequence[PackedRow], numbers: Sequence[int]) -> Planes:
        """Lay rows out as a batch, `seq_len` wide; under `padded` as wide as the longest needs.

        Args:
            rows: As `rows` yields them.
            numbers: Global number of each, -1 of those that only fill up the batch.
        """
        lengths_of_rows = [list(map(len, row.parts)) for row in rows]
        used = list(map(sum, lengths_of_rows))
        width = self.seq_len
        if self.policy == "padded":
            width = min(width, -(-max(used) // self.pad_multiple) * self.pad_multiple)
        parts: list[Ids] = []
        lengths: list[int] = []
        of_parts: list[int] = []
        for row, of_row, tokens_used in zip(rows, lengths_of_rows, used, strict=True):
            parts += row.parts
            lengths += of_row
            of_parts += range(len(of_row))
            if tokens_used < width:
                parts.append(self._padding[tokens_used:width])
                lengths.append(width - tokens_used)
                of_parts.append(-1)
        # Allocations of this size cost as much as a pass over them: no temporary is made where an output can serve.
        tokens = np.concatenate(parts, dtype=np.int64, casting="same_kind")
        counts = np.array(lengths)
        ends = np.cumsum(counts)
        number = np.array(of_parts, dtype=np.int32)
        sequence_ids = np.repeat(number, counts)
        if len(self._ramp) < len(tokens):
            self._ramp = np.arange(len(tokens), dtype=np.int32)
        positions = np.repeat((ends - counts).astype(np.int32), counts)
        np.subtract(self._ramp[: len(tokens)], positions, out=positions)
        for place in np.flatnonzero(number < 0).tolist():
            positions[int(ends[place]) - lengths[place] : int(ends[place])] = 0
        shape = (len(rows), width)
        tokens, positions, sequence_ids = tokens.reshape(shape), positions.reshape(shape), sequence_ids.reshape(shape)
        targets = self.objective.targets(LaidOutRows(rows, numbers, tokens, sequence_ids, ends, used))
        weights = targets.weights
        if weights is None and self.weighted:
            weights = (targets.labels != IGNORE).astype(np.float32)
        return Planes(targets.tokens, targets.labels, positions, sequence_ids, weights, targets.values)


def lay_out(rows: Sequence[Sequence[Ids]], width: int, pad_id: int = 0) -> Planes:
    """Lay out rows whose documents are chosen by hand: the planes that a packer makes of the same rows.

    Args:
        rows: The documents of each row, int [tokens] with their eos; the last of a row may lack it.
        width: Tokens of a row, at least those of its documents; what is left is padding.
        pad_id: Fills it.

    Returns:
        Planes of shape [rows, width], with the labels of `NextToken`, that keep all row invariants, also on padding.
    """
    packer = Packer(width, -1, pad_id, "best_fit")  # an eos matters to plans alone
    return packer.expand([PackedRow(list(row)) for row in rows], range(len(rows)))


def row_violations(
    tokens: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    positions: npt.NDArray[Any],
    sequence_ids: npt.NDArray[Any],
    eos_id: int,
    objective: Objective | None = None,
    goes_on: Sequence[bool] | None = None,
) -> list[str]:
    """Return what in a batch breaks the row invariants; nothing when all hold.

    Documents end where the eos tokens are. With `goes_on` a document may hold eos tokens inside: then documents end
    where `sequence_ids` say, and an eos must be at each of these places.

    Args:
        tokens: [batch, seq_len] input ids.
        labels: [batch, seq_len] targets, -100 where there is no loss.
        positions: [batch, seq_len] as packed.
        sequence_ids: [batch, seq_len] as packed, -1 on padding.
        eos_id: The id that ends documents.
        objective: Whose labels they are; None: `NextToken`.
        goes_on: Of each row, whether its last document goes on behind it; None: no document has an eos inside.
    """
    tokens, labels, positions, sequence_ids = map(np.asarray, (tokens, labels, positions, sequence_ids))
    used = sequence_ids >= 0
    at_eos = used & (tokens == eos_id)
    ends = at_eos if goes_on is None else document_ends(sequence_ids, goes_on)
    implies = "the eos tokens imply" if goes_on is None else "the ends of documents imply"
    opens = np.zeros_like(used)
    opens[:, 0] = True
    opens[:, 1:] = ends[:, :-1]
    index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    implied_ids = np.where(used, np.cumsum(ends, axis=1) - ends, -1)
    implied_positions = np.where(used, index - np.maximum.accumulate(np.where(opens, index, 0), axis=1), 0)
    # A document that goes on is followed by its next token, or by the end of the row.
    unfinished = used[:, :-1] & ~ends[:, :-1] & ~used[:, 1:]
    checks = {
        "padding comes before a token": used[:, 1:] & ~used[:, :-1],
        "a row holds no token": ~used[:, :1],
        f"sequence_ids differ from what {implies}": sequence_ids != implied_ids,
        f"positions differ from what {implies}": positions != implied_positions,
        "a document ends without eos": ends & ~at_eos,
        "padding follows a document without eos": unfinished,
        "the label on padding is not -100": ~used & (labels != IGNORE),
        **(objective or NextToken()).violations(tokens, labels, used, ends),
    }
    return [f"row {np.argwhere(wrong)[0][0]}: {problem}" for problem, wrong in checks.items() if wrong.any()]


def document_ends(sequence_ids: npt.NDArray[Any], goes_on: Sequence[bool]) -> TokenMask:
    """Return where documents end: bool, of the shape of `sequence_ids`, whatever their tokens are.

    Args:
        sequence_ids: [batch, seq_len] as packed, -1 on padding.
        goes_on: Of each row, whether its last document goes on behind it.
    """
    ends: TokenMask = sequence_ids >= 0
    last = ends.sum(1) - 1
    ends[:, :-1] &= sequence_ids[:, :-1] != sequence_ids[:, 1:]
    open_rows = np.flatnonzero(np.asarray(goes_on, dtype=bool))
    ends[open_rows, last[open_rows]] = False
    return ends
