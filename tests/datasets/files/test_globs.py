"""Globs find what a shell finds, and all of it: behind links, each file once, hidden names left out unless named."""

import os
import random
import subprocess
import time
from pathlib import Path

import fsspec
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore
from cistron.datasets.readers import SequenceFiles, SourceConfig, in_folder
from cistron.tests.helpers.corpora import config, take


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(root: Path, *patterns: str, format: str | None = None) -> list[str]:
    rule = () if format is None else in_folder(format)
    files = FileStore().expand([str(root / pattern) for pattern in patterns], *rule)
    return [os.path.relpath(file.path, root) for file in files]


def test_a_link_to_a_folder_is_followed_at_any_place(tmp_path: Path) -> None:
    make(tmp_path, "store/2023/a.tsv", "store/2024/deep/b.tsv", "data/own.tsv")
    (tmp_path / "data" / "old").symlink_to(tmp_path / "store" / "2023")
    (tmp_path / "data" / "all").symlink_to("../store")
    assert found(tmp_path, "data/old/*.tsv") == found(tmp_path, "data/ol?/*.tsv") == ["data/old/a.tsv"]
    assert found(tmp_path, "data/**/*.tsv") == ["data/all/2023/a.tsv", "data/all/2024/deep/b.tsv", "data/own.tsv"]
    assert found(tmp_path, "*/*/*.tsv") == ["data/old/a.tsv"], "the same file under two names is read once"


def test_links_in_circles_end(tmp_path: Path) -> None:
    make(tmp_path, "a/x.txt", "b/c/y.txt")
    (tmp_path / "b" / "c" / "up").symlink_to("../..")
    (tmp_path / "a" / "self").symlink_to(".")
    for number in range(9):  # 9! ways through them
        for other in range(9):
            make(tmp_path, f"n/{number}/z.txt")
            (tmp_path / "n" / str(number) / f"to{other}").symlink_to(f"../{other}")
    began = time.process_time()
    assert found(tmp_path, "**/*.txt") == ["a/x.txt", "b/c/y.txt", *(f"n/{number}/z.txt" for number in range(9))]
    assert found(tmp_path, "b/**/x.txt") == ["b/c/up/a/x.txt"]
    (tmp_path / "a" / "loop").symlink_to("loop")
    with pytest.raises(DataError, match="a/loop: cannot be read: Too many levels of symbolic links"):
        found(tmp_path, "a/*")
    assert found(tmp_path, "a/*.txt") == ["a/x.txt"]
    assert time.process_time() - began < 5


def test_two_links_to_a_folder_and_a_link_to_a_file_double_nothing(tmp_path: Path) -> None:
    make(tmp_path, "real/a.txt", "real/b.txt", "one/c.txt")
    for name in ("one/l", "one/m"):
        (tmp_path / name).symlink_to(tmp_path / "real")
    (tmp_path / "one" / "0-newest.txt").symlink_to("c.txt")
    names = [os.path.basename(name) for name in found(tmp_path, "one/**/*")]  # noqa: PTH119
    assert names == ["c.txt", "a.txt", "b.txt"], "and the name of the file is kept, not that of the link"
    assert found(tmp_path, "one/l/*", "real/*", "one/m/a.txt") == ["one/l/a.txt", "one/l/b.txt"]


def test_hidden_files_and_folders_are_left_out_unless_named(tmp_path: Path) -> None:
    make(tmp_path, "a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", "d/b.jsonl", "d/.git/c.jsonl")
    assert found(tmp_path, "*.jsonl") == ["a.jsonl"]
    assert found(tmp_path, "**/*") == found(tmp_path, "**") == ["a.jsonl", "d/b.jsonl"]
    assert found(tmp_path, "[.ab]*.jsonl") == ["a.jsonl"]
    assert found(tmp_path, ".*.jsonl", "d/.git/*", "**/.ipynb_checkpoints/*.jsonl") == [
        "._a.jsonl",
        ".ipynb_checkpoints/a-checkpoint.jsonl",
        "d/.git/c.jsonl",
    ]
    assert found(tmp_path, ".ipynb_checkpoints", format="jsonl") == [".ipynb_checkpoints/a-checkpoint.jsonl"]
    with pytest.raises(DataError, match="matches no file"):
        found(tmp_path, ".ipynb*/.*")


def test_a_store_has_hidden_names_too() -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.txt", ".x.txt", ".cache/b.txt", "deep/.y/c.txt", "deep/d.txt"):
        store.pipe(f"/hides/{name}", name.encode())
    expand = FileStore().expand
    assert [file.path for file in expand(["memory://hides/**/*.txt"])] == [
        "memory:///hides/a.txt",
        "memory:///hides/deep/d.txt",
    ]
    assert [file.path for file in expand(["memory://hides/.cache/*"])] == ["memory:///hides/.cache/b.txt"]
    assert [file.path for file in expand(["memory://hides"], *in_folder("text"))] == [
        "memory:///hides/a.txt",
        "memory:///hides/deep/d.txt",
    ]


@pytest.mark.parametrize(
    "name",
    ["a::b.txt", "~x.txt", "~", "x*y.txt", "[z].txt", "{stdlib}.txt", "d::e/~f.txt", "s3:x.txt", "d/**/f.txt", "a b?.txt"],
)
def test_a_file_that_is_there_by_its_name_is_read(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    (file,) = FileStore().expand([name])
    assert file.path == str(tmp_path / name)
    with FileStore().open(file.path) as opened:
        assert opened.read(99) == name.encode()
    assert [one.data.decode() for one in SequenceFiles([name], format="text")] == [name]
    assert FileStore().expand([f"file://{tmp_path}/{name}"]) == [file]


def test_a_tilde_of_no_user_is_a_letter_of_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "~$a.txt", "home/b.txt", "c[1]/~d.txt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert [file.path for file in FileStore().expand(["~$*.txt"])] == [str(tmp_path / "~$a.txt")]
    assert [file.path for file in FileStore().expand(["~/*.txt"])] == [str(tmp_path / "home/b.txt")]
    monkeypatch.chdir(tmp_path / "c[1]")
    assert [file.path for file in FileStore().expand(["~d.*"])] == [str(tmp_path / "c[1]/~d.txt")]
    for pattern in ("~none*.txt", "~none/x.txt"):
        with pytest.raises(DataError, match=f"^{pattern.replace('*', '[*]')}: there is no such user"):
            FileStore().expand([pattern])


def test_a_folder_stands_for_the_files_below_with_an_ending_of_the_format(tmp_path: Path) -> None:
    make(tmp_path, "c/a.fa", "c/deep/b.FASTA.gz", "c/deep/notes.md", "c/d.jsonl", "c.jsonl/e.json", "empty/x.md")
    assert found(tmp_path, "c", format="fasta") == ["c/a.fa", "c/deep/b.FASTA.gz"]
    assert found(tmp_path, "c/", "c.jsonl", format="jsonl") == ["c.jsonl/e.json", "c/d.jsonl"]
    for format, name in (("fasta", r"\*\.fasta, \*\.fa"), ("text", r"\*\.txt")):
        with pytest.raises(DataError, match=rf"empty: this folder holds no {name}.*; name its files with a pattern"):
            found(tmp_path, "empty", format=format)
    with pytest.raises(DataError, match="this pattern matches folders only; name their files"):
        found(tmp_path, "c*/dee*")


def test_what_cannot_be_listed_or_leads_nowhere_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "broken").symlink_to("nowhere")
    with pytest.raises(DataError, match="broken: this link leads nowhere"):
        found(tmp_path, "broken")
    with pytest.raises(DataError, match="is no name of a file"):
        FileStore().expand(["a\0b"])
    listed = os.scandir

    def refused(path: str) -> object:
        if path.endswith("/b"):  # as the kernel says it: this may run as root
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(DataError, match="b: this folder cannot be listed: Permission denied"):
        found(tmp_path, "**/*.txt")


def test_a_drawn_tree_of_folders_and_links_is_found_as_the_shell_finds_it(tmp_path: Path) -> None:
    draw = random.Random(17)
    folders = [tmp_path]
    for number in range(60):
        folder = draw.choice(folders)
        name = draw.choice(["a", "ab", "b-", ".h", "[c]", "d.txt"]) + str(number)
        match draw.randrange(4):
            case 0:
                (folder / name).mkdir()
                folders.append(folder / name)
            case 1:
                (folder / name).symlink_to(draw.choice(folders))
            case _:
                (folder / name).write_text(name)
    for pattern in ("*", "*/*", "a*/*", "*/[ab]*/*", ".*/*", "*/?[!b]*", "*[c]*/*"):
        shell = f'for f in {pattern}; do [ -f "$f" ] && realpath "$f"; done; true'
        said = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True)
        try:
            ours = {os.path.realpath(tmp_path / name) for name in found(tmp_path, pattern)}
        except DataError:
            ours = set()
        assert ours == set(said.stdout.split())
    walked = ((Path(at).relative_to(tmp_path).parts, at, files) for at, _, files in os.walk(tmp_path))
    shown = {
        os.path.realpath(Path(at, name))
        for parts, at, files in walked
        for name in files
        if not any(part.startswith(".") for part in (*parts, name))
    }
    assert shown <= {os.path.realpath(tmp_path / name) for name in found(tmp_path, "**/*")}


def test_training_and_validation_find_the_same_files(tmp_path: Path) -> None:
    make(tmp_path, "real/a.txt", "real/b.txt", "data/c.txt", "data/.d.txt")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "real")
    settings = config(SourceConfig(name="main", format="text", paths=[str(tmp_path / "data")]), lanes=1, batch_size=1)
    with settings.loader() as loader:
        take(loader, 1)
        files = [os.path.basename(file.path) for file in loader.sources[0].files]  # noqa: PTH119
    assert files == ["c.txt", "a.txt", "b.txt"]
    assert [os.path.basename(file.path) for file in settings.single_pass().sources[0].files] == files  # noqa: PTH119
