"""The other strand of letters, of ids and of documents that are drawn at random."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from cistron.datasets.config import DataConfig
from cistron.datasets.documents import Letters, Strands
from cistron.datasets.errors import DataError
from cistron.datasets.lanes import LaneState, blocks
from cistron.datasets.lanes.blocks import Address
from cistron.datasets.loading import RowSettings, Source
from cistron.datasets.loading.sources import open_source
from cistron.datasets.nucleotides import reverse_complement
from cistron.datasets.readers import SourceConfig
from cistron.datasets.rows import PackedRow, Packer
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import write_fasta
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


SEQUENCES = ["".join(np.random.default_rng(number).choice(list("ACGTacgtN"), 3 + number * 7 % 200)) for number in range(120)]
TURNING = DataConfig(reverse_complement=0.5)


def source(path: str, lanes: int, config: DataConfig = TURNING) -> Source:
    rows = RowSettings(seq_len=64, seed=0, batch_size=1)
    return open_source(SourceConfig(name="g", format="fasta", paths=[path]), lanes, rows, config)


def read(path: str, lanes: int, epoch: int = 0) -> list[str]:
    """The documents of an epoch, of all lanes."""
    found = []
    packer = Packer(64, 0, 1, "best_fit")
    for lane in range(lanes):
        documents = source(path, lanes).documents(lane, ByteTokenizer(), packer, (0, 0))
        for built in documents.blocks(epoch, Address(0, -1, 1, 0)):
            found += bytes(built.block.arrays[0]).decode().split("\0")[:-1]
    return found


def test_strands_are_a_function_of_file_record_and_epoch_alone(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "genome.fasta", SEQUENCES)
    one, four, second = read(path, 1), read(path, 4), read(path, 1, epoch=1)
    assert sorted(one) == sorted(four)
    other = [reverse_complement(text.encode()).decode() for text in SEQUENCES]
    chosen = [text not in one for text in SEQUENCES]
    assert sorted(one) == sorted(flip if out else text for text, flip, out in zip(SEQUENCES, other, chosen, strict=True))
    again = [text not in second for text in SEQUENCES]
    assert 40 < sum(chosen) < 80
    assert 40 < sum(a != b for a, b in zip(chosen, again, strict=True)) < 80, "each epoch draws anew"


def test_the_share_of_chosen_documents_is_that_of_the_config() -> None:
    for share in (0.1, 0.5, 1.0):
        strands = Strands(share, 3, ByteTokenizer())
        for numbers in (np.arange(100_000), np.arange(0, 10**8, 1000)):
            chosen = strands.chosen("genome.fasta", numbers, 2)
            assert abs(chosen.mean() - share) < 0.006, "four standard deviations"
            assert np.array_equal(strands.chosen("genome.fasta", numbers[::7], 2), chosen[::7])


@pytest.mark.parametrize("long", ["split", "window", "truncate"])
def test_a_lane_of_both_strands_resumes_to_the_bit(tmp_path: Path, long: str) -> None:
    path = write_fasta(tmp_path / "genome.fasta", [*SEQUENCES[:60], "ACGTTn" * 200])
    overlap = 9 if long == "window" else 0
    letters = Letters(lowercase_weight=0.5)
    config = DataConfig(**letters.model_dump(), reverse_complement=0.5, long_documents=long, window_overlap=overlap)
    packer = Packer(64, 0, 1, "best_fit", overlap=overlap)

    def rows(state: LaneState) -> Iterator[tuple[PackedRow, LaneState]]:
        return ((row.packed, row.state) for row in source(path, 1, config).rows(0, ByteTokenizer(), packer, (0, 0), state))

    with patch.object(blocks, "block_tokens", lambda seq_len: 5 * seq_len):
        straight = list(islice(rows(LaneState()), 90))
        for stop in range(0, 80, 3):
            resumed = islice(rows(straight[stop][1]), 6)
            for (row, state), (again, again_state) in zip(straight[stop + 1 :], resumed, strict=False):
                assert state == again_state
                assert row.following == again.following
                assert np.array_equal(np.concatenate(row.parts), np.concatenate(again.parts))
                assert row.weights is not None
                assert np.array_equal(row.weights, np.asarray(again.weights))
                ids = np.concatenate([*row.parts, np.array([row.following or 0], dtype=np.uint8)])[: len(row.weights)]
                assert set(row.weights[ids >= ord("a")]) <= {0.0, 0.5}, "weights stand with their letters"
                assert overlap or (row.weights[(ids < ord("a"))] == 1.0).all()


def test_a_letter_without_complement_is_a_bad_record(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "genome.fasta", ["ACGT", "ACGUUA"])
    config = DataConfig(reverse_complement=1.0)
    packer = Packer(64, 0, 1, "best_fit")
    with pytest.raises(DataError, match=r"genome\.fasta, record r1, byte 36: 'U' is no IUPAC code of DNA"):
        next(source(path, 1, config).documents(0, ByteTokenizer(), packer, (0, 0)).blocks(0, Address(0, -1, 1, 0)))
    skipping = source(path, 1, config.replace(on_bad_record="skip")).documents(0, ByteTokenizer(), packer, (0, 0))
    (built,) = skipping.blocks(0, Address(0, -1, 1, 0))
    assert (built.counts.documents, built.counts.skipped) == (1, 1)


def test_ids_of_the_dna_tokenizer_are_complemented_as_letters_are() -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="dna"))
    text = b"ACGTNRYSWKMBDHV-"
    strands = Strands(1.0, 0, tokenizer)
    document = tokenizer.encode_batch([text]).ids
    assert tokenizer.decode(strands.reverse_complement(document)[:-1].tolist()).encode() == reverse_complement(text)
    for start, stop in ((0, 5), (3, 17), (16, 17), (4, 16)):
        assert np.array_equal(
            strands.reverse_complement(document, start, stop), strands.reverse_complement(document)[start:stop]
        )
