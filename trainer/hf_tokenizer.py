"""The tokenizer's files in a Hugging Face folder, so that `AutoTokenizer.from_pretrained` gives the ids of training.

A `tokenizer.json` is copied as it is, byte for byte, with what else lies beside it; only the special tokens are restated where
the job names others. The byte tokenizer becomes a `tokenizer.json` too:

    ids 0 to 255 are bytes: a BPE over the byte alphabet without a single merge
    "\\0" (id 0, eos) and "\\1" (id 1, pad) are special tokens of their own, so that `skip_special_tokens` leaves them out

which encodes any text to the ids that training saw. Two things it cannot say: bytes that are not UTF-8, as the library takes
text only, and that a NUL inside a document is refused: there it becomes the eos.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers

from ..datasets.tokenizers import Tokenizer
from .tables import TokenizerTable

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
BESIDE = ("added_tokens.json", "chat_template.jinja", "merges.txt", "tokenizer.model", "vocab.json", "vocab.txt")
TOKENIZER_FILES = {TOKENIZER, SETTINGS, SPECIAL, *BESIDE}
# A class that reads tokenizer.json and adds nothing, in transformers 4 and 5; 4 would tidy up spaces before punctuation.
PLAIN = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


def tokenizer_files(table: TokenizerTable, tokenizer: Tokenizer) -> dict[str, bytes]:
    """Name and content of each file.

    Args:
        table: where the tokenizer came from.
        tokenizer: what was made of it.
    """
    if table.kind == "byte":
        source, beside, settings, special = byte_tokenizer(), {}, dict(PLAIN), {}
    else:
        assert table.path
        given = Path(table.path).expanduser()
        folder = given if given.is_dir() else given.parent
        source = (given / TOKENIZER if given.is_dir() else given).read_bytes()
        beside = {name: (folder / name).read_bytes() for name in BESIDE if (folder / name).is_file()}
        settings, special = _read(folder / SETTINGS) or dict(PLAIN), _read(folder / SPECIAL)
    library = tokenizers.Tokenizer.from_str(source.decode())
    for role, index in (("eos_token", tokenizer.eos_id), ("pad_token", tokenizer.pad_id)):
        token = library.id_to_token(index)
        # a pad that nobody named is the eos, see models.huggingface.to_hf
        unnamed = role == "pad_token" and index == tokenizer.eos_id and settings.get(role) is None
        for stated in (settings, special):
            if not unnamed and _text(stated.get(role)) != token:
                stated[role] = token
    return {TOKENIZER: source, SETTINGS: _json(settings), SPECIAL: _json(special), **beside}


def byte_tokenizer() -> bytes:
    """The byte tokenizer as a `tokenizer.json`."""
    # GPT-2's alphabet: printable bytes stand for themselves, the others, in order, for the characters from 256 on
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    alphabet = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    alphabet[:2] = "\0", "\1"  # in a text these two are found before its bytes are looked at
    model = tokenizers.models.BPE({character: byte for byte, character in enumerate(alphabet)}, [])
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in alphabet[:2]])
    return str(made.to_str(pretty=True)).encode()


def is_byte_tokenizer(file: Path) -> bool:
    """Whether a `tokenizer.json` is the byte tokenizer's, also after transformers has written it anew."""
    mine: dict[str, Any] = json.loads(byte_tokenizer())
    return bool(_read(file).get("model", {}).get("vocab") == mine["model"]["vocab"])


def added_around(source: bytes) -> list[str]:
    """The tokens that a `tokenizer.json` puts around every text unless told not to; training sees none but the eos."""
    return list(tokenizers.Tokenizer.from_str(source.decode()).encode("").tokens)


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_bytes()) if file.is_file() else {}
    return content


def _text(stated: Any) -> Any:
    """A special token is written as a string or as an object with its `content`."""
    return stated.get("content") if isinstance(stated, dict) else stated


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
