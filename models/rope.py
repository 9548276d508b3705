"""Rotary position embedding (Su et al. 2021), in the rotate-half layout of Hugging Face's Llama.

Element i of a head is paired with element i + head_dim/2, so Hugging Face weights load without a permutation. Angles
and rotation are float32 whatever the model's dtype: in bfloat16, which has 8 bits of precision, position 257 is 256.
"""

import torch
from torch import Tensor

from .config import RopeConfig


def rope_table(config: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Angle per token of each pair, and the factor that cosines and sines are multiplied with.

    Returns:
        `inv_freq` float32 [head_dim / 2] on the CPU, also under a `torch.device("meta")` context, in radians per token:
        `theta ** (-2i / head_dim)`; and `attention_factor`, 1.0 without length extrapolation.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return 1.0 / config.theta**exponents, 1.0


def rotation(positions: Tensor, inv_freq: Tensor, attention_factor: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `positions` int [batch, seq_len]: two float32 [batch, 1, seq_len, head_dim / 2].

    Computed once per forward and shared by all blocks and heads. Positions restart in every document, so they come with
    the batch and are not an arange.
    """
    inv_freq = inv_freq.to(positions.device, non_blocking=True)
    angles = positions[:, None, :, None].float() * inv_freq
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head of `x` [batch, heads, seq_len, head_dim] by its token's angles; the dtype of `x` is kept."""
    first, second = x.chunk(2, dim=-1)  # products with float32 cosines are float32
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
