"""Shapes that a TOML's `[model]` may start from, by name, and the registry that plug-ins add theirs to.

A preset is the shape of a published model. A job takes all of it but the vocabulary, which is its tokenizer's.
"""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from ...base import Registry, Table
from .decoder import DecoderConfig, Shape
from .positions import RopeConfig

PRESETS: Registry[DecoderConfig] = Registry("preset")


def preset_default(path: Sequence[str]) -> str:
    """Return the value of a key in all presets, as `--help` shows it.

    It is empty for a table, and for a key that is not a preset's.

    Args:
        path: of the key in `[model]`: ("rope", "theta").
    """
    if path[0] not in Shape.model_fields:
        return ""
    try:
        values: list[Any] = [reduce(getattr, path, PRESETS[name]) for name in PRESETS]
    except AttributeError:  # the TOML has more keys in this table than a shape
        return ""
    if isinstance(values[0], Table):
        return ""
    return str(values[0]) if len(set(map(str, values))) == 1 else "the preset's"


def _llama(dim: int, n_layers: int, n_heads: int, head_dim: int, hidden_dim: int, tied: bool = False) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=128_256,
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=head_dim,
        hidden_dim=hidden_dim,
        norm_eps=1e-5,
        qk_norm=False,
        tie_embeddings=tied,
        rope=RopeConfig(theta=500_000.0),
    )


def _qwen3(dim: int, n_layers: int, n_heads: int, hidden_dim: int, tied: bool) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=151_936,
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=8,
        head_dim=128,
        hidden_dim=hidden_dim,
        norm_eps=1e-6,
        qk_norm=True,
        tie_embeddings=tied,
        rope=RopeConfig(theta=1_000_000.0),
    )


def _protein(dim: int, n_layers: int, hidden_dim: int) -> DecoderConfig:
    """Return a shape as deep and wide as an ESM-2 (Lin et al. 2023), with heads of 64.

    Its two matrices of 4 dim are SwiGLU's three of 8/3 dim.
    """
    return DecoderConfig(
        vocab_size=33,
        dim=dim,
        n_layers=n_layers,
        n_heads=dim // 64,
        n_kv_heads=dim // 64,
        head_dim=64,
        hidden_dim=hidden_dim,
        norm_eps=1e-5,
        qk_norm=False,
        tie_embeddings=False,
        rope=RopeConfig(),
    )


# 1.1M parameters over the byte vocabulary: grouped queries, and heads that split over 2 tensor-parallel ranks.
PRESETS.add("debug", says="1.1M parameters, for tests and first steps")(
    DecoderConfig(
        vocab_size=512,
        dim=128,
        n_layers=4,
        n_heads=4,
        n_kv_heads=2,
        head_dim=32,
        hidden_dim=512,
        norm_eps=1e-5,
        qk_norm=False,
        tie_embeddings=False,
        rope=RopeConfig(),
    )
)
PRESETS.add("llama_7b", says="Llama 1 and 2 of 6.7B")(
    DecoderConfig(
        vocab_size=32_000,
        dim=4096,
        n_layers=32,
        n_heads=32,
        n_kv_heads=32,
        head_dim=128,
        hidden_dim=11_008,
        norm_eps=1e-5,
        qk_norm=False,
        tie_embeddings=False,
        rope=RopeConfig(),
    )
)
PRESETS.add("llama3_1b", says="Llama 3.2")(_llama(2048, n_layers=16, n_heads=32, head_dim=64, hidden_dim=8192, tied=True))
PRESETS.add("llama3_8b", says="Llama 3")(_llama(4096, n_layers=32, n_heads=32, head_dim=128, hidden_dim=14_336))
PRESETS.add("llama3_70b", says="Llama 3")(_llama(8192, n_layers=80, n_heads=64, head_dim=128, hidden_dim=28_672))
PRESETS.add("qwen3_0.6b", says="Qwen3")(_qwen3(1024, n_layers=28, n_heads=16, hidden_dim=3072, tied=True))
PRESETS.add("qwen3_8b", says="Qwen3")(_qwen3(4096, n_layers=36, n_heads=32, hidden_dim=12_288, tied=False))
PRESETS.add("protein_650m", says="as deep and wide as ESM-2")(_protein(1280, n_layers=33, hidden_dim=3584))
PRESETS.add("protein_3b", says="as deep and wide as ESM-2")(_protein(2560, n_layers=36, hidden_dim=6912))
