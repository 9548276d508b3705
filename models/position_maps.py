"""Position maps: which positions a query and a key are rotated to, where that is not simply where they stand.

Each map divides the pairs of a causal document by distance r = P_q - P_k, P being the position inside the document:

| map | near | far | distance that far pairs are given |
|---|---|---|---|
| `rerope` (Su 2023) | r < w | r >= w | w |
| `leaky_rerope` (Su 2023) | r < w | r >= w | w + (r - w)/k |
| `self_extend` (Jin et al. 2024) | r < w | r >= w | floor(P_q/G) - floor(P_k/G) + w - floor(w/G) |
| `distance_cap` (LM-Infinite, Han et al. 2023) | r < w | r >= w, P_k < sinks | w |

w is `map_window`. A region is one pass of attention with its own rotations and its own mask (`masks.py`); `attention.py` joins
the passes. The near region always holds the diagonal.
"""

from typing import NamedTuple

from torch import Tensor

from .position_config import AttentionConfig


class Region(NamedTuple):
    """Pairs that are rotated alike.

    Attributes:
        name: `near` or `far`; `all` where there is but one.
        q: [batch, seq_len]: position that each query is rotated to; integers, or floating point where a map divides.
        k: [batch, seq_len]: likewise of each key.
    """

    name: str
    q: Tensor
    k: Tensor


def position_map(config: AttentionConfig, positions: Tensor) -> list[Region]:
    """The regions of a batch: one without a map, else near and far.

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
