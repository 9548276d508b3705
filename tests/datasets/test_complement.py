"""The other strand."""

import pytest
from cistron.datasets.complement import reverse_complement
from hypothesis import given
from hypothesis import strategies as st

# What each code stands for (IUPAC), as sets of bases.
BASES = {
    "A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "GC", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT", "-": "", ".": "",
}  # fmt: skip
ALPHABET = st.text(st.sampled_from([*BASES, *map(str.lower, BASES)]))


@given(ALPHABET)
def test_it_is_the_letter_for_the_complementary_bases_read_backwards(text: str) -> None:
    flipped = reverse_complement(text.encode()).decode()
    pairs = dict(zip("ACGT", "TGCA", strict=True))
    for letter, other in zip(text, reversed(flipped), strict=True):
        assert set(BASES[other.upper()]) == {pairs[base] for base in BASES[letter.upper()]}
        assert letter.islower() == other.islower()
        assert letter == other or letter not in "-."
    assert reverse_complement(flipped.encode()).decode() == text


@pytest.mark.parametrize(
    ("data", "named"), [(b"ACU", "b'U' at 2"), (b"AC GT", "b' ' at 2"), (b"\x00A", "b'.x00' at 0"), (b"u", "b'u'")]
)
def test_what_has_no_complement_is_named(data: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        reverse_complement(data)
