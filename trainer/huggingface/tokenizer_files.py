"""The tokenizer's files in a Hugging Face folder, so that `AutoTokenizer.from_pretrained` gives the ids of training.

A `tokenizer.json` is copied as it is, byte for byte, with what else lies beside it; only the special tokens are
restated where the job names others. The tokenizers of this package become a `tokenizer.json` too. `byte`:

    ids 0 to 255 are bytes: a BPE over the byte alphabet without a single merge
    "\\0" (id 0, eos) and "\\1" (id 1, pad) are special tokens of their own, so that `skip_special_tokens` leaves them
    out

which encodes any text to the ids that training saw; where training had all letters in upper case (`data.uppercase`), so
does a normaliser, letter by letter. Two things it cannot say: bytes that are not UTF-8, as the library
takes text only, and that a NUL inside a document is refused: there it becomes the eos. `protein` and `dna`:

    every character is a word of its own; `a` in dna, and `k` under `on_unknown = "map"`, are replaced by what they
    stand for protein puts `<cls>` in front and `<eos>` behind, as a document of training has it, and as ESM's own
    tokenizer does

They too refuse nothing: what training would, becomes `<unk>`, and the name of a special token in a text becomes its id.
"""

import json
import string
from pathlib import Path
from typing import Any

import tokenizers

from ...base import Json, read_bytes, read_json
from ...datasets.tokenizers import CLS, EOS, TOKENIZER_BYTES, TOKENIZERS, UNK, LetterTokenizer, Tokenizer, TokenizerConfig
from ..errors import ConfigError

TOKENIZER, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
BESIDE = ("added_tokens.json", "chat_template.jinja", "merges.txt", "tokenizer.model", "vocab.json", "vocab.txt")
TOKENIZER_FILES = {TOKENIZER, SETTINGS, SPECIAL, *BESIDE}
ROLES = {"eos": "eos_token", "pad": "pad_token", "bos": "cls_token", "mask": "mask_token", "unk": "unk_token"}
# A class that reads tokenizer.json and adds nothing, in transformers 4 and 5; 4 would remove spaces before punctuation.
# No class of an exported model takes token types.
PLAIN = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}


def tokenizer_files(table: TokenizerConfig, tokenizer: Tokenizer, *, uppercase: bool = False) -> dict[str, bytes]:
    """Return name and content of each of the tokenizer's files.

    Args:
        table: where the tokenizer came from.
        tokenizer: what was made of it.
        uppercase: whether training had all letters in upper case.

    Raises:
        ConfigError: the files cannot be read, or cannot say `uppercase`.
    """
    if uppercase and table.kind != "byte":
        raise ConfigError(
            f"data.uppercase = true: the {TOKENIZER} of a tokenizer of kind {table.kind!r} cannot say it; --no-tokenizer "
            "leaves it out, and texts must then be put in upper case by whoever encodes them"
        )
    beside: dict[str, bytes] = {}
    settings, special = dict(PLAIN), dict[str, Any]()
    if isinstance(tokenizer, LetterTokenizer):
        source = letter_tokenizer(tokenizer)
    elif table.kind == "byte":
        source = byte_tokenizer(uppercase=uppercase)
    else:
        assert table.path
        given = Path(table.path).expanduser()
        folder = given if given.is_dir() else given.parent
        source = read_bytes(given / TOKENIZER if given.is_dir() else given, ConfigError, TOKENIZER_BYTES)
        beside = {name: read_bytes(folder / name, ConfigError, TOKENIZER_BYTES) for name in BESIDE if (folder / name).is_file()}
        settings, special = json_if_there(folder / SETTINGS) or dict(PLAIN), json_if_there(folder / SPECIAL) or {}
    library = tokenizers.Tokenizer.from_str(source.decode())
    for role, key in ROLES.items():
        index = getattr(tokenizer, f"{role}_id")
        if index is None:
            continue
        token = library.id_to_token(index)
        # a pad without a name is the eos, see models.huggingface.to_hf
        unnamed = role == "pad" and index == tokenizer.eos_id and settings.get(key) is None
        for entries in (settings, special):
            if not unnamed and _text(entries.get(key)) != token:
                entries[key] = token
    return {TOKENIZER: source, SETTINGS: _json(settings), SPECIAL: _json(special), **beside}


def byte_tokenizer(*, uppercase: bool = False) -> bytes:
    """Return the byte tokenizer as a `tokenizer.json`; with `uppercase` it has a normaliser to upper case (ASCII)."""
    # GPT-2's alphabet: printable bytes stand for themselves, the others, in order, for the characters from 256 on
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    alphabet = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    alphabet[:2] = "\0", "\1"  # in a text these two are found before its bytes are looked at
    model = tokenizers.models.BPE({character: byte for byte, character in enumerate(alphabet)}, [])
    made = tokenizers.Tokenizer(model)
    if uppercase:  # as `bytes.upper` does it
        pairs = zip(string.ascii_lowercase, string.ascii_uppercase, strict=True)
        made.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Replace(*pair) for pair in pairs])
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in alphabet[:2]])
    return str(made.to_str(pretty=True)).encode()


def letter_tokenizer(tokenizer: LetterTokenizer) -> bytes:
    """Return a tokenizer of letters as a `tokenizer.json`."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(tokenizer.ids, unk_token=UNK))
    replaced = tokenizer.replaced().items()
    made.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.Replace(*pair) for pair in replaced])
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    named = [token for token, index in tokenizer.ids.items() if index in tokenizer.special_ids]
    made.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in named])
    if tokenizer.bos_id is not None:
        around = [(CLS, tokenizer.bos_id), (EOS, tokenizer.eos_id)]
        pair = f"{CLS} $A {EOS} $B {EOS}"
        made.post_processor = tokenizers.processors.TemplateProcessing(f"{CLS} $A {EOS}", pair, around)
    return str(made.to_str(pretty=True)).encode()


def own_kind(file: Path) -> str | None:
    """Return which of our kinds a `tokenizer.json` is, also after transformers has rewritten it; None: another."""
    letters = {kind: found for kind in TOKENIZERS if issubclass(found := TOKENIZERS[kind], LetterTokenizer)}
    own = {"byte": byte_tokenizer(), **{kind: letter_tokenizer(found()) for kind, found in letters.items()}}
    content = read_json(file, ConfigError, TOKENIZER_BYTES)
    model = content.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    kind = next((kind for kind, source in own.items() if vocabulary == json.loads(source)["model"]["vocab"]), None)
    return None if kind == "byte" and content.get("normalizer") is not None and not shows_uppercase(file) else kind


def shows_uppercase(file: Path) -> bool:
    """Return whether a `tokenizer.json` has the normaliser of our byte tokenizer for training in upper case."""
    normalizer = read_json(file, ConfigError, TOKENIZER_BYTES).get("normalizer")
    return bool(normalizer == json.loads(byte_tokenizer(uppercase=True))["normalizer"])


def added_around(source: bytes) -> list[str]:
    """Return the tokens that a `tokenizer.json` adds around texts by default; training adds the eos alone."""
    return list(tokenizers.Tokenizer.from_str(source.decode()).encode("").tokens)


def json_if_there(path: Path) -> Json | None:
    """Return the object in a JSON file, None where there is no file. Raises ConfigError for anything else."""
    return read_json(path, ConfigError) if path.exists() else None


def _text(token: Any) -> Any:
    """Return the text of a special token, which is written as a string or as an object with its `content`."""
    return token.get("content") if isinstance(token, dict) else token


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
