"""Bytes to token ids and back. A tokenizer states its special ids, and none of them can come out of a document.

Read `protocol` (what the data path needs of a tokenizer), `config` (the table `[tokenizer]`, the registry of kinds),
then the kinds, each of which enters itself there: `bytes`, `letters` (proteins and DNA) and `hf`, which
`tiktoken_backend` makes faster, and `chat` (with `chat_template`) uses for conversations.
"""

from .bytes import ByteTokenizer
from .chat import chat_tokenizer, template_of
from .config import POLICIES, TOKENIZERS, TokenizerConfig, build_tokenizer
from .hf import TOKENIZER_BYTES, HFTokenizer, stated_ids
from .letters import CLS, EOS, MAP, UNK, LetterTokenizer
from .protocol import Encoded, Ids, TokenizeError, Tokenizer, has_bases
from .token_bytes import token_bytes

__all__ = [
    "CLS",
    "EOS",
    "MAP",
    "POLICIES",
    "TOKENIZERS",
    "TOKENIZER_BYTES",
    "UNK",
    "ByteTokenizer",
    "Encoded",
    "HFTokenizer",
    "Ids",
    "LetterTokenizer",
    "TokenizeError",
    "Tokenizer",
    "TokenizerConfig",
    "build_tokenizer",
    "chat_tokenizer",
    "has_bases",
    "stated_ids",
    "template_of",
    "token_bytes",
]
