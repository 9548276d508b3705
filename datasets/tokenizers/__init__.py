"""datasets/tokenizers."""

from .build import KINDS, LETTERS, build_tokenizer
from .hf import HFTokenizer
from .letters import CLS, EOS, MAP, POLICIES, UNK, LetterTokenizer
from .protocol import Encoded, Ids, TokenizeError, Tokenizer
from .token_bytes import token_bytes

__all__ = [
    "CLS",
    "EOS",
    "KINDS",
    "LETTERS",
    "MAP",
    "POLICIES",
    "UNK",
    "Encoded",
    "HFTokenizer",
    "Ids",
    "LetterTokenizer",
    "TokenizeError",
    "Tokenizer",
    "build_tokenizer",
    "token_bytes",
]
