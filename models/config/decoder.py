"""The shape of a decoder, as numbers: what a TOML's `[model]` chooses, and the presets it may start from."""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import ModelError
from .positions import AttentionConfig, RopeConfig

POOLS = ("mean", "last")
HEAD_KEYS = ("head_outputs", "pool")  # of `DecoderConfig`: what `[head]` chooses, not `[model]`


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
        attention: which pairs of a document attend, and at which distance.
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
    attention: AttentionConfig = field(default_factory=AttentionConfig)
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
        if self.pool not in POOLS:
            complaints.append(f"head.pool is {self.pool!r}, it must be one of {', '.join(map(repr, POOLS))}")
        complaints += [*self.rope.complaints(self.head_dim), *self.attention.complaints(self.rope)]
        if not self.causal and not (self.attention.plain and not self.attention.logn):
            named = "model.attention.logn = true" if self.attention.plain else self.attention.named
            complaints.append(
                f"{named} with a bidirectional model (training.objective mlm, model.causal = false): windows, position maps "
                "and logn are made for tokens that see their past alone; leave it out"
            )
        if complaints:
            raise ModelError("; ".join(complaints))

    @classmethod
    def of(cls, stated: dict[str, Any]) -> "DecoderConfig":
        """The configuration that `dataclasses.asdict` took apart, also after JSON made lists of tuples."""
        rope: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stated["rope"].items()
        }
        parts = {"rope": RopeConfig(**rope), "attention": AttentionConfig(**stated.get("attention", {}))}
        return cls(**{**stated, **parts})

    def table(self) -> dict[str, Any]:
        """It as a TOML's `[model]`: all of its sizes, and of `[model.rope]` and `[model.attention]` what has not its default.

        Without what `[training]` and `[head]` choose.
        """
        table = {key: value for key, value in asdict(self).items() if key not in ("causal", *HEAD_KEYS)}
        for name, default in (("rope", RopeConfig()), ("attention", AttentionConfig())):
            table[name] = {
                key: list(value) if isinstance(value, tuple) else value
                for key, value in table[name].items()
                if value != getattr(default, key) or key == "theta"
            }
        return {key: value for key, value in table.items() if value != {}}

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
