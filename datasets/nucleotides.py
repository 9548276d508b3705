"""IUPAC codes and the reverse complement of bytes."""

# IUPAC nucleotide codes (Cornish-Bowden 1985) and what pairs with each; gaps stay.
CODES, PAIRS = b"ACGTRYSWKMBDHVN-.", b"TGCAYRSWMKVHDBN-."
CODES, PAIRS = CODES + CODES[:15].lower(), PAIRS + PAIRS[:15].lower()
TABLE = bytes.maketrans(CODES, PAIRS)


def reverse_complement(data: bytes) -> bytes:
    """Return the other strand of `data`, read in its own direction; case is kept, and so are the gaps `-` and `.`.

    Raises:
        ValueError: A byte is no IUPAC code of DNA; names the first one. U, of RNA, is none.
    """
    if others := data.translate(None, CODES):
        raise ValueError(f"byte {others[:1]!r} at {data.index(others[:1])} is no IUPAC code of DNA: it has no complement")
    return data.translate(TABLE)[::-1]
