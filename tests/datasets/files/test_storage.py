"""Patterns become sorted files; a file that is not as it was is named; what cannot be read is refused at the door."""

import json
import os
import time
from pathlib import Path

import fsspec
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import DataFile, FileStore, changes, fingerprint, last_name, saved_order, whole
from cistron.tests.helpers.corpora import write_bytes, write_text
from fsspec.registry import known_implementations

expand = FileStore().expand


def test_patterns_are_sorted_without_duplicates(tmp_path: Path) -> None:
    pattern = write_text(tmp_path / "deep" / "deeper", ["x", "y", "z"])
    found = expand([pattern, str(tmp_path / "**" / "*.txt"), str(tmp_path / "deep/deeper/0001.txt")])
    assert [Path(file.path).name for file in found] == ["0000.txt", "0001.txt", "0002.txt"]


def test_a_name_with_glob_characters_is_taken_literally_where_it_exists(tmp_path: Path) -> None:
    for folder in ("data[1]", "data1", "data2"):
        write_text(tmp_path / folder, ["x"])
    found = {name: [file.path for file in expand([str(tmp_path / name / "0000.txt")])] for name in ("data[1]", "data[2]")}
    assert found == {"data[1]": [str(tmp_path / "data[1]/0000.txt")], "data[2]": [str(tmp_path / "data2/0000.txt")]}


def test_stdlib_stands_for_pythons_own_sources() -> None:
    assert json.__file__ in [file.path for file in expand(["{stdlib}/json/*.py"])]


def test_a_folder_can_stand_for_its_files(tmp_path: Path) -> None:
    pattern = write_text(tmp_path, ["x", "y"])
    write_bytes(tmp_path / "other", b"x")
    assert expand([str(tmp_path)], "*.txt") == expand([str(tmp_path) + "/"], "*.txt") == expand([pattern])
    with pytest.raises(DataError, match=r"this folder holds no \*\.json"):
        expand([str(tmp_path)], "*.json")


def test_files_of_a_store_are_listed_as_local_ones_are() -> None:
    store = fsspec.filesystem("memory")
    for name in "ba":
        store.pipe(f"/listed/{name}.txt", name.encode())
    files = expand(["memory://listed/*.txt"])
    assert [file.path for file in files] == ["memory:///listed/a.txt", "memory:///listed/b.txt"]
    assert [file.size for file in files] == [1, 1]
    store.pipe("/listed/a.txt", b"c")
    assert [old == new for old, new in zip(files, expand(["memory://listed/*.txt"]), strict=True)] == [False, True]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("absent.txt", "no such file"), ("*.none", "matches no file"), ("empty.txt", "empty"), ("", "folder")],
)
def test_a_path_that_names_no_data_is_refused(pattern: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=message) as caught:
        expand([str(tmp_path / pattern)])
    assert str(tmp_path / pattern) in str(caught.value)


@pytest.mark.parametrize("name", ["a.lzma", "a.Z", "a.zip", "a.lz4", "a.7z", "a.br"])
def test_compression_that_is_not_undone_is_refused(name: str, tmp_path: Path) -> None:
    path = write_bytes(tmp_path / name, b"(")
    for pattern in (path, str(tmp_path / "*")):
        with pytest.raises(DataError, match=r"\.gz, \.bgz, \.zst, \.xz and \.bz2 are read") as caught:
            expand([pattern])
        assert caught.value.file == path


def test_a_url_without_a_driver_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"^nosuch://a/b: Protocol not known: nosuch"):
        expand(["nosuch://a/b"])
    monkeypatch.setitem(known_implementations, "absent", {"class": "absent_driver.X", "err": "install absent_driver"})
    with pytest.raises(DataError, match=r"^absent://a/b: the fsspec driver .* is not installed: install absent_driver"):
        expand(["absent://a/b"])


def test_links_to_files_are_files_and_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "links").mkdir()
    for name in "abc":
        (tmp_path / "real" / name).write_text("document " + name)
        (tmp_path / "links" / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "links" / "d").write_text("a file")
    files = expand([f"{tmp_path}/links/*"])
    assert [Path(file.path).name for file in files] == ["a", "b", "c", "d"]
    assert [file.size for file in files] == [10, 10, 10, 6]
    (tmp_path / "links" / "e").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match="leads nowhere"):
        expand([f"{tmp_path}/links/*"])


def test_each_file_that_is_not_as_it_was_is_named(tmp_path: Path) -> None:
    pattern = write_text(tmp_path, ["x" * 200_000, "y" * 200_000, "z", "old"])
    before = expand([pattern])
    assert changes(before, before) == []
    names = [tmp_path / f"000{number}.txt" for number in range(5)]
    names[0].write_text("x" * 20_000 + "!" + "x" * 179_999)
    os.utime(names[1], ns=(0, 0))
    names[2].write_text("longer")
    names[3].unlink()
    names[4].write_text("new")
    lines = changes(json.loads(json.dumps(before)), expand([pattern]))
    expected = [(2, "changed its size from 1 to 6 bytes"), (3, "is gone"), (4, "is new"), (0, "was changed: its checksum was")]
    for line, (number, what) in zip(lines, expected, strict=True):
        assert line.startswith(f"{names[number]} {what}")
    assert fingerprint(expand([pattern])) != fingerprint(before) == fingerprint(list(before))


def test_files_are_known_again_under_another_folder_time_and_order(tmp_path: Path) -> None:
    for folder in ("first", "then"):
        write_text(tmp_path / folder, [folder, "the same in both"])
    before = expand([str(tmp_path / "then" / "*"), str(tmp_path / "first" / "*")])
    listing = json.loads(json.dumps(before))
    (tmp_path / "first").rename(tmp_path / "x")
    (tmp_path / "then").rename(tmp_path / "a")
    now = expand([str(tmp_path / "*" / "*")])
    assert [file.path for file in now] == sorted(file.path for file in now), "which is another order"
    assert changes(listing, now) == ["its files are the same, and come in another order"]
    again = [now[place] for place in saved_order(listing, now)]
    assert fingerprint(again) == fingerprint(before)
    assert [Path(file.path).read_text() for file in again] == ["first", "the same in both", "then", "the same in both"]
    assert changes(listing, again) == []
    renamed = [again[0]._replace(path=str(tmp_path / "x" / "other.txt")), *again[1:]]
    assert changes(listing, renamed) == [f"{tmp_path}/first/0000.txt is gone", f"{tmp_path}/x/other.txt is new"]
    assert expand([f"file://{again[0].path}"])[0].stamp == again[0].stamp
    assert last_name("https://host/a/x.fa?signature=1/2") == "x.fa"


def test_a_stamp_is_of_all_bytes_of_a_small_corpus_and_of_eight_blocks_of_a_file_of_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    unseen, seen = (16_384, 150_000), (0, 16_383, 30_000, 199_999)
    for limit, count in ((2**30, 7), (199_999, 5)):
        monkeypatch.setattr("cistron.datasets.files.inventory.WHOLE_BYTES", limit)
        stamps = set()
        for at in (None, *unseen, *seen):
            data = bytearray(200_000)
            if at is not None:
                data[at] = 1
            path.write_bytes(data)
            stamps.add(expand([str(path)])[0].stamp)
        assert len(stamps) == count


def test_of_many_changes_five_are_named(tmp_path: Path) -> None:
    files = expand([write_text(tmp_path, "abcdefgh")])
    lines = changes([], files)
    assert len(lines) == 6
    assert lines[-1] == "and 3 more"


def test_the_time_of_comparing_grows_with_the_files_not_with_their_pairs() -> None:
    count = 200_000
    before = [DataFile(f"/a/{number}.txt", 1, "old") for number in range(count)]
    now = [DataFile(f"/b/{number}.txt", 1, "new") for number in range(count)]
    for place in (0, -1):
        now[place] = now[place]._replace(path=f"/b/other{place}.txt")
    began = time.process_time()
    lines = changes(before, now)
    assert time.process_time() - began < 10
    lines, more = lines[:4], lines[4:]
    assert lines == ["/a/0.txt is gone", f"/a/{count - 1}.txt is gone", "/b/other0.txt is new", "/b/other-1.txt is new"]
    assert more == ["/b/1.txt was changed: its checksum was 'old' and is 'new'", f"and {count - 3} more"]


def test_a_file_that_is_written_in_parts_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    for text in ("old", "new"):
        with whole(path) as partial:
            partial.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    with pytest.raises(FileNotFoundError), whole(path) as partial:
        partial.write_text("half") and (tmp_path / "none").read_text()
    assert [file.read_text() for file in tmp_path.iterdir()] == ["new"]
