"""The table `[tokenizer]`, and the registry of the kinds of tokenizers that it names."""

from typing import Annotated, Literal, TypeAlias, get_args

from typing_extensions import override

from ...base import PathText, Registry, Table
from ..errors import refuse
from .protocol import Tokenizer

Unknown: TypeAlias = Literal["error", "map"]  # what becomes of a letter that a vocabulary lacks
POLICIES: tuple[Unknown, ...] = get_args(Unknown)
TOKENIZERS: Registry[type[Tokenizer]] = Registry("tokenizer")


class TokenizerConfig(Table):
    """From text or bytes to ids."""

    kind: Annotated[str, TOKENIZERS.choice] = "byte"
    """What a document is made of, and how it becomes ids."""
    path: PathText | None = None
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


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Return the tokenizer that a table describes.

    Raises:
        DataConfigError: Keys are missing, wrong, or of another kind of tokenizer; the message names all of them.
    """
    refuse(config.complaints())
    return TOKENIZERS[config.kind].build(config)
