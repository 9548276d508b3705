"""Bytes to token ids. A tokenizer states its special ids and where they are written; none can come out of a document.

`byte` follows Evo 2's CharLevelTokenizer: raw UTF-8 bytes, EOD = EOS = 0, PAD = 1, vocabulary 512. `hf` is any
`tokenizer.json`, with the text of special tokens encoded as text. `protein` and `dna` are in `vocabularies.py`.
"""

from ..errors import DataConfigError
from .bytes import ByteTokenizer
from .hf import HFTokenizer
from .letters import DnaTokenizer, LetterTokenizer, ProteinTokenizer
from .protocol import Tokenizer

LETTERS: dict[str, type[LetterTokenizer]] = {"protein": ProteinTokenizer, "dna": DnaTokenizer}
KINDS = ("byte", *LETTERS, "hf")  # `cistron prepare` names all but the last without a path


def build_tokenizer(
    kind: str,
    path: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
    mask_token: str | None = None,
    on_unknown: str | None = None,
) -> Tokenizer:
    """Make the tokenizer that a config names.

    Args:
        kind: `byte`, `protein`, `dna` or `hf`.
        path: For `hf`: a `tokenizer.json` or the folder that holds one.
        eos_token: For `hf`: text of the eos token, else `tokenizer_config.json` says.
        pad_token: For `hf`: text of the pad token, else `tokenizer_config.json` says, else the eos.
        mask_token: For `hf`: text of the mask token, else `tokenizer_config.json` says, else there is none.
        on_unknown: For `protein` and `dna`: `error` (the default) or `map`.

    Raises:
        DataConfigError: A key is missing or wrong; the message names it.
    """
    if kind not in KINDS:
        raise DataConfigError(f"tokenizer.kind: {kind!r} is not one of {', '.join(map(repr, KINDS))}")
    letters = LETTERS.get(kind)
    of_hf = {"path": path, "eos_token": eos_token, "pad_token": pad_token, "mask_token": mask_token}
    foreign = {**({} if kind == "hf" else of_hf), **({} if letters else {"on_unknown": on_unknown})}
    for key, value in foreign.items():
        if value is not None:
            raise DataConfigError(f"tokenizer.{key}: {value!r} means nothing to the {kind} tokenizer; remove it")
    if letters:
        return letters(on_unknown or "error")
    if kind == "byte":
        return ByteTokenizer()
    if path is None:
        raise DataConfigError("tokenizer.path is not set; kind 'hf' needs a tokenizer.json or the folder that holds it")
    return HFTokenizer(path, eos_token, pad_token, mask_token)
