"""One letter, one id: proteins as ESM numbers them, and a compact vocabulary of nucleotides.

    protein   <cls> <pad> <eos> <unk> L A G V S E R T I D P K Q N F Y M H W C X B U Z O . - | <mask>       ids 0 to 32
    dna       <eos> <pad> <unk> <mask> A C G T N R Y S W K M B D H V -                                     ids 0 to 19

A batch of documents is joined and looked up in one table of 256 entries by `bytes.translate`, at some 1.5 GB/s. Ids
stay below 64, so that two bits of a table's entry are free to say that a letter was mapped to another's id, or is
unknown.

What is not in a vocabulary is an error, or with `on_unknown = "map"` another letter, unless it is no printable ASCII:
then no sequence was read, and the library of an exported tokenizer would count characters, not bytes. The fingerprint
is the same for both, as no document that `error` accepts has other ids under `map`: shards made with one are read with
the other.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from .config import TOKENIZERS, TokenizerConfig, Unknown
from .protocol import Alphabet, Encoded, TokenizeError, Tokenizer

CLS, PAD, EOS, UNK, MASK = "<cls>", "<pad>", "<eos>", "<unk>", "<mask>"
MAP = 'tokenizer.on_unknown = "map"'  # in messages: the remedy, as a job writes it
MAPPED, REFUSED = 0x80, 0xFF  # a table's entry: added to an id, and in place of one
# Between two documents of a batch; no letter, so that one inside of a document is noticed by their number.
END, BEGIN = b"\0", b"\1"
NAMES = {"\0": "a NUL byte", "\t": "a tab", "\n": "a line feed", "\r": "a carriage return", " ": "a blank"}


class LetterTokenizer(Tokenizer):
    """Letters as ids.

    Attributes:
        tokens: The vocabulary in the order of its ids.
        same: Letters that are written otherwise and are the same, to the vocabulary's.
        near: Letters that `on_unknown = "map"` takes for one of the vocabulary; it takes all others for `<unk>`.
        residues: Letters that a masked language model may put in the place of another.
        on_unknown: `error` or `map`.
    """

    kind: str
    where: str
    tokens: ClassVar[tuple[str, ...]]
    same: ClassVar[Mapping[str, str]]
    near: ClassVar[Mapping[str, str]]
    residues: ClassVar[str]
    dtype: npt.DTypeLike = np.uint8

    options: ClassVar[tuple[str, ...]] = ("on_unknown",)

    def __init__(self, on_unknown: Unknown = "error") -> None:
        self.on_unknown = on_unknown
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        self.eos_id, self.pad_id = self.ids[EOS], self.ids[PAD]
        self.bos_id, self.unk_id, self.mask_id = (self.ids.get(token) for token in (CLS, UNK, MASK))
        self.vocab_size = len(self.tokens)
        self.fingerprint = self.kind
        self.streams = self.bos_id is None
        self.special_ids = frozenset(index for token, index in self.ids.items() if len(token) > 1)
        self.residue_ids = tuple(self.ids[letter] for letter in self.residues)

        exact = {letter: self.ids[self.same.get(letter, letter)] for letter in [*filter(_is_letter, self.ids), *self.same]}
        table = bytearray([REFUSED]) * 256
        if on_unknown == "map":
            # Not controls, blanks and parts of other characters: where one stands, it was no sequence that was read.
            for byte in range(0x21, 0x7F):
                table[byte] = MAPPED + self.ids[self.near.get(chr(byte), UNK)]
        for letter, index in exact.items():
            table[ord(letter)] = index
        self._accepted = bytes(byte for byte in range(256) if table[byte] != REFUSED)
        table[END[0]] = self.eos_id
        if self.bos_id is not None:
            table[BEGIN[0]] = self.bos_id
        self._table = bytes(table)

    @classmethod
    def build(cls, config: TokenizerConfig) -> "LetterTokenizer":
        """Return the tokenizer with the table's policy for unknown letters."""
        return cls(config.on_unknown or "error")

    def encode_batch(self, documents: Sequence[bytes]) -> Encoded:
        """Encode documents; one without a letter is an eos alone."""
        opened = documents if self.bos_id is None else [BEGIN + data if data else data for data in documents]
        ids = np.frombuffer(END.join((*opened, b"")).translate(self._table), dtype=np.uint8)
        lengths = [len(data) + 1 for data in opened]
        highest = ids.max(initial=0)
        ends, begins = (np.count_nonzero(ids == index) for index in (self.eos_id, self.bos_id))
        if highest == REFUSED or ends != len(documents) or (self.bos_id is not None and begins != sum(map(bool, documents))):
            raise self._refusal(documents)
        if highest < MAPPED:
            return Encoded(ids, lengths)
        starts = np.cumsum([0, *lengths[:-1]])
        return Encoded(ids & ~np.uint8(MAPPED), lengths, np.add.reduceat(ids >= MAPPED, starts, dtype=np.int64).tolist())

    def replaced(self) -> dict[str, str]:
        """Return the letters that get the id of another letter, each with that letter."""
        return {**self.same, **(self.near if self.on_unknown == "map" else {})}

    def _refusal(self, documents: Sequence[bytes]) -> TokenizeError:
        """Return the error for the first unknown character."""
        index, letter = next((i, bad[:1]) for i, data in enumerate(documents) if (bad := data.translate(None, self._accepted)))
        return TokenizeError(self._problem(letter.decode("latin-1")), documents[index].find(letter), index)

    def _problem(self, letter: str) -> str:
        if letter > "\x7f":
            return f"the byte 0x{ord(letter):02x} is not ASCII, and no part of a {self.kind} sequence; remove it"
        if letter in NAMES or letter < " " or letter == "\x7f":
            name = NAMES.get(letter, f"the control byte 0x{ord(letter):02x}")
            return f"{name} inside of a {self.kind} sequence, which has letters only; remove it"
        meant = self.near.get(letter, UNK)
        found = repr(letter)
        reason = f"is no letter of the {self.kind} vocabulary ({''.join(filter(_is_letter, self.tokens))})"
        if letter in "Uu" and meant == "T":
            reason = "is RNA"
        elif letter.upper() in self.ids:
            found = f"lowercase {found}"
        return f"{found} {reason}; {MAP} reads it as {meant} and counts it"

    def decode(self, ids: Iterable[int]) -> str:
        """Decode ids to letters and names of special tokens; ids beyond the vocabulary become U+FFFD."""
        return "".join(self.tokens[i] if i < self.vocab_size else "\ufffd" for i in ids)


def _is_letter(token: str) -> bool:
    return len(token) == 1


@TOKENIZERS.add("protein", says="ESM's 33 tokens")
class ProteinTokenizer(LetterTokenizer):
    """ESM's 33 tokens in their published order (`|` breaks a chain); a document is `<cls>`, residues, `<eos>`.

    Random residues of the masked objective are the 20 standard amino acids.
    """

    kind = "protein"
    alphabet: Alphabet | None = "protein"
    where = "protein tokenizer: ESM's vocabulary"
    tokens = (CLS, PAD, EOS, UNK, *"LAGVSERTIDPKQNFYMHWCXBUZO.-|", MASK)
    same: ClassVar[Mapping[str, str]] = {}
    near: ClassVar[Mapping[str, str]] = {letter.lower(): letter for letter in "LAGVSERTIDPKQNFYMHWCXBUZO"}
    residues = "LAGVSERTIDPKQNFYMHWC"


@TOKENIZERS.add("dna", says="20 IUPAC codes")
class DnaTokenizer(LetterTokenizer):
    """The IUPAC codes of NCBI's FASTA, without U; either case of a letter is one id, since case tells of repeats only.

    Twenty ids: a table that 2 or 4 ranks of tensor parallelism divide. eos and pad are those of `byte`.
    """

    kind = "dna"
    alphabet: Alphabet | None = "dna"
    where = "dna tokenizer: IUPAC nucleotide codes"
    tokens = (EOS, PAD, UNK, MASK, *"ACGTNRYSWKMBDHV-")
    same: ClassVar[Mapping[str, str]] = {letter.lower(): letter for letter in "ACGTNRYSWKMBDHV"}
    near: ClassVar[Mapping[str, str]] = {"U": "T", "u": "T"}
    residues = "ACGT"
