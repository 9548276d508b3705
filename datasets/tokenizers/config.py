"""The table `[tokenizer]`, and the registry of the kinds of tokenizers that it names."""

from typing import Annotated, ClassVar, Literal, Protocol, TypeAlias, get_args

from typing_extensions import override

from ...base import Registry, Table
from .protocol import Tokenizer

Unknown: TypeAlias = Literal["error", "map"]  # what becomes of a letter that a vocabulary lacks
POLICIES: tuple[Unknown, ...] = get_args(Unknown)


class TokenizerKind(Protocol):
    """A class of tokenizers, as `TOKENIZERS` holds them.

    Attributes:
        options: Keys of `[tokenizer]` beside `kind` that it reads.
    """

    options: ClassVar[tuple[str, ...]]

    @classmethod
    def build(cls, config: "TokenizerConfig") -> Tokenizer:
        """Return the tokenizer that a table describes. Raises DataConfigError."""
        ...


TOKENIZERS: Registry[type[TokenizerKind]] = Registry("tokenizer")


class TokenizerConfig(Table):
    """From text or bytes to ids."""

    kind: Annotated[str, TOKENIZERS.choice] = "byte"
    """What a document is made of, and how it becomes ids."""
    path: str | None = None
    """hf: the tokenizer.json or the folder that holds it."""
    eos_token: str | None = None
    """hf: the token that ends a document; unset: tokenizer_config.json's."""
    pad_token: str | None = None
    """hf: the padding token; unset: tokenizer_config.json's, else the eos (safe: labels go by position)."""
    mask_token: str | None = None
    """hf: the token that hides another from training.objective mlm; unset: tokenizer_config.json's."""
    on_unknown: Unknown | None = None
    """protein, dna: error (unset): refuse letters of no vocabulary; map: k to K, U to T, else <unk>, and count them."""

    @override
    def complaints(self) -> list[str]:
        read = ("kind", *TOKENIZERS[self.kind].options)
        return [
            f"tokenizer.{key}: {value!r} means nothing to the {self.kind} tokenizer; remove it"
            for key, value in self
            if value is not None and key not in read
        ]
