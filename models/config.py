"""The shape of a decoder, as numbers: what a TOML's `[model]` chooses, and the presets it may start from."""

from dataclasses import dataclass

POOLS = ("mean", "last")
HEAD_KEYS = ("head_outputs", "pool")  # of `DecoderConfig`: what `[head]` chooses, not `[model]`


class ModelError(ValueError):
    """A user's mistake in the model's shape or attention; the message names the `model.*` key."""


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary embedding: `theta` is the base of the geometric series of wavelengths, 2·pi to 2·pi·theta tokens."""

    theta: float = 10_000.0


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Everything that fixes a `Decoder`'s parameters and mathematics.

    Attributes:
        vocab_size: rows of the embedding table; every token id is below it.
        dim: width of the residual stream.
        n_layers: transformer blocks.
        n_heads: query heads per block.
        n_kv_heads: key and value heads per block, each shared by `n_heads / n_kv_heads` query heads.
        head_dim: width of one head; `n_heads * head_dim` need not equal `dim`.
        hidden_dim: width of the feed-forward's gated layer.
        norm_eps: added to the mean square inside every RMSNorm.
        qk_norm: RMSNorm over `head_dim` on queries and keys before rotation (Qwen3).
        tie_embeddings: the output projection is the embedding table.
        rope: rotary embedding.
        causal: a token sees only its past; False makes the same network bidirectional.
        head_outputs: numbers that the model gives for each document, in place of logits for each token: as many as there are
            classes, or 1: a value. 0: it is a language model.
        pool: how a head makes one of a document's tokens: `mean` or `last`.

    Raises:
        ModelError: listing every inconsistency at once.
    """

    vocab_size: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_dim: int
    norm_eps: float
    qk_norm: bool
    tie_embeddings: bool
    rope: RopeConfig
    causal: bool = True
    head_outputs: int = 0
    pool: str = "mean"

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "norm_eps")
        complaints = [
            f"model.{name} is {getattr(self, name)}, it must be positive" for name in sizes if getattr(self, name) <= 0
        ]
        if self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads:
            complaints.append(
                f"model.n_heads is {self.n_heads} and model.n_kv_heads {self.n_kv_heads}: "
                "query heads must divide evenly among key/value heads"
            )
        if self.head_dim % 2:
            complaints.append(f"model.head_dim is {self.head_dim}, it must be even: rotation pairs its two halves")
        if self.pool not in POOLS:
            complaints.append(f"head.pool is {self.pool!r}, it must be one of {', '.join(map(repr, POOLS))}")
        if self.rope.theta <= 1:
            complaints.append(f"model.rope.theta is {self.rope.theta}, it must be above 1")
        if complaints:
            raise ModelError("; ".join(complaints))

    def parameter_count(self) -> int:
        """Parameters of the decoder, exactly; a tied table counts once."""
        q_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = 2 * self.dim * q_dim + 2 * self.dim * kv_dim + (2 * self.head_dim if self.qk_norm else 0)
        block = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        return self.vocab_size * self.dim + self.output_parameters() + self.n_layers * block + self.dim

    def output_parameters(self) -> int:
        """Parameters behind the last norm: of the head or of the output projection, 0 where that is the embedding table."""
        if self.head_outputs:
            return self.head_outputs * self.dim
        return 0 if self.tie_embeddings else self.vocab_size * self.dim

    def flops_per_token(self, seq_len: int) -> int:
        """Model FLOPs of forward and backward per token of a row of `seq_len`: `6N + 12·L·H·D·seq_len`.

        The convention of PaLM (Chowdhery et al. 2022, appendix B). N counts every parameter that multiplies
        activations: all but the embedding table, whose rows are looked up, and including the output projection, tied or
        not. The attention term counts the full seq_len x seq_len products: halved neither for causality nor for the
        blocks that a document mask skips, so that utilisation compares with published numbers.
        """
        looked_up = self.vocab_size * self.dim if self.output_parameters() else 0
        multiplying = self.parameter_count() - looked_up
        return 6 * multiplying + 12 * self.n_layers * self.n_heads * self.head_dim * seq_len


def _llama3(dim: int, n_layers: int, n_heads: int, head_dim: int, hidden_dim: int, tied: bool = False) -> DecoderConfig:
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
    """Depth and width of an ESM-2 (Lin et al. 2023), heads of 64; its two matrices of 4 dim are SwiGLU's three of 8/3 dim."""
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


PRESETS: dict[str, DecoderConfig] = {
    # 1.1M parameters over the byte vocabulary: grouped queries, and heads that split over 2 tensor-parallel ranks.
    "debug": DecoderConfig(
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
    ),
    "llama3_1b": _llama3(2048, n_layers=16, n_heads=32, head_dim=64, hidden_dim=8192, tied=True),
    "llama3_8b": _llama3(4096, n_layers=32, n_heads=32, head_dim=128, hidden_dim=14_336),
    "llama3_70b": _llama3(8192, n_layers=80, n_heads=64, head_dim=128, hidden_dim=28_672),
    "llama_7b": DecoderConfig(
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
    ),
    "protein_650m": _protein(1280, n_layers=33, hidden_dim=3584),
    "protein_3b": _protein(2560, n_layers=36, hidden_dim=6912),
    "qwen3_0.6b": _qwen3(1024, n_layers=28, n_heads=16, hidden_dim=3072, tied=True),
    "qwen3_8b": _qwen3(4096, n_layers=36, n_heads=32, hidden_dim=12_288, tied=False),
}
