"""`[model]` and `[head]` of a TOML: a preset and what to change in it, and what is predicted of documents."""

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ModelWrapValidatorHandler, model_validator
from typing_extensions import Self, override

from ...base import NonNegative, Table
from .decoder import DecoderConfig, Pool, Shape, Vocabulary
from .positions import AttentionConfig
from .presets import PRESETS

Executor: TypeAlias = Literal["flex", "varlen", "sdpa"]
FlexBackend: TypeAlias = Literal["triton", "flash"]


class ModelAttention(AttentionConfig):
    """Which pairs of a document attend, at which distance, and what computes it."""

    executor: Literal["auto", Executor] = "auto"
    """Kernel of the document mask; auto: the fastest that can train here; the run says which, and why."""
    flex_backend: Literal["auto", FlexBackend] = "auto"
    """flex: its kernels; auto: FlashAttention 4 on Blackwell where it is installed, else Triton; the run says why."""


class ModelConfig(Shape):
    """The decoder: a preset and what to change in it. Unset keys keep the preset's value."""

    # Every key has its value once the table is read; `model_fields_set`, here and in the tables within, holds those
    # that the TOML itself sets.
    preset: Annotated[str, PRESETS.choice] = "debug"
    """Shape to start from."""
    vocab_size: Vocabulary | None = None
    """Rows of the embedding table; unset: the tokenizer's vocabulary. May be larger, never smaller."""
    eos_id: NonNegative | None = None
    """Id that ends a document, as the attention mask reads it; unset: the tokenizer's. Must agree with all others."""
    causal: bool | None = None
    """Whether a token sees only those before it; unset: as training.objective needs, which refuses any other value."""
    attention: ModelAttention = ModelAttention()
    """Which pairs of a document attend, at which distance, and what computes it."""

    @model_validator(mode="wrap")
    @classmethod
    def start_from_preset(cls, keys: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        """Put the preset's table under the keys that are set, nested tables key by key."""
        if not isinstance(keys, dict):
            return build(keys)
        name = keys.get("preset")
        preset = PRESETS[
            name if isinstance(name, str) and name in PRESETS else "debug"
        ]  # an unknown name is refused as such, without missing keys
        merged = preset.model_dump(include=set(Shape.model_fields)) | keys
        for table in ("rope", "attention"):
            if isinstance(keys.get(table), dict):
                merged[table] = getattr(preset, table).model_dump() | keys[table]
        model = build(merged)
        model.model_fields_set.intersection_update(keys)
        for table in ("rope", "attention"):
            if not isinstance(keys.get(table), Table):
                getattr(model, table).model_fields_set.intersection_update(keys.get(table, {}))
        return model

    def decoder(self, *, vocab_size: int, causal: bool, head_outputs: int = 0, pool: Pool = "mean") -> DecoderConfig:
        """Return the decoder of this shape. Raises ModelError for what does not fit together.

        Args:
            vocab_size: rows of the embedding table, where the TOML sets none.
            causal: whether a token sees only its past.
            head_outputs: numbers that a head gives for each document; 0: it is a language model.
            pool: how such a head makes one vector of a document's tokens.
        """
        shape = self.model_dump(include=set(Shape.model_fields), exclude={"attention": {"executor", "flex_backend"}})
        rows = vocab_size if self.vocab_size is None else self.vocab_size
        return DecoderConfig(**shape, vocab_size=rows, causal=causal, head_outputs=head_outputs, pool=pool)


class HeadConfig(Table):
    """What is predicted of whole documents, for training.objective = "classification" and "regression"."""

    classes: list[str | int] = Field(default_factory=list, max_length=2**16)
    """classification: the labels that there are, as the data writes them; numbers are compared as text."""
    pool: Pool = "mean"
    """mean: over all tokens of the document, its eos included. last: the eos alone, which attends to all if causal."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes as text, by which labels are compared."""
        return tuple(map(str, self.classes))

    @override
    def complaints(self) -> list[str]:
        if len(set(self.names)) < len(self.names):
            return [f"head.classes = {self.classes}: must differ"]
        return []
