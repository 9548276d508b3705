"""What mixers remember of a row's tokens, so that a row grows by a token at the price of that token.

A mixer is the module of a block in which tokens see each other. It makes its own cache (`cache`), empty; a model's
caches are a mapping by mixer, which travels with the mask, `Cached`. So a mixer of another kind brings a cache of
another kind, and nothing between it and the caller changes.

    prefill    all tokens of the prompts run, under any mask of theirs; caches keep what they are asked for later
    step       one token of each row runs, and sees what the cache holds

A row's keys lie at their positions, whatever the lengths of the other rows are. What lies behind a row's end, because
its prompt was shorter or padding ran beside its last token, is seen by none before its own token has replaced it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from typing_extensions import Self

from .kernels import attend_in_regions
from .masks import AttentionMask, Regions

KEYS_MULTIPLE = 128  # of keys that a step reads: few shapes, and at most 127 keys that are masked


class Cache(Protocol):
    """What a mixer remembers of each row; it is empty before the prefill."""

    def rows(self, rows: Tensor) -> Self:
        """Return a cache of these rows, int64 [n], in this order; a row may occur several times. This one stays."""
        ...


@runtime_checkable
class Mixer(Protocol):
    """A module that remembers tokens."""

    def cache(self) -> Cache:
        """Return what the mixer remembers before the first token of a row."""
        ...


@dataclass(frozen=True)
class Cached:
    """The mask of tokens that run, and the caches that they are written to and that a step reads.

    Attributes:
        mask: of a prefill, between the tokens that run; of a step, bool [batch, 1, queries, keys] (two of them with a
            position map): which of the first keys of its row each token sees, itself included.
        caches: by mixer.
        places: int64 [batch, queries]: positions of a step's tokens in their rows; None: a prefill.
    """

    mask: AttentionMask
    caches: Mapping[nn.Module, Cache]
    places: Tensor | None = None


class KeyValueCache:
    """Rotated keys, and values, of one layer's attention. It grows in powers of two.

    Args:
        tensors: the keys of each region of a position map, one without a map, then the values; each [rows, kv_heads,
            room, head_dim]. What no token has written is 0, as 0 times NaN would be NaN. None: it is empty.
    """

    def __init__(self, tensors: Sequence[Tensor] = ()) -> None:
        self.tensors = list(tensors)

    def rows(self, rows: Tensor) -> "KeyValueCache":
        """Return the keys and values of these rows, as `Cache.rows` says."""
        return KeyValueCache([x.index_select(0, rows) for x in self.tensors])

    def attend(self, rotated: Sequence[tuple[Tensor, Tensor]], v: Tensor, cached: Cached) -> Tensor:
        """Remember keys and values, and return what `attend_in_regions` does."""
        new = [*(k for _, k in rotated), v]
        if cached.places is None:
            self.make_room(new, v.shape[2])
            for x, part in zip(self.tensors, new, strict=True):
                x[:, :, : v.shape[2]] = part
            return attend_in_regions(rotated, v, cached.mask)
        seen = cached.mask
        near = seen.near if isinstance(seen, Regions) else seen
        assert isinstance(near, Tensor)
        keys = near.shape[-1]
        self.make_room(new, keys)
        row = torch.arange(len(v), device=v.device)[:, None]
        for x, part in zip(self.tensors, new, strict=True):
            x[row, :, cached.places] = part.transpose(1, 2)
        *of_regions, values = (x[:, :, :keys] for x in self.tensors)
        rotated = [(q, k) for (q, _), k in zip(rotated, of_regions, strict=True)]
        if near is not seen:
            return attend_in_regions(rotated, values, seen)
        ((q, k),) = rotated
        return _attend_by_group(q, k, values, near)

    def make_room(self, new: Sequence[Tensor], keys: int) -> None:
        """Have room for a number of keys of the shape of `new`."""
        if not self.tensors:
            self.tensors = [x.new_zeros(*x.shape[:2], 0, x.shape[3]) for x in new]
        room = self.tensors[0].shape[2]
        if keys > room:
            more = max(KEYS_MULTIPLE, 1 << (keys - 1).bit_length()) - room
            self.tensors = [F.pad(x, (0, 0, 0, more)) for x in self.tensors]


def empty_caches(model: nn.Module) -> dict[nn.Module, Cache]:
    """Return an empty cache for each mixer of a model, whatever wraps its blocks."""
    return {module: module.cache() for module in model.modules() if isinstance(module, Mixer)}


def _attend_by_group(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """As `kernels.attend` for few queries: heads that share keys become queries of one head: no key is repeated."""
    kv_heads, queries = k.shape[1], q.shape[2]
    grouped = q.unflatten(1, (kv_heads, -1)).flatten(2, 3)
    if queries > 1:
        mask = mask.repeat(1, 1, grouped.shape[2] // queries, 1)
    out = scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
    heads: Tensor = out.unflatten(2, (-1, queries)).flatten(1, 2)
    return heads
