"""Tokenizers of the Hugging Face library: special ids, `config.json` beside them, and the faster tiktoken backend."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import tokenizers
from typing_extensions import override

from ...base import IDS, Json, UserError, read_bytes, read_json, shown, text_of
from ..errors import DataConfigError
from .config import TOKENIZERS, TokenizerConfig
from .protocol import Encoded, LibraryError, TokenizeError, Tokenizer, library_errors
from .tiktoken_backend import NotEqualError, TiktokenBackend

TOKENIZER_BYTES = 2**28  # of a tokenizer.json; the largest that is published with weights has 35 MB
ID_KEYS = ("eos_token_id", "pad_token_id", "mask_token_id", "vocab_size")


@TOKENIZERS.add("hf", says="any tokenizer.json")
class HFTokenizer(Tokenizer):
    """Any Hugging Face `tokenizer.json`, its special ids from arguments or from `tokenizer_config.json` beside it.

    Attributes:
        file: The tokenizer.json.
        settings: What is in the `tokenizer_config.json` beside it.
    """

    options: ClassVar[tuple[str, ...]] = ("path", "eos_token", "pad_token", "mask_token")
    kind = "hf"
    dtype: npt.DTypeLike = np.int32
    streams = False

    def __init__(
        self, path: str, eos_token: str | None = None, pad_token: str | None = None, mask_token: str | None = None
    ) -> None:
        given = Path(path).expanduser()
        file = given / "tokenizer.json" if given.is_dir() else given
        if not file.exists():
            raise DataConfigError(f"tokenizer.path: there is no tokenizer.json at {given}", passing=True)
        self._arguments = (path, eos_token, pad_token, mask_token)
        source = read_bytes(file, DataConfigError, TOKENIZER_BYTES)
        text = text_of(source, str(file), DataConfigError)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except BaseException as error:  # the library raises bare Exception, and panics of Rust are no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise DataConfigError(f"tokenizer.path: {file} is not a tokenizer.json: {error}") from None
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" in a document stays text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.fingerprint = hashlib.sha256(source).hexdigest()
        # Ids may have gaps, so that the count of tokens can be less than the largest id + 1.
        known = self._tokenizer.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(known, default=-1) + 1
        if not 0 < self.vocab_size <= IDS:
            raise DataConfigError(
                f"tokenizer.path: {file} has {len(known)} tokens, the largest id of which is {self.vocab_size - 1}; "
                f"there must be one, and all ids below {IDS}"
            )

        settings_file = file.with_name("tokenizer_config.json")
        settings: Json = read_json(settings_file, DataConfigError) if settings_file.is_file() else {}
        self.file, self.settings = file, settings
        eos = eos_token or _token_text(settings.get("eos_token"))
        if eos is None:
            raise DataConfigError(
                f"tokenizer.eos_token is not set and {settings_file} states none; name the token that ends a document"
            )
        # Labels and masks go by position, never by id, so that padding with the eos is safe.
        pad = pad_token or _token_text(settings.get("pad_token")) or eos
        self.eos_id = self._special_id("eos_token", eos, file)
        self.pad_id = self._special_id("pad_token", pad, file)
        marked = {index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        if self.pad_id not in marked | {self.eos_id}:
            raise DataConfigError(
                f"tokenizer.pad_token: {pad!r} is not marked as special in {file}, so that a document's own token could be "
                "taken for padding; name a special token, or the eos"
            )
        mask, unknown = mask_token or _token_text(settings.get("mask_token")), _token_text(settings.get("unk_token"))
        self.mask_id = None if mask is None else self._special_id("mask_token", mask, file)
        if self.mask_id is not None and self.mask_id not in marked:
            raise DataConfigError(
                f"tokenizer.mask_token: {mask!r} is not marked as special in {file}, so that a document's own token could be "
                "taken for a masked one; name a special token"
            )
        # GPT-2's kin name their eos here. It stands for no unknown token: a document that has an eos is refused.
        unk_id = None if unknown is None else self._tokenizer.token_to_id(unknown)
        self.unk_id: int | None = None if unk_id == self.eos_id else unk_id
        roles = (self.eos_id, self.pad_id, self.mask_id, self.unk_id)
        self.special_ids = frozenset(marked).union(index for index in roles if index is not None)
        self.residue_ids = tuple(sorted(set(known) - self.special_ids))
        self.where = str(file) if eos_token else f"{file} + {settings_file}"
        self._eos = eos
        self._backend: TiktokenBackend | None = None

        config_file = file.with_name("config.json")
        self.hf_config: dict[str, Any] | None = None
        if config_file.is_file():
            written = stated_ids(read_json(config_file, DataConfigError), str(config_file), DataConfigError)
            if pad_token:
                written.pop("pad_token_id", None)  # whoever names the pad overrules it: padding goes by place
            self.hf_config = {"where": str(config_file), **written}

    @classmethod
    def build(cls, config: TokenizerConfig) -> "HFTokenizer":
        """Return the tokenizer of the table's path. Raises DataConfigError."""
        if config.path is None:
            raise DataConfigError("tokenizer.path is not set; kind 'hf' needs a tokenizer.json or the folder that holds it")
        return cls(config.path, config.eos_token, config.pad_token, config.mask_token)

    def _special_id(self, key: str, token: str, file: Path) -> int:
        index = self._tokenizer.token_to_id(token)
        if index is None:
            raise DataConfigError(f"tokenizer.{key}: {token!r} is not a token of {file}")
        return int(index)

    def __reduce__(self) -> tuple[object, ...]:
        """Travel to a worker as arguments: pickling the inner tokenizer would lose `encode_special_tokens`."""
        return _open, (self._arguments, self._backend is not None)

    def encode_batch(self, documents: Sequence[bytes]) -> Encoded:
        """Encode UTF-8 texts to int32 ids, several at a time, the text of special tokens as text."""
        texts: list[str] = []
        for index, data in enumerate(documents):
            try:
                texts.append(data.decode("utf-8"))
            except UnicodeDecodeError as error:
                self.encode_batch(documents[:index])  # what is wrong further ahead comes first
                raise TokenizeError(f"not valid UTF-8 ({error.reason})", error.start, index) from None
        try:
            ids = self._encode_library(texts) if self._backend is None else self._encode_tiktoken(self._backend, texts)
        except LibraryError:
            ids = self._encode_singly(texts)
        ends = np.flatnonzero(ids == self.eos_id)
        if len(ends) != len(texts):
            raise self._eos_found(documents, texts)
        return Encoded(ids, np.diff(ends, prepend=-1).tolist())

    @override
    def choose_backend(self, sample: Callable[[], Sequence[bytes]]) -> str:
        # tiktoken, if it gives the same ids for all documents of the sample; bytes that are not UTF-8 are passed over.
        proven, self._backend = self._backend, None
        texts = [data.decode("utf-8", errors="ignore") for data in sample()]
        try:
            backend = proven or TiktokenBackend(self._tokenizer, self.eos_id)
            if not any(texts):
                raise NotEqualError("there is no text to compare tiktoken's ids on")
            try:
                ids = self._encode_library(texts)
            except LibraryError as error:
                raise NotEqualError(f"it fails at a document that tiktoken's ids were to be compared on: {error}") from None
            if not np.array_equal(ids, self._encode_tiktoken(backend, texts)):
                raise NotEqualError("tiktoken gives other ids")
        except NotEqualError as reason:
            return f"tokenizers encodes: {reason}"
        self._backend = backend
        return f"tiktoken encodes: its {len(ids):,} ids of {len(texts):,} documents are those of tokenizers"

    def _encode_library(self, texts: list[str]) -> npt.NDArray[np.int32]:
        """Encode texts on the library's threads, an eos after each. Raises LibraryError."""
        with library_errors():
            # The one call that keeps no character offsets: 1.3 to 1.9 times as fast as `encode_batch`.
            rows = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        for row in rows:
            row.append(self.eos_id)
        return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=sum(map(len, rows)))

    def _encode_tiktoken(self, backend: TiktokenBackend, texts: list[str]) -> npt.NDArray[np.int32]:
        parts = [self._encode_library(part) if ids is None else ids for part, ids in backend.encode(texts)]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def _encode_singly(self, texts: list[str]) -> npt.NDArray[np.int32]:
        """Encode texts one by one, an eos after each. Raises TokenizeError for the first at which the library fails."""
        rows = []
        for index, text in enumerate(texts):
            try:
                rows.append(self._encode_library([text]))
            except LibraryError as error:
                raise TokenizeError(f"the tokenizers library fails at this document: {error}", None, index) from None
        return np.concatenate(rows)

    def _eos_found(self, documents: Sequence[bytes], texts: list[str]) -> TokenizeError:
        """Return the error for the first document from whose own text an eos came."""
        index = next(i for i, text in enumerate(texts) if self.eos_id in self._encode_library([text])[:-1])
        offset = documents[index].find(self._eos.encode())
        return TokenizeError(
            f"the document encodes to the eos {self._eos!r} (id {self.eos_id}); "
            f"mark that token as special in {self.where}, or remove its text",
            offset if offset >= 0 else None,
            index,
        )

    @override
    def text_ids(self) -> Sequence[int]:
        return self.residue_ids  # ids may have gaps, which are no tokens

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def _open(arguments: tuple[str, str | None, str | None, str | None], proven: bool) -> HFTokenizer:
    tokenizer = HFTokenizer(*arguments)
    if proven:
        tokenizer._backend = TiktokenBackend(tokenizer._tokenizer, tokenizer.eos_id)
    return tokenizer


def stated_ids(content: Json, where: str, error: type[UserError]) -> Json:
    """Return the ids, and the size of the vocabulary, that a `config.json` or `generation_config.json` states.

    Raises:
        UserError: of kind `error`: one is no integer, or beyond every vocabulary.
    """
    written = {key: content[key] for key in ID_KEYS if key in content}
    for key, value in written.items():
        ids = value if key == "eos_token_id" and isinstance(value, list) else [value]
        if value is not None and not all(type(item) is int and abs(item) <= IDS for item in ids):
            expected = "an integer, a list of integers" if key == "eos_token_id" else "an integer"
            raise error.about(where, f"{key} is {shown(value)}; it must be {expected} or null, and below {IDS}")
    return written


def _token_text(value: object) -> str | None:
    """Return the text of a token, which is written as a string or as an object with its `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
