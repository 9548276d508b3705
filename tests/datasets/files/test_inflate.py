"""Whole members and frames are read one after another; what is cut, or followed by something else, is refused."""

import gzip
from pathlib import Path

import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.files.storage import zstd
from cistron.datasets.readers import Piece, build_reader
from cistron.tests.helpers.corpora import bgzip_block

HEAD, TAIL = b"ACGT" * 70_000, b"protein\n" * 9
SKIPPABLE = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"notes"
FORMATS = {".gz": gzip.compress, ".zst": zstd.compress}


def read(path: Path, data: bytes, seek: int = 0, size: int = 1000) -> bytes:
    path.write_bytes(data)
    with FileStore().open(str(path)) as file:
        if seek:
            assert file.seek(seek) == seek
        parts = []
        while part := file.read(size):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("suffix", FORMATS)
def test_members_are_read_one_after_another_from_any_byte_on(suffix: str, tmp_path: Path) -> None:
    compress = FORMATS[suffix]
    data = compress(HEAD) + compress(b"") + compress(TAIL)
    for seek in (0, 1, len(HEAD) - 1, len(HEAD), len(HEAD + TAIL)):
        for size in (999, 2**20):
            assert read(tmp_path / f"x{suffix}", data, seek, size) == (HEAD + TAIL)[seek:]


def test_going_back_inflates_anew(tmp_path: Path) -> None:
    for suffix, compress in FORMATS.items():
        path = tmp_path / f"x{suffix}"
        path.write_bytes(compress(HEAD) + compress(TAIL))
        with FileStore().open(str(path)) as file:
            assert file.read(len(HEAD) + 3) == HEAD + TAIL[:3]
            assert file.seek(7) == 7
            assert file.read(10**6) == (HEAD + TAIL)[7:]


def test_padding_of_gzip_and_skippable_frames_of_zstd_hold_nothing(tmp_path: Path) -> None:
    gz, zst = tmp_path / "x.gz", tmp_path / "x.zst"
    assert read(gz, gzip.compress(HEAD) + b"\0" * 700 + gzip.compress(TAIL) + b"\0" * 9) == HEAD + TAIL
    assert read(zst, SKIPPABLE + zstd.compress(HEAD) + SKIPPABLE + zstd.compress(TAIL) + SKIPPABLE) == HEAD + TAIL


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_cut_or_followed_by_garbage_is_refused_by_file(suffix: str, tmp_path: Path) -> None:
    path, whole = tmp_path / f"x{suffix}", FORMATS[suffix](HEAD)
    for data, reason in ((whole[:-3], "ends within a"), (whole + b"garbage", "")):
        with pytest.raises(DataError, match=rf"x{suffix}: the compressed data is truncated or damaged: .*{reason}"):
            read(path, data)


@pytest.mark.parametrize("suffix", [*FORMATS, ".bgz"])
def test_there_is_no_byte_behind_the_end(suffix: str, tmp_path: Path) -> None:
    path, size = tmp_path / f"x.jsonl{suffix}", len(TAIL)
    path.write_bytes(FORMATS[suffix](TAIL) if suffix in FORMATS else bgzip_block(TAIL) + bgzip_block(b""))
    with pytest.raises(DataError, match=f"the file has {size} bytes uncompressed, and byte {size + 1} was asked for") as caught:
        next(build_reader("jsonl", "text", FileStore()).groups(Piece(str(path), 0, None, 1), size + 1, True))
    assert str(caught.value).startswith(f"{path}: the compressed data is truncated or damaged: ")
