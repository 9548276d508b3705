"""The shape of a decoder, as numbers: what a preset fixes, and what a vocabulary and an objective add to it."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError
from typing_extensions import override

from ...base import IDS, Table
from ..errors import ModelError
from .positions import AttentionConfig, RopeConfig

Pool: TypeAlias = Literal["mean", "last"]
# Ten to a hundred times what was ever trained; a shape that nobody means would take hours to lay out.
LAYERS, WIDTH, HEADS = 1024, 2**20, 2**12
Vocabulary = Annotated[int, Field(le=IDS)]
HEAD_KEYS = ("head_outputs", "pool")  # of `DecoderConfig`: what `[head]` chooses, not `[model]`


class Shape(Table):
    """What `[model]` and `DecoderConfig` share, and a preset fixes."""

    dim: Annotated[int, Field(le=WIDTH)]
    """Width of the residual stream."""
    n_layers: Annotated[int, Field(le=LAYERS)]
    """Number of transformer blocks."""
    n_heads: Annotated[int, Field(le=HEADS)]
    """Number of query heads."""
    n_kv_heads: Annotated[int, Field(le=HEADS)]
    """Number of key and value heads, each shared by n_heads / n_kv_heads query heads (grouped-query attention)."""
    head_dim: Annotated[int, Field(le=HEADS)]
    """Width of one head; n_heads x head_dim need not equal dim."""
    hidden_dim: Annotated[int, Field(le=2**22)]
    """Width of the SwiGLU feed-forward."""
    norm_eps: Annotated[float, Field(le=1.0)]
    """Epsilon of the RMS norms."""
    qk_norm: bool
    """RMS-normalise queries and keys per head, before rotation (Qwen3)."""
    tie_embeddings: bool
    """Use the embedding table as the output projection."""
    rope: RopeConfig
    """Rotary position embedding."""
    attention: AttentionConfig = AttentionConfig()
    """Which pairs of a document attend, and at which distance."""

    @override
    def complaints(self) -> list[str]:
        sizes = ("vocab_size", "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "norm_eps")
        values = {name: getattr(self, name) for name in sizes if name in type(self).model_fields}
        wrong = [
            f"model.{name} is {value}, it must be positive"
            for name, value in values.items()
            if value is not None and value <= 0
        ]
        if self.n_kv_heads > 0 and self.n_heads % self.n_kv_heads:
            wrong.append(
                f"model.n_heads is {self.n_heads} and model.n_kv_heads {self.n_kv_heads}: "
                "query heads must divide evenly among key/value heads"
            )
        return wrong + self.rope.complaints_beside(self.head_dim) + self.attention.complaints_beside(self.rope)

    def bidirectional_complaints(self) -> list[str]:
        """Return what a model whose tokens see both sides cannot have, a line each."""
        attention = self.attention
        if attention.plain and not attention.logn:
            return []
        named = "model.attention.logn = true" if attention.plain else attention.named
        return [
            f"{named} with a bidirectional model (training.objective mlm, model.causal = false): windows, position maps "
            "and logn are made for tokens that see their past alone; leave it out"
        ]


class DecoderConfig(Shape):
    """Everything that fixes a `Decoder`'s parameters and mathematics.

    Raises:
        ModelError: listing every inconsistency at once.
    """

    vocab_size: Vocabulary
    """Rows of the embedding table; every token id is below it."""
    causal: bool = True
    """Whether a token sees only its past; False makes the same network bidirectional."""
    head_outputs: Annotated[int, Field(le=2**16)] = 0
    """Numbers that a head gives for each document: one for each class, or 1, a value; 0: it is a language model."""
    pool: Pool = "mean"
    """How a head makes one vector of a document's tokens."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
            wrong = self.complaints()
        except ValidationError as error:
            wrong = [
                f"{'head' if found['loc'][0] in HEAD_KEYS else 'model'}.{'.'.join(map(str, found['loc']))} "
                f"is {found['input']!r}: {found['msg'][0].lower()}{found['msg'][1:]}"
                for found in error.errors()
            ]
        if wrong:
            raise ModelError("; ".join(wrong))

    @override
    def complaints(self) -> list[str]:
        return super().complaints() + ([] if self.causal else self.bidirectional_complaints())

    def table(self) -> dict[str, Any]:
        """Return it as a TOML's `[model]`: all sizes; of `[model.rope]` and `[model.attention]` what is not default.

        Without what `[training]` and `[head]` choose.
        """
        table = self.model_dump(exclude={"causal", *HEAD_KEYS}, exclude_defaults=True)
        return {"vocab_size": self.vocab_size} | table | {"rope": {"theta": self.rope.theta} | table["rope"]}

    def parameter_count(self) -> int:
        """Return the number of parameters, exactly; a tied table counts once."""
        q_dim, kv_dim = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        attention = 2 * self.dim * q_dim + 2 * self.dim * kv_dim + (2 * self.head_dim if self.qk_norm else 0)
        block = attention + 3 * self.dim * self.hidden_dim + 2 * self.dim
        return self.vocab_size * self.dim + self.output_parameters() + self.n_layers * block + self.dim

    def output_parameters(self) -> int:
        """Return the parameters after the last norm: of a head or an output projection, 0 for tied embeddings."""
        if self.head_outputs:
            return self.head_outputs * self.dim
        return 0 if self.tie_embeddings else self.vocab_size * self.dim
