"""Rotary position embedding (Su et al. 2021) and its scalings, in the rotate-half layout of Hugging Face's Llama.

Element i of a head is paired with element i + head_dim/2, so Hugging Face weights load without a permutation. Angles
and rotation are float32 whatever the model's dtype: in bfloat16, which has 8 bits of precision, position 257 is 256.

A scaling changes the angle per token of each pair so that a model that was trained on `original_seq_len` = L tokens can
be used, or trained on, at `factor` = s times as many. With d = head_dim, b = theta and θ = b^(-2m/d) for m = 0 .. d/2 -
1:

| scaling | angle per token of pair m | from |
|---|---|---|
| `linear` | θ/s | position interpolation, Chen et al. 2023 |
| `ntk` | θ with b·s^(d/(d-2)) for b | bloc97 2023 |
| `ntk_mixed` | θ·exp(-a·(m+1)^0.75), a = ln s / (d/2)^0.75 | Su 2023 |
| `dynamic_ntk` | θ with b·(s·n/L - (s - 1))^(d/(d-2)) for b, n = max(length, L) | emozilla 2023 |
| `ntk_by_parts` | θ·((1 - g)/s + g), g = 1 for short wavelengths, 0 for long ones | bloc97 2023 |
| `yarn` | as by parts, and attention_factor = 0.1 ln s + 1 | Peng et al. 2023 |
| `llama3` | as by parts, another g | Llama 3.1, 2024 |
| `longrope` | θ / a factor of its own for every pair, one list up to L and one beyond | Ding et al. 2024 |
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..config import RopeConfig

MIXED_POWER = 0.75


def rope_table(config: RopeConfig, head_dim: int, length: int) -> tuple[Tensor, float]:
    """Return the angle per token of each pair (its frequency), and the factor of cosines and sines.

    Args:
        config: base and scaling.
        head_dim: width of a head, d.
        length: the longest document, or row, that the model is meant for: resolved once, never from a batch.
            `dynamic_ntk` and `longrope` depend on it.

    Returns:
        `inv_freq` float32 [head_dim / 2] on the CPU, also under a `torch.device("meta")` context, in radians per token;
        and `attention_factor`.
    """
    inv_freq = _frequencies(config.theta, head_dim)
    if config.scaling == "none":
        return inv_freq, 1.0
    return _SCALINGS[config.scaling](config, inv_freq, head_dim, length)


def _frequencies(theta: float, head_dim: int) -> Tensor:
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    return 1.0 / theta**exponents


def _linear(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    return inv_freq / config.factor, 1.0


def _ntk(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    return _frequencies(ntk_theta(config, head_dim), head_dim), 1.0


def ntk_theta(config: RopeConfig, head_dim: int) -> float:
    """Return the base that scaling `ntk` comes to."""
    stretched: float = config.factor ** (head_dim / (head_dim - 2))
    return config.theta * stretched


def _ntk_mixed(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    pair = torch.arange(1, head_dim // 2 + 1, dtype=torch.float32, device="cpu")
    rate = math.log(config.factor) / (head_dim / 2) ** MIXED_POWER
    return inv_freq * torch.exp(-rate * pair**MIXED_POWER), 1.0


def _dynamic_ntk(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    trained = config.trained_length
    stretch = config.factor * max(length, trained) / trained - (config.factor - 1)
    return _frequencies(config.theta * stretch ** (head_dim / (head_dim - 2)), head_dim), 1.0


def _ntk_by_parts(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    kept = _kept(config, inv_freq, head_dim)
    return inv_freq / config.factor * (1 - kept) + inv_freq * kept, 1.0


def _yarn(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    scale = 0.1 * math.log(config.factor) + 1 if config.attention_factor is None else config.attention_factor
    return _ntk_by_parts(config, inv_freq, head_dim, length)[0], scale


def _kept(config: RopeConfig, inv_freq: Tensor, head_dim: int) -> Tensor:
    """`g`: 1 where a pair keeps its angle, 0 where it is divided by the factor; float32 [head_dim / 2].

    `paper` is the definition of Peng et al.: a ramp over rotations in the trained length, from `beta_slow` to
    `beta_fast`. `index` is what its authors released and others use: a ramp over the number of the pair, between those
    two, rounded outwards.
    """
    if config.ramp == "paper":
        rotations = config.trained_length * inv_freq / (2 * math.pi)
        return ((rotations - config.beta_slow) / (config.beta_fast - config.beta_slow)).clamp(0, 1)
    low, high = config.ramp_ends(head_dim)
    width = high - low or 0.001  # a step where both are one pair, as in the released code
    pair = torch.arange(head_dim // 2, dtype=torch.float32, device="cpu")
    return 1 - ((pair - low) / width).clamp(0, 1)


def _llama3_frequencies(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    low, high = config.low_freq_factor, config.high_freq_factor
    rotations = config.trained_length * inv_freq / (2 * math.pi)
    kept = ((rotations - low) / (high - low)).clamp(0, 1)
    return (1 - kept) * inv_freq / config.factor + kept * inv_freq, 1.0


def _longrope(config: RopeConfig, inv_freq: Tensor, head_dim: int, length: int) -> tuple[Tensor, float]:
    factors = config.long_factor if length > config.trained_length else config.short_factor
    scale = config.attention_factor
    if scale is None:
        scale = math.sqrt(1 + math.log(config.factor) / math.log(config.trained_length))
    return inv_freq / torch.tensor(factors, dtype=torch.float32, device="cpu"), scale


_SCALINGS: dict[str, Callable[[RopeConfig, Tensor, int, int], tuple[Tensor, float]]] = {
    "linear": _linear,
    "ntk": _ntk,
    "ntk_mixed": _ntk_mixed,
    "dynamic_ntk": _dynamic_ntk,
    "ntk_by_parts": _ntk_by_parts,
    "yarn": _yarn,
    "llama3": _llama3_frequencies,
    "longrope": _longrope,
}


def rotation(positions: Tensor, inv_freq: Tensor, attention_factor: float) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of `positions` [batch, seq_len], each [batch, seq_len, 1, head_dim / 2].

    Computed once per forward and shared by all blocks and heads. Positions restart in every document, so they come with
    the batch and are not an arange.
    """
    angles = positions[:, :, None, None].to(inv_freq.dtype) * inv_freq
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate every head of `x` [batch, seq_len, heads, head_dim] by its token's angles; the dtype of `x` is kept."""
    first, second = x.chunk(2, dim=-1)  # products with float32 cosines are float32
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
