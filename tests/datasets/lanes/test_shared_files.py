"""Lanes share files of any kind and size: each document is read once in an epoch, by one lane, and resumed anywhere."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import pytest
from cistron.datasets.files import DataFile, FileStore
from cistron.datasets.lanes import RawDocuments, blocks
from cistron.datasets.lanes.blocks import Address, AddressedBlock
from cistron.datasets.readers import LanePieces, PieceLine, Reader, build_reader, pieces
from cistron.datasets.rows import Packer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import write_bytes, write_parquet

STORAGE = FileStore()
SEQ_LEN = 32
KINDS = [*product(["jsonl", "tsv", "fasta", "text"], ["", ".gz", ".zst", ".bgz"]), ("parquet", "")]
BEGIN = Address(0, -1, 1, 0)


def write(folder: Path, format: str, suffix: str, files: Sequence[Sequence[str]]) -> list[DataFile]:
    """Write documents as files of a format; of text, a file is a document."""
    names = {"fasta": "fa"}
    for number, documents in enumerate(files):
        path = folder / f"{number:03}.{names.get(format, format)}{suffix}"
        if format == "parquet":
            write_parquet(path, list(documents), rows=max(len(documents) // 3, 1))
            continue
        if format == "text":
            content = "".join(documents)
        elif format == "jsonl":
            content = "".join(f'{{"text": "{document}"}}\n' for document in documents)
        elif format == "tsv":
            content = "id\ttext\n" + "".join(f"{place}\t{document}\n" for place, document in enumerate(documents))
        else:
            content = "".join(f">r{place}\n{document}\n" for place, document in enumerate(documents))
        write_bytes(path, content.encode())
    return STORAGE.expand([f"{folder}/*"])


def shared(reader: Reader, files: Sequence[DataFile], lanes: int, target: int, seed: int = 0) -> LanePieces:
    """Cut files into pieces of about `target` bytes for some lanes."""
    parts = [piece for file in files for piece in reader.split(file, target)]
    return LanePieces(PieceLine(parts, [reader.divided(part) for part in parts], lanes, (seed, 0)), reader)


def lane_of(files: LanePieces, lane: int) -> RawDocuments:
    return RawDocuments(files, lane, ByteTokenizer(), Packer(SEQ_LEN, 0, 1, "best_fit"), 0, False)


def tokens(built: AddressedBlock) -> list[int]:
    """Return the tokens of a block, in order."""
    block = built.block
    segments = zip(block.starts.tolist(), block.lengths.tolist(), strict=True)
    return [token for start, length in segments for token in block.arrays[0][start : start + length].tolist()]


def documents(files: LanePieces, lane: int, epoch: int) -> list[bytes]:
    """Return the documents of a lane in an epoch."""
    whole = bytes(chain.from_iterable(map(tokens, lane_of(files, lane).blocks(epoch, BEGIN))))
    assert not whole or whole.endswith(b"\0")
    return whole.split(b"\0")[:-1]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make everything small that is cut: blocks of two rows, stripes of some bytes, windows of fewer."""
    monkeypatch.setattr(blocks, "block_tokens", lambda seq_len: 2 * seq_len)
    monkeypatch.setattr(pieces, "MIN_STRIPE_BYTES", 64)
    monkeypatch.setattr("cistron.datasets.readers.records.TAIL_BYTES", 8)
    monkeypatch.setattr("cistron.datasets.readers.records.SEARCH_BYTES", 16)
    monkeypatch.setattr("cistron.datasets.readers.parquet.BATCH_ROWS", 2)


def drawn(draw: random.Random) -> list[list[str]]:
    """Draw a few files of a few documents, each another one, some of them long."""
    count = draw.choice([1, 1, 2, 5, 17])
    sizes = [draw.choice([0, 1, 3, 40, 200]) for _ in range(count)]
    sizes[0] = max(sizes[0], 1)
    number = iter(range(10**6))
    return [[f"d{next(number)}" + "acgt" * draw.choice([0, 0, 1, 5, 60]) for _ in range(size)] for size in sizes]


@pytest.mark.parametrize(("format", "suffix"), KINDS)
def test_each_document_is_read_once_in_an_epoch_whatever_the_lanes(format: str, suffix: str, tmp_path: Path) -> None:
    draw = random.Random(f"{format}{suffix}")
    for case in range(12):
        folder = tmp_path / str(case)
        folder.mkdir()
        made = drawn(draw)
        files = write(folder, format, suffix, made)
        unit = 96 if format == "text" and case % 2 else None
        reader = replace(build_reader(format, "text", STORAGE), group_bytes=draw.choice([64, 2**20]), unit=unit)
        lanes, target = draw.choice([1, 2, 3, 5, 16]), draw.choice([1, 100, 1000, 10**6])
        expected = Counter("".join(file) for file in made if file) if format == "text" else Counter(chain(*made))
        corpus = shared(reader, files, lanes, target, case)
        orders = []
        for epoch in range(2):
            read = [documents(corpus, lane, epoch) for lane in range(lanes)] if unit is None else []
            if unit is None:
                assert Counter(document.decode() for lane in read for document in lane) == expected, (case, lanes, target)
            orders.append(read)
        if lanes > 1 and unit is None and len(corpus.line.pieces) > 4:
            assert orders[0] != orders[1]
