"""Letters to ids as published, back again, and whatever is no letter refused where it stands or mapped and counted."""

import re

import numpy as np
import pytest
from cistron.datasets.errors import DataConfigError
from cistron.datasets.tokenizers import TokenizeError, TokenizerConfig, build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

PROTEIN, DNA = "LAGVSERTIDPKQNFYMHWCXBUZO.-|", "ACGTNRYSWKMBDHV-"
KINDS = pytest.mark.parametrize(("kind", "letters"), [("protein", PROTEIN), ("dna", DNA)])


def reference(kind: str, text: str) -> list[int]:
    """Ids by a search in the published order, a letter at a time."""
    if kind == "dna":
        return [4 + DNA.index(letter) for letter in text.upper()]
    return [0, *(4 + PROTEIN.index(letter) for letter in text)] if text else []


def test_protein_ids_are_esms_and_special_ones_are_stated() -> None:
    protein = build_tokenizer(TokenizerConfig(kind="protein"))
    assert protein.encode_batch([b"MKV"]).ids.tolist() == [0, 20, 15, 7, 2]
    assert (protein.bos_id, protein.pad_id, protein.eos_id, protein.unk_id, protein.mask_id) == (0, 1, 2, 3, 32)
    assert protein.vocab_size == 33
    assert protein.special_ids == {0, 1, 2, 3, 32}
    assert protein.decode(range(33)) == f"<cls><pad><eos><unk>{PROTEIN}<mask>"
    assert protein.residue_ids == tuple(range(4, 24))
    assert set(protein.decode(protein.residue_ids)) == set("ACDEFGHIKLMNPQRSTVWY")
    dna = build_tokenizer(TokenizerConfig(kind="dna"))
    assert dna.decode(range(21)) == f"<eos><pad><unk><mask>{DNA}\ufffd"
    assert (dna.bos_id, dna.eos_id, dna.pad_id, dna.unk_id, dna.mask_id, dna.vocab_size) == (None, 0, 1, 2, 3, 20)
    assert dna.decode(dna.residue_ids) == "ACGT"
    assert dna.special_ids == {0, 1, 2, 3}


@KINDS
@given(data=st.data())
def test_ids_are_those_of_the_order_and_go_back_to_the_letters(kind: str, letters: str, data: st.DataObject) -> None:
    alphabet = letters + letters.lower() if kind == "dna" else letters
    texts = data.draw(st.lists(st.text(alphabet, max_size=30), max_size=6))
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind))
    ids, lengths, mapped = tokenizer.encode_batch([text.encode() for text in texts])
    documents = [[*reference(kind, text), tokenizer.eos_id] for text in texts]
    assert ids.tolist() == [index for document in documents for index in document]
    assert (ids.dtype, lengths, mapped) == (np.uint8, [*map(len, documents)], None)
    for text in texts:
        shown = tokenizer.decode(index for index in tokenizer.encode(text.encode()).tolist() if index != tokenizer.bos_id)
        assert shown == (text.upper() if kind == "dna" else text)


@KINDS
@given(data=st.data())
def test_mapped_letters_are_counted_per_document_and_others_keep_their_ids(
    kind: str, letters: str, data: st.DataObject
) -> None:
    strict, lenient = build_tokenizer(TokenizerConfig(kind=kind)), build_tokenizer(TokenizerConfig(kind=kind, on_unknown="map"))
    assert strict.fingerprint == lenient.fingerprint
    texts = data.draw(st.lists(st.text(letters + "akuUJ*~", max_size=20), min_size=1, max_size=5))
    encoded = lenient.encode_batch([text.encode() for text in texts])
    counts = []
    ends = np.cumsum(encoded.lengths)
    for text, end, length in zip(texts, ends, encoded.lengths, strict=True):
        ids = encoded.ids[end - length : end - 1].tolist()
        assert len(ids) == len(text.encode()) + (strict.bos_id is not None and text != "")
        odd = 0
        for letter, index in zip(text.encode().decode("latin-1"), ids[-len(text.encode()) :], strict=False):
            try:
                assert strict.encode(letter.encode("latin-1"))[-1] == index
            except TokenizeError:
                odd += 1
                near = {"U": "T", "u": "T"} if kind == "dna" else {"a": "A", "k": "K", "u": "U"}
                assert index == (reference(kind, near[letter])[-1] if letter in near else strict.unk_id)
        counts.append(odd)
    assert (encoded.mapped or [0] * len(texts)) == counts


REFUSED = {
    "lowercase protein": ("protein", b"MkV", 1, "lowercase 'k' .* reads it as K and counts it"),
    "unknown residue": ("protein", b"MKJ", 2, "'J' is no letter of the protein vocabulary .* reads it as <unk>"),
    "lowercase letter of no residue": ("protein", b"jM", 0, "^'j' is no letter"),
    "RNA": ("dna", b"ACGU", 3, "'U' is RNA; .* reads it as T"),
}
NEVER = {
    "eos byte": (b"AC\0G", 2, "a NUL byte inside of"),
    "byte that joins": (b"A\1", 1, "the control byte 0x01"),
    "blank": (b"AC GT", 2, "a blank inside of"),
    "line feed": (b"ACGT\n", 4, "a line feed inside of"),
    "not ASCII": ("AÉ".encode(), 1, "the byte 0xc3 is not ASCII"),
    "delete": (b"\x7fA", 0, "the control byte 0x7f"),
}


@pytest.mark.parametrize(("kind", "data", "offset", "message"), REFUSED.values(), ids=REFUSED)
def test_a_letter_of_no_vocabulary_is_refused_with_what_map_would_do(kind: str, data: bytes, offset: int, message: str) -> None:
    with pytest.raises(TokenizeError) as caught:
        build_tokenizer(TokenizerConfig(kind=kind)).encode_batch([b"ACG", b"", data, data])
    assert re.search(message, caught.value.problem)
    assert (caught.value.index, caught.value.offset) == (2, offset)
    assert build_tokenizer(TokenizerConfig(kind=kind, on_unknown="map")).encode_batch([b"ACG", data]).mapped is not None


@KINDS
@pytest.mark.parametrize("policy", ["error", "map"])
@pytest.mark.parametrize(("data", "offset", "message"), NEVER.values(), ids=NEVER)
def test_what_no_sequence_holds_is_refused_by_either_policy(
    kind: str, letters: str, policy: str, data: bytes, offset: int, message: str
) -> None:
    with pytest.raises(TokenizeError, match=f"{message}.*remove it") as caught:
        build_tokenizer(TokenizerConfig(kind=kind, on_unknown=policy)).encode_batch([letters.encode(), data])
    assert (caught.value.index, caught.value.offset) == (1, offset)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "byte", "on_unknown": "map"}, r"tokenizer\.on_unknown: 'map' means nothing to the byte tokenizer"),
        ({"kind": "hf", "path": "x", "on_unknown": "error"}, r"tokenizer\.on_unknown: 'error' means nothing to the hf"),
        ({"kind": "dna", "mask_token": "N"}, r"tokenizer\.mask_token: 'N' means nothing to the dna tokenizer"),
        ({"kind": "protein", "path": "x"}, r"tokenizer\.path: 'x' means nothing to the protein tokenizer"),
    ],
)
def test_a_key_of_another_tokenizer_is_refused(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(DataConfigError, match=message):
        build_tokenizer(TokenizerConfig(**arguments))  # type: ignore[arg-type]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValidationError, match="Input should be 'error' or 'map'"):
        TokenizerConfig(kind="protein", on_unknown="skip")  # type: ignore[arg-type]
