"""Position maps: which positions a query and a key are rotated to, where that is not simply where they stand.

Each map divides the pairs of a causal document by distance r = P_q - P_k, P being the position inside the document:

| map | near | far | distance that far pairs are given |
|---|---|---|---|
| `rerope` (Su 2023) | r < w | r >= w | w |
| `leaky_rerope` (Su 2023) | r < w | r >= w | w + (r - w)/k |
| `self_extend` (Jin et al. 2024) | r < w | r >= w | floor(P_q/G) - floor(P_k/G) + w - floor(w/G) |
| `distance_cap` (LM-Infinite, Han et al. 2023) | r < w | r >= w, P_k < sinks | w |

w is `map_window`. A region is one pass of attention with its own rotations and its own mask (`attention/masks.py`);
`attention/kernels.py` joins the passes. The near region always holds the diagonal. Sliding and lambda masks, without a
map, are one region that is smaller.
"""

import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ..config import AttentionConfig, RopeConfig
from .rope import rotation

CosSin: TypeAlias = tuple[Tensor, Tensor]  # as `rope.rotation` returns them


class DistanceRange(NamedTuple):
    """Which pairs of a causal document belong to a region: r >= `least`, and r < `below` or P_k < `sinks`.

    Attributes:
        least: shortest distance.
        below: distances end before this one; None: they do not end.
        sinks: tokens at the head of the document to which distances do not end either.
    """

    least: int = 0
    below: int | None = None
    sinks: int = 0


ALL_DISTANCES = DistanceRange()


class RotaryTables(NamedTuple):
    """What a region's queries and keys are rotated by."""

    q: CosSin
    k: CosSin


class Region(NamedTuple):
    """Pairs that are rotated alike.

    Attributes:
        name: `near` or `far`; `all` where there is but one.
        q: [batch, seq_len]: position that each query is rotated to; integers, or float64 where a map divides.
        k: [batch, seq_len]: likewise of each key.
    """

    name: str
    q: Tensor
    k: Tensor


def position_map(config: AttentionConfig, positions: Tensor) -> list[Region]:
    """Return the regions of a batch: one without a map, else near and far.

    Args:
        config: which map.
        positions: int32 [batch, seq_len], restarting at 0 with every document.
    """
    if config.position_map == "none":
        return [Region("all", positions, positions)]
    near = Region("near", positions, positions)
    window = config.map_window
    assert window is not None
    if config.position_map in ("rerope", "distance_cap"):
        zero = positions * 0
        return [near, Region("far", zero + window, zero)]
    if config.position_map == "leaky_rerope":
        leaked = positions.double() / config.leak
        return [near, Region("far", leaked + window * (1 - 1 / config.leak), leaked)]
    assert config.position_map == "self_extend", config.position_map
    grouped = positions // config.group
    return [near, Region("far", grouped + (window - window // config.group), grouped)]


def reaches(config: AttentionConfig) -> tuple[DistanceRange, ...]:
    """Return the pairs of every region that `position_map` gives, in its order; no two regions share one."""
    if config.mask == "full" and config.position_map == "none":
        return (ALL_DISTANCES,)
    if config.position_map == "none":
        return (DistanceRange(below=config.window, sinks=config.sinks if config.mask == "lambda" else 0),)
    window = config.map_window
    assert window is not None
    far = DistanceRange(window, window, config.sinks) if config.position_map == "distance_cap" else DistanceRange(window)
    return (DistanceRange(below=window), far)


def keys_seen(config: AttentionConfig, positions: Tensor) -> Tensor:
    """Return how many keys queries have: int64 of the shape of `positions`, which are those of causal documents."""
    earlier = positions.long() + 1
    seen = torch.zeros_like(earlier)
    for least, below, sinks in reaches(config):
        if below is None:
            seen += (earlier - least).clamp(min=0)
        else:
            seen += (earlier.clamp(max=below) - least).clamp(min=0) + (earlier - below).clamp(min=0, max=sinks)
    return seen


def rotary_tables(
    config: AttentionConfig, rope: RopeConfig, positions: Tensor, inv_freq: Tensor, attention_factor: float
) -> list[RotaryTables]:
    """Return the rotary tables of every region, with the factor of `logn` in those of queries: a rotation is linear.

    Args:
        config: the map, and whether there is such a factor.
        rope: whose `original_seq_len` the factor is 1 up to.
        positions: int32 [batch, seq_len], restarting at 0 with every document.
        inv_freq: as `rope.rope_table` returns it.
        attention_factor: likewise.
    """
    rotary = []
    for region in position_map(config, positions):
        q = k = rotation(region.k, inv_freq, attention_factor)
        if region.q is not region.k:
            q = rotation(region.q, inv_freq, attention_factor)
        if config.logn:
            factor = (torch.log(positions.to(q[0].dtype) + 1) / math.log(rope.trained_length)).clamp(min=1)[:, :, None, None]
            q = q[0] * factor, q[1] * factor
        rotary.append(RotaryTables(q, k))
    return rotary
