"""From the table `[tokenizer]` to a tokenizer. Importing this module fills the registry with our own kinds."""

from ..errors import refuse
from . import bytes, hf, letters  # noqa: F401 (they register)
from .config import TOKENIZERS, TokenizerConfig
from .protocol import Tokenizer


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Return the tokenizer that a table describes.

    Raises:
        DataConfigError: Keys are missing, wrong, or of another kind of tokenizer; the message names all of them.
    """
    refuse(config.complaints())
    return TOKENIZERS[config.kind].build(config)
