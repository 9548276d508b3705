"""What the data path needs of a tokenizer: bytes to ids, special ids, and errors about what cannot be encoded."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .config import TokenizerConfig

Ids = npt.NDArray[np.integer[Any]]
# Letters that ids stand for, each for one.
Alphabet: TypeAlias = Literal["bytes", "dna", "protein"]


class TokenizeError(ValueError):
    """A document cannot be encoded.

    Attributes:
        problem: What is wrong with it.
        offset: Byte inside of the document at which it fails, None where unknown.
        index: Its place in the batch; documents before it are sound.
    """

    def __init__(self, problem: str, offset: int | None, index: int) -> None:
        self.problem = problem
        self.offset = offset
        self.index = index
        super().__init__(problem, offset, index)


class LibraryError(Exception):
    """The library behind a tokenizer failed; the text is its own."""


@contextmanager
def library_errors() -> Iterator[None]:
    """Turn whatever a library raises in the block into a LibraryError.

    A panic of Rust, as a regular expression's limit of retries, is a BaseException of no public class.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise LibraryError(f"{type(error).__name__}: {error}") from None


class Encoded(NamedTuple):
    """Documents as ids, one after another, each followed by its eos.

    Attributes:
        ids: 1-d integers of the tokenizer's dtype; may be read-only.
        lengths: Of each document with its eos: 1 for a document without tokens.
        mapped: Letters of each document that `on_unknown = "map"` replaced; None where there are none in any.
    """

    ids: Ids
    lengths: list[int]
    mapped: list[int] | None = None


class Tokenizer(Protocol):
    """What the data path and the eos contract need of a tokenizer; a class that derives from it has its defaults.

    Attributes:
        options: Keys of `[tokenizer]` beside `kind` that it reads.
        kind: As in `[tokenizer]`.
        dtype: Of the ids.
        alphabet: Which letters have an id each: all bytes, or those of DNA or of proteins; None where a token may have
            many letters.
        eos_id: Id that ends every document.
        pad_id: Id that fills the end of a row.
        bos_id: Id that `encode` opens every document with (`<cls>` of a protein model), None where there is none.
        mask_id: Id that hides a token from a masked language model, None where there is none.
        unk_id: Id of what the vocabulary lacks, None where nothing is missing or a document that lacks it is refused.
        special_ids: Ids that stand for no part of a text: none is ever masked.
        residue_ids: Ids that a masked language model may put in the place of a token; empty without a mask.
        vocab_size: One more than the largest id.
        where: Where these ids are written, for a human reader.
        fingerprint: Changes whenever the encoding does.
        streams: True where encoding a concatenation equals concatenating encodings, so that a document may be encoded
            chunk by chunk.
        hf_config: What the Hugging Face `config.json` beside the tokenizer states, None where there is none.
    """

    options: ClassVar[tuple[str, ...]] = ()
    kind: str
    dtype: npt.DTypeLike
    alphabet: Alphabet | None = None
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    mask_id: int | None = None
    unk_id: int | None = None
    special_ids: frozenset[int]
    residue_ids: tuple[int, ...] = ()
    vocab_size: int
    where: str
    fingerprint: str
    streams: bool
    hf_config: dict[str, Any] | None = None

    @classmethod
    def build(cls, config: "TokenizerConfig") -> "Tokenizer":
        """Return the tokenizer that a table describes. Raises DataConfigError."""
        ...

    def encode(self, data: bytes) -> Ids:
        """Encode UTF-8 `data` to ids, 1-d, without an eos; see `encode_batch`."""
        return self.encode_batch([data]).ids[:-1]

    def encode_batch(self, documents: Sequence[bytes]) -> Encoded:
        """Encode documents, UTF-8, and end each with an eos.

        Raises:
            TokenizeError: A document is not valid for this tokenizer, or an eos came out of it; it is the first such.
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to text, special ones included."""
        ...

    def text_ids(self) -> Sequence[int]:
        """Return the ids that texts consist of, rising: what a model may draw, beside the eos."""
        roles = (self.eos_id, self.pad_id, self.bos_id, self.mask_id, self.unk_id)
        return [index for index in range(self.vocab_size) if index not in self.special_ids and index not in roles]

    def choose_backend(self, sample: Callable[[], Sequence[bytes]]) -> str | None:
        """Encode from now on in the fastest way that gives the same ids.

        Args:
            sample: Returns documents of the corpus, or parts of them, to compare ids on. Reading them takes time.

        Returns:
            What encodes from now on, and why; None where there is one way only.
        """
        return None


def has_bases(tokenizer: Tokenizer) -> bool:
    """Tell whether each base of DNA is one token, and a document has no other tokens but its eos."""
    return tokenizer.alphabet in ("bytes", "dna") and tokenizer.bos_id is None
