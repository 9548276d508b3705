"""datasets/tokenizers."""

from .build import build_tokenizer
from .config import POLICIES, TOKENIZERS, TokenizerConfig
from .hf import HFTokenizer
from .letters import CLS, EOS, MAP, UNK, LetterTokenizer
from .protocol import Encoded, Ids, TokenizeError, Tokenizer
from .token_bytes import token_bytes

__all__ = [
    "CLS",
    "EOS",
    "MAP",
    "POLICIES",
    "TOKENIZERS",
    "UNK",
    "Encoded",
    "HFTokenizer",
    "Ids",
    "LetterTokenizer",
    "TokenizeError",
    "Tokenizer",
    "TokenizerConfig",
    "build_tokenizer",
    "token_bytes",
]
