"""What FlexAttention's kernel evaluates inside of partial blocks: which keys a query sees, as bounds of its own.

Ids never fall along a row, so the keys of a query are an interval of the row, or with sinks two. Bounds are read once
for a row of scores; to compare ids, the kernel would read one for every key as well.

| mask | query q sees key k where | loads for a query |
|---|---|---|
| causal, and a sliding window | first[q] <= k <= q | 1 |
| bidirectional, and a map's far region | first[q] <= k < end[q] | 2 |
| lambda | first[q] <= k <= q, and k < sinks[q] or k >= window[q] | 3 |
| in a row that is spread over ranks | first[q] <= position[k] < end[q] | 2, and 1 for a key |

Gathered keys lie in the order of the ranks, so there the position of a key has to be read.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from ..positions import DistanceRange

# called with the indices of batch, head, query and key in the kernel's inputs
Rule: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def document_rule(ids: Tensor, causal: bool, queries: Tensor | None, keys: Tensor | None) -> Rule:
    """Return the rule of whole documents.

    Args:
        ids: int32 [batch, seq_len], never falling along a row.
        causal: whether a token sees only its past within its document.
        queries: int64 [batch, n], positions of the queries in their rows; None: all, in order.
        keys: likewise.
    """
    first = document_starts(ids)
    if causal and queries is keys is None:
        return _up_to_itself(first)
    end = _places(ids).expand_as(ids) + 1 if causal else torch.searchsorted(ids, ids, right=True, out_int32=True)
    if queries is not None:
        first, end = first.gather(1, queries), end.gather(1, queries)
    return _between(first, end) if keys is None else _between_positions(first, end, keys.int())


def reach_rule(ids: Tensor, reach: DistanceRange) -> Rule:
    """Return the rule of causal documents in order, for the pairs within `reach`, which are not all.

    Bounds are tensors whatever the widths are, so that no code is compiled for others.
    """
    first, place = document_starts(ids), _places(ids)
    before = place - reach.least + 1  # keys before this one are `least` away or farther
    if reach.below is None:
        return _between(first, before.expand_as(ids).contiguous())
    window = torch.maximum(first, place - reach.below + 1)
    if reach.least >= reach.below:  # of a capped distance, that leaves the sinks
        return _between(first, torch.minimum(first + reach.sinks, before))
    assert reach.least == 0, "a window holds its query"
    return _with_sinks(first, first + reach.sinks, window) if reach.sinks else _up_to_itself(window)


def document_starts(ids: Tensor) -> Tensor:
    """Return where the document of each token begins in its row: int32 [batch, seq_len], the shape of `ids`."""
    return torch.searchsorted(ids, ids, out_int32=True)


def _places(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], dtype=torch.int32, device=ids.device)


def _up_to_itself(first: Tensor) -> Rule:
    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (first[b, q] <= k) & (k <= q)

    return rule


def _between(first: Tensor, end: Tensor) -> Rule:
    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (first[b, q] <= k) & (k < end[b, q])

    return rule


def _with_sinks(first: Tensor, sinks: Tensor, window: Tensor) -> Rule:
    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (first[b, q] <= k) & (k <= q) & ((k < sinks[b, q]) | (k >= window[b, q]))

    return rule


def _between_positions(first: Tensor, end: Tensor, positions: Tensor) -> Rule:
    def rule(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        position = positions[b, k]
        return (first[b, q] <= position) & (position < end[b, q])

    return rule
