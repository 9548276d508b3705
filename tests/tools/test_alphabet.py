"""`cistron check` tells what the letters of a source look like, and names those that do not belong."""

from pathlib import Path

import pytest
from cistron.datasets.files import FileStore
from cistron.datasets.readers import SourceConfig
from cistron.datasets.shards import open_shards
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.datasets.tokenizers.letters import DnaTokenizer
from cistron.tests.helpers.corpora import config, write_fasta, write_shard
from cistron.tools.support.alphabet import alphabet_report, count_ids, count_letters, foreign_letters, looks_like
from cistron.tools.support.corpus import look_into

PROTEIN = b"MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ"
PROSE = b"The quick brown fox: it jumps over 13 lazy dogs, and can act at a tag."


def said(documents: list[bytes], alphabet: str = "bytes") -> list[str]:
    return [told for told in alphabet_report(count_letters(documents), alphabet) if isinstance(told, str)]


@pytest.mark.parametrize(
    ("documents", "kind", "foreign"),
    [
        ([b"acgtNNRYACGT-ACGT"], "nucleotides", []),
        ([b"ACGU" * 9], "nucleotides", []),
        ([b"ACGT" * 9, b"ACGUu"], "nucleotides", [("'U'", 1), ("'u'", 1)]),
        ([b"ACGT" * 99, PROTEIN], "nucleotides", [("'Q'", 6), ("'L'", 5), ("'I'", 4), ("'E'", 4), ("'F'", 2), ("'P'", 1)]),
        ([b"ACGT" * 9 + b"\n12>\x1a"], "nucleotides", [("a line feed", 1), ("0x1a", 1), ("'1'", 1), ("'2'", 1), ("'>'", 1)]),
        ([PROTEIN, PROTEIN.lower() + b"*"], "proteins", []),
        ([PROTEIN * 3 + b"7"], "proteins", [("'7'", 1)]),
        ([PROSE, "naïve\n".encode()], "text", []),
        ([PROSE + b"\x1a\x00"], "text", [("0x00", 1), ("0x1a", 1)]),
    ],
)
def test_letters_are_told_by_what_they_are(documents: list[bytes], kind: str, foreign: list[tuple[str, int]]) -> None:
    counts = count_letters(documents)
    assert looks_like(counts, "bytes") == kind
    assert sorted(foreign_letters(counts, kind)) == sorted(foreign)
    assert any("warning" in line for line in said(documents)) == bool(foreign)


def test_the_tokenizer_says_what_letters_should_be() -> None:
    assert "look like nucleotides; 25.00% are lowercase" in said([b"ACGt"], "dna")[0]
    assert said([PROTEIN], "dna")[1].startswith("  warning: these are no letters of nucleotides: 'Q' (6)")
    assert len(said([PROTEIN], "protein")) == 1


def test_sources_of_files_and_of_shards_are_counted(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "x.fa", ["ACGTn" * 40, "MKV", "aaEE"])
    source = SourceConfig(name="main", format="fasta", paths=[path])
    with config(source, lanes=1).loader() as loader:
        found = look_into(loader.sources[0], ByteTokenizer(), 32)
    assert found is not None
    assert {chr(byte): int(found.letters[byte]) for byte in b"ACGTnMKVaE"} == dict(
        zip("ACGTnMKVaE", (40, 40, 40, 40, 40, 1, 1, 1, 2, 2), strict=True)
    )
    assert found.letters.sum() == 207
    tokenizer = DnaTokenizer()
    (tmp_path / "shards").mkdir()
    write_shard(
        tmp_path / "shards" / "000000", [[*tokenizer.encode(b"ACGNA").tolist(), 0], [*tokenizer.encode(b"T").tolist(), 0]]
    )
    shards = open_shards(FileStore().expand([str(tmp_path / "shards")], "*.json"), FileStore())
    counts = count_ids(shards, tokenizer)
    assert {chr(byte): int(counts[byte]) for byte in counts.nonzero()[0].tolist()} == {"A": 2, "C": 1, "G": 1, "N": 1, "T": 1}
