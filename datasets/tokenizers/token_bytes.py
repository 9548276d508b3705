"""How many bytes of a document each token stands for, which makes losses of different tokenizers comparable."""

import json

import numpy as np
import numpy.typing as npt

from .bytes import ByteTokenizer
from .hf import HFTokenizer
from .letters import LetterTokenizer
from .protocol import Tokenizer
from .tiktoken_backend import BYTE_OF


def token_bytes(tokenizer: Tokenizer) -> npt.NDArray[np.int64] | None:
    """Return the bytes that each id stands for, or None where ids do not stand for the bytes of a text.

    They do for the byte tokenizer, for letters (one that was mapped to `<unk>` is a byte too), and for byte-level BPE
    (GPT-2, Llama 3, Qwen), in whose tokens each character is a byte: there the sum over a document's ids is the
    length of its text in UTF-8 to the byte, normalised where the tokenizer does so, wherever rows cut it. Other
    vocabularies add or drop spaces, or leave out what they do not know.

    Returns:
        int64 [vocab_size], 0 for the eos and for ids without a token.
    """
    sizes = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    if isinstance(tokenizer, ByteTokenizer):
        sizes[:256] = 1
    elif isinstance(tokenizer, LetterTokenizer):
        for token, index in tokenizer.ids.items():
            sizes[index] = len(token) == 1 or index == tokenizer.unk_id
    elif isinstance(tokenizer, HFTokenizer):
        content = json.loads(tokenizer._tokenizer.to_str())
        vocabulary = content["model"]["vocab"]
        splits = json.dumps(content["pre_tokenizer"])
        if not ('"ByteLevel"' in splits and '"add_prefix_space": true' not in splits and vocabulary.keys() >= BYTE_OF.keys()):
            return None
        for token, index in vocabulary.items():
            sizes[index] = len(token)
        for token in content["added_tokens"]:  # written as text, not in the alphabet of bytes
            sizes[token["id"]] = len(token["content"].encode())
    else:
        return None
    sizes[tokenizer.eos_id] = 0
    return sizes
