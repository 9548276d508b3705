"""The other strand of a nucleotide sequence, by the codes of IUPAC (Cornish-Bowden 1985, Nucleic Acids Res. 13, 3021)."""

CODES = b"ACGTURYSWKMBDHVN"
COMPLEMENTS = b"TGCAAYRSWMKVHDBN"
# Case is kept; what is no code becomes NUL, which is none either.
TABLE = bytes(
    dict(zip(CODES + CODES.lower(), COMPLEMENTS + COMPLEMENTS.lower(), strict=True)).get(byte, 0) for byte in range(256)
)


def reverse_complement(data: bytes) -> bytes:
    """Return the opposite strand of `data`, read in its own direction; case is kept, and U gives A.

    Raises:
        ValueError: A byte is no IUPAC code; its place in `data` is the error's second argument.
    """
    strand = data.translate(TABLE)
    if (place := strand.find(0)) >= 0:
        raise ValueError(f"{data[place : place + 1]!r} is no IUPAC code of a nucleotide, so has no complement", place)
    return strand[::-1]
