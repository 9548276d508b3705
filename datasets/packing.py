"""Documents of a block into rows: plans on lengths alone, and the planes of a row from a plan.

`best_fit` is best-fit decreasing: the longest segment first, into the open row that it leaves the least room in. Which
amounts of room are open is one Python integer, a bit per amount, so the tightest fit is a shift and a lowest set bit.
`concat` cuts the concatenated documents every `seq_len` tokens.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .errors import DataConfigError

Planes = npt.NDArray[np.int32]
POLICIES = ("best_fit", "concat")
IGNORE = -100
TOKENS, LABELS, POSITIONS, SEQUENCE_IDS = range(4)


class Part(NamedTuple):
    """`length` tokens of a segment from its token `start` on, side by side in one row."""

    segment: int
    start: int
    length: int


class Block(NamedTuple):
    """Consecutive documents of a lane.

    Attributes:
        ids: int32 [tokens + lookahead]; a segment without eos is followed by its document's next token.
        lengths: Tokens of each segment, the eos included; segments lie one after another from token 0 on.
        closed: Segments that end with eos: all, or all but the last, which is cut at a multiple of `seq_len`.
    """

    ids: npt.NDArray[np.int32]
    lengths: list[int]
    closed: int


def best_fit(lengths: Sequence[int], seq_len: int) -> list[list[Part]]:
    """Plan rows so that segments that fit in one are whole and few rows are needed.

    A longer segment becomes full rows and a remainder. Documents keep their order within a row.
    """
    rows: list[list[Part]] = []
    items = []
    for segment, length in enumerate(lengths):
        whole = length - length % seq_len
        rows += [[Part(segment, start, seq_len)] for start in range(0, whole, seq_len)]
        if length > whole:
            items.append(Part(segment, whole, length - whole))
    items.sort(key=lambda part: -part.length)

    room = 0  # bit n: some row has exactly n tokens of room left
    rows_with_room: dict[int, list[list[Part]]] = {}
    for part in items:
        fitting = room >> part.length
        if fitting:
            left = (fitting & -fitting).bit_length() - 1
            open_rows = rows_with_room[left + part.length]
            row = open_rows.pop()
            if not open_rows:
                room ^= 1 << (left + part.length)
        else:
            left = seq_len - part.length
            row = []
            rows.append(row)
        row.append(part)
        if left:
            rows_with_room.setdefault(left, []).append(row)
            room |= 1 << left
    for row in rows:
        row.sort()
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
            rows[-1].append(Part(segment, start, taken))
            start += taken
            room -= taken
    return rows


class Packer:
    """Blocks to rows. States the ids that it writes, for the eos contract."""

    def __init__(self, seq_len: int, eos_id: int, pad_id: int, policy: str) -> None:
        if policy not in POLICIES:
            raise DataConfigError(f"data.packing: {policy!r} is not one of {', '.join(map(repr, POLICIES))}")
        self.seq_len = seq_len
        self.eos_id = eos_id
        self.pad_id = pad_id
        self.policy = policy
        self._ramp = np.arange(seq_len, dtype=np.int32)

    def plan(self, block: Block) -> list[list[Part]]:
        """Return the rows of a block, in order of the plan."""
        return best_fit(block.lengths, self.seq_len) if self.policy == "best_fit" else concat(block.lengths, self.seq_len)

    def assemble(self, block: Block, plan: Sequence[Sequence[Part]]) -> Iterator[Planes]:
        """Yield int32 [4, seq_len] per row of `plan`: tokens, labels, positions, sequence_ids.

        A label is the next token of the same document. It is -100 where the document ends, which is known by position,
        and on padding; the last token of a fragment is labelled with the token that opens the next one.
        """
        ends = np.cumsum(block.lengths)
        assert (block.ids[ends[: block.closed] - 1] == self.eos_id).all(), "every closed segment ends with eos"
        starts = (ends - block.lengths).tolist()
        targets = np.full_like(block.ids, IGNORE)
        targets[:-1] = block.ids[1:]
        targets[ends[: block.closed] - 1] = IGNORE
        for parts in plan:
            row = np.empty((4, self.seq_len), dtype=np.int32)
            end = 0
            for number, (segment, start, length) in enumerate(parts):
                begin, end = end, end + length
                source = slice(starts[segment] + start, starts[segment] + start + length)
                row[TOKENS, begin:end] = block.ids[source]
                row[LABELS, begin:end] = targets[source]
                row[POSITIONS, begin:end] = self._ramp[:length]
                row[SEQUENCE_IDS, begin:end] = number
            row[TOKENS, end:] = self.pad_id
            row[LABELS, end:] = IGNORE
            row[POSITIONS, end:] = 0
            row[SEQUENCE_IDS, end:] = -1
            yield row


def row_violations(
    tokens: npt.NDArray[Any], labels: npt.NDArray[Any], positions: npt.NDArray[Any], sequence_ids: npt.NDArray[Any], eos_id: int
) -> list[str]:
    """Return what in a batch breaks the row invariants, from the eos tokens alone; nothing when all hold.

    Args:
        tokens: [batch, seq_len] input ids.
        labels: [batch, seq_len] targets, -100 where there is no loss.
        positions: [batch, seq_len] as packed.
        sequence_ids: [batch, seq_len] as packed, -1 on padding.
        eos_id: The id that ends documents.
    """
    tokens, labels, positions, sequence_ids = map(np.asarray, (tokens, labels, positions, sequence_ids))
    used = sequence_ids >= 0
    ends = used & (tokens == eos_id)
    opens = np.zeros_like(used)
    opens[:, 0] = True
    opens[:, 1:] = ends[:, :-1]
    index = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    implied_ids = np.where(used, np.cumsum(ends, axis=1) - ends, -1)
    implied_positions = np.where(used, index - np.maximum.accumulate(np.where(opens, index, 0), axis=1), 0)
    # A document that goes on is followed by its next token, or by the end of the row.
    goes_on = used & ~ends
    unfinished = goes_on[:, :-1] & ~used[:, 1:]
    mislabelled = goes_on[:, :-1] & used[:, 1:] & (labels[:, :-1] != tokens[:, 1:])
    checks = [
        ("padding comes before a token", used[:, 1:] & ~used[:, :-1]),
        ("a row holds no token", ~used[:, :1]),
        ("sequence_ids differ from what the eos tokens imply", sequence_ids != implied_ids),
        ("positions differ from what the eos tokens imply", positions != implied_positions),
        ("padding follows a document without eos", unfinished),
        ("the label at an eos is not -100", ends & (labels != IGNORE)),
        ("the label on padding is not -100", ~used & (labels != IGNORE)),
        ("a label is not the next token of its document", mislabelled),
        ("the last token of a fragment has no target", goes_on[:, -1:] & (labels[:, -1:] == IGNORE)),
    ]
    return [f"row {np.argwhere(wrong)[0][0]}: {problem}" for problem, wrong in checks if wrong.any()]
