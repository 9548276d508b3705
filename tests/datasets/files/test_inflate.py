"""Whole members and frames are read one after another; what is cut, or followed by something else, is refused."""

import bz2
import gzip
import lzma
from pathlib import Path

import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.files.storage import zstd
from cistron.datasets.readers import Piece, build_reader
from cistron.tests.helpers.corpora import bgzip_block

HEAD, TAIL = b"ACGT" * 70_000, b"protein\n" * 9
SKIPPABLE = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"notes"
FORMATS = {".gz": gzip.compress, ".zst": zstd.compress, ".xz": lzma.compress, ".bz2": bz2.compress}


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


def test_padding_of_gzip_and_xz_and_skippable_frames_of_zstd_hold_nothing(tmp_path: Path) -> None:
    gz, zst = tmp_path / "x.gz", tmp_path / "x.zst"
    assert read(gz, gzip.compress(HEAD) + b"\0" * 700 + gzip.compress(TAIL) + b"\0" * 9) == HEAD + TAIL
    xz = tmp_path / "x.xz"
    assert read(xz, lzma.compress(HEAD) + b"\0" * 2**17 + lzma.compress(TAIL) + b"\0" * 8) == HEAD + TAIL
    with pytest.raises(DataError, match="9 zeros follow a member, where multiples of 4 may"):
        read(xz, lzma.compress(HEAD) + b"\0" * 9)
    with pytest.raises(DataError, match="truncated or damaged"):
        read(tmp_path / "x.bz2", bz2.compress(HEAD) + b"\0" * 8)
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


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2"])  # .zst has a checksum only where it is asked for
def test_every_bit_counts(suffix: str, tmp_path: Path) -> None:
    whole = FORMATS[suffix](TAIL)
    for at in range(0, len(whole), 7):
        data = whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :]
        try:
            found = read(tmp_path / f"x{suffix}", data)
        except DataError:
            continue
        assert found == TAIL, "a bit that holds nothing, such as the time of gzip"


def test_a_large_dictionary_of_xz_is_read_of_a_large_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.xz"
    for size, fits in ((2**27, True), (2**27 + 2**26, False)):
        data = lzma.compress(TAIL, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": size}])
        if fits:
            assert read(path, data) == TAIL
            continue
        with pytest.raises(DataError, match=r"xz dictionary is larger than 128 MiB, .* at most --lzma2=dict=128MiB"):
            read(path, data)
        path.write_bytes(data)
        with path.open("r+b") as file:
            file.truncate(2**24)  # 16 times as much is allowed; the zeros are padding
        with FileStore().open(str(path)) as file_read:
            assert file_read.read(99) == TAIL


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.gz", bz2.compress(TAIL), "its name says gzip, and its first bytes are of bzip2: the name must end in .bz2"),
        ("x.bz2", b"BZ is how this begins", "it does not begin as bzip2 does; if it is not compressed, take"),
        ("x.xz", b"PK\x03\x04rest", "it does not begin as xz does, but as a zip archive"),
        ("x.zst", lzma.compress(TAIL), "its name says zstd, and its first bytes are of xz: the name must end in .xz"),
    ],
)
def test_a_name_that_belies_the_content_is_told_what_it_holds(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{name}: the compressed data is truncated or damaged: {message}"):
        read(tmp_path / name, data)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_member_without_a_byte_is_one_like_others(suffix: str, tmp_path: Path) -> None:
    empty = FORMATS[suffix](b"")
    assert read(tmp_path / f"x{suffix}", empty) == b""
    assert read(tmp_path / f"y{suffix}", empty + FORMATS[suffix](TAIL)) == TAIL


@pytest.mark.parametrize("name", ["x.tar.gz", "x.TGZ", "x.tar", "x.tar.xz"])
def test_an_archive_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(DataError, match="this is an archive of files by its name; unpack it"):
        FileStore().expand([str(tmp_path / name)])
