"""Lanes share files of any kind and size: each document is read once in an epoch, by one lane, and resumed anywhere."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

import pytest
from cistron.datasets.files import DataFile, FileStore
from cistron.datasets.lanes import LanePieces, RawDocuments, blocks, stripes
from cistron.datasets.lanes.blocks import Address, AddressedBlock
from cistron.datasets.readers import Piece, PieceLine, Reader, build_reader, pieces
from cistron.datasets.rows import Packer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import write_bytes, write_parquet

STORAGE = FileStore()
SEQ_LEN = 32
KINDS = [*product(["jsonl", "csv", "tsv", "fasta", "text"], ["", ".gz", ".zst", ".bgz"]), ("parquet", "")]
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
        elif format == "csv":
            content = "id,text\n" + "".join(f'{place},"{document}"\n' for place, document in enumerate(documents))
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
    for case in range(6):
        folder = tmp_path / str(case)
        folder.mkdir()
        made = drawn(draw)
        files = write(folder, format, suffix, made)
        reader = replace(build_reader(format, "text", STORAGE), group_bytes=draw.choice([64, 2**20]))
        lanes, target = draw.choice([1, 2, 3, 5, 16]), draw.choice([1, 100, 1000, 10**6])
        expected = Counter("".join(file) for file in made if file) if format == "text" else Counter(chain(*made))
        corpus = shared(reader, files, lanes, target, case)
        orders = []
        for epoch in range(2):
            read = [documents(corpus, lane, epoch) for lane in range(lanes)]
            assert Counter(document.decode() for lane in read for document in lane) == expected, (case, lanes, target)
            orders.append(read)
        if min(len(corpus.line.pieces), len(expected)) > 8:
            assert orders[0] != orders[1], "each epoch has an order of its own"


@pytest.mark.parametrize(("format", "suffix"), KINDS)
def test_a_lane_goes_on_at_any_block_of_a_shared_file(format: str, suffix: str, tmp_path: Path) -> None:
    draw = random.Random(f"{format}{suffix}")
    files = write(tmp_path, format, suffix, [[f"d{number}" + "acgt" * (number % 23) for number in range(90)], ["x" * 300]])
    reader = replace(build_reader(format, "text", STORAGE), unit=96 if format == "text" else None)
    corpus = shared(reader, files, 3, 400)
    for lane in range(3):
        straight = list(lane_of(corpus, lane).blocks(1, BEGIN))
        for place in draw.sample(range(len(straight) - 1), min(len(straight) - 1, 4)):
            address = straight[place].next
            assert address is not None
            again = list(lane_of(shared(reader, files, 3, 400), lane).blocks(1, address))
            assert [(tokens(built), built.next) for built in again] == [
                (tokens(built), built.next) for built in straight[place + 1 :]
            ]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bgz"])
@pytest.mark.parametrize("size", [95, 96, 97, 192, 193, 1000, 5000])
def test_each_token_of_a_long_text_is_a_target_once(suffix: str, size: int, tmp_path: Path) -> None:
    draw = random.Random(size)
    text = bytes(draw.randrange(2, 256) for _ in range(size))
    path = tmp_path / f"a.txt{suffix}"
    write_bytes(path, text)
    reader = replace(build_reader("text", "text", STORAGE), unit=96, group_bytes=50)
    for lanes in (1, 3, 16):
        corpus = shared(reader, STORAGE.expand([str(path)]), lanes, 10)
        of_lanes = [list(lane_of(corpus, lane).blocks(0, BEGIN)) for lane in range(lanes)]
        met, ended, owners = [0] * (size + 1), 0, set()
        for lane, built in ((lane, built) for lane, of_lane in enumerate(of_lanes) for built in of_lane):
            block, ids = built.block, built.block.arrays[0]
            ended += built.counts.documents
            for start, length, goes_on in zip(block.starts.tolist(), block.lengths.tolist(), block.open.tolist(), strict=True):
                assert not goes_on or length % SEQ_LEN == 0, "a part of a document that goes on is whole rows"
                at = (text + b"\0").index(bytes(ids[start : start + length].tolist()))
                assert bytes(ids[start : start + length + goes_on].tolist()) == (text + b"\0")[at : at + length + goes_on]
                for target in range(at + 1, at + length + goes_on):
                    met[target] += 1
                owners.add(lane)
        assert met == [0] + [1] * size
        assert ended == 1, "a document is counted where it ends"
        assert len(owners) == min(lanes, -(-size // 96)) or lanes > size // 96


@pytest.mark.parametrize(("format", "suffix"), [("jsonl", ".gz"), ("fasta", ".zst"), ("tsv", ".gz"), ("parquet", "")])
@pytest.mark.parametrize("limit", [2**27, 500, 0])
def test_lanes_that_read_in_turn_inflate_a_file_once(
    format: str, suffix: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stripes, "HELD_BYTES", limit)
    made = [f"d{number}" + "acgt" * (number % 23) for number in range(400)]
    files = write(tmp_path, format, suffix, [made])
    reader, opened = build_reader(format, "text", STORAGE), 0
    cut = type(reader).stripes

    def counted(self: Reader, piece: Piece, size: int) -> Iterator[Piece]:
        nonlocal opened
        opened += 1
        yield from cut(self, piece, size)

    monkeypatch.setattr(type(reader), "stripes", counted)
    corpus = shared(reader, files, 4, 10**6)
    lanes = [lane_of(corpus, lane).blocks(0, BEGIN) for lane in range(4)]
    found: list[list[int]] = [[] for _ in lanes]
    going = list(range(4))
    while going:
        for lane in list(going):
            built = next(lanes[lane], None)
            if built is None:
                going.remove(lane)
            else:
                found[lane] += tokens(built)
    read = [bytes(lane).split(b"\0")[:-1] for lane in found]
    assert Counter(document.decode() for lane in read for document in lane) == Counter(made)
    if limit > 10**6:
        assert opened == 1
        sizes = [sum(map(len, lane)) for lane in read]
        assert max(sizes) < 1.5 * min(sizes), "lanes have equal shares"
    assert opened <= 5, "at most once more for each lane"


def test_a_file_of_one_document_is_read_by_one_lane(tmp_path: Path) -> None:
    for format in ("jsonl", "tsv", "fasta", "text", "parquet"):
        folder = tmp_path / format
        folder.mkdir()
        files = write(folder, format, "", [["acgt" * 100]])
        corpus = shared(build_reader(format, "text", STORAGE), files, 16, 64)
        assert sorted(len(documents(corpus, lane, 0)) for lane in range(16)) == [0] * 15 + [1]


def test_lanes_have_equal_shares_of_files_of_any_size(tmp_path: Path) -> None:
    draw = random.Random(7)
    made = [[f"d{file}.{number}.{draw.getrandbits(320):080x}" for number in range(120 if file else 1200)] for file in range(16)]
    for format, suffix in (("jsonl", ".gz"), ("jsonl", ""), ("parquet", "")):
        folder = tmp_path / f"{format}{suffix}"
        folder.mkdir()
        files = write(folder, format, suffix, made)
        corpus = shared(build_reader(format, "text", STORAGE), files, 16, draw.choice([500, 10**6]))
        for epoch in range(2):
            sizes = [len(documents(corpus, lane, epoch)) for lane in range(16)]
            assert sum(sizes) == 3000
            assert max(sizes) <= 1.4 * 3000 / 16, (format, suffix, sizes)
