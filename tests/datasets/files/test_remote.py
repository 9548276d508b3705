"""Remote files are read through failures, kept in a cache of limited size, and given up with one message."""

import gzip
import importlib
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import fsspec
import pytest
from cistron.datasets.errors import DataError
from cistron.datasets.files import FileStore, FileStoreConfig, remote
from cistron.datasets.readers import build_reader
from cistron.tests.helpers.corpora import compress, write_parquet

HASTY = FileStore(FileStoreConfig(retries=3), delay=0.01, timeout=10.0)
LINES = [b'{"text": "%d"}\n' % number for number in range(3000)]
NUMBERS = [b"%d" % number for number in range(3000)]


class Server(ThreadingHTTPServer):
    """Serves `files`; answers wrongly as often as told.

    Attributes:
        files: Path without query -> contents.
        faults: What goes wrong with the next requests for data: "refuse", "cut" or "hang".
        ranges: Whether parts of a file can be asked for.
        versions: Whether it tells the version of a file.
        requests: For data, that were answered.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.ranges = self.versions = True
        self.flapping, self.changed = False, ""  # another tag in each answer; time of last change
        self.requests = self.answers = 0
        self.over = threading.Event()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD and GET, the latter with ranges."""

    server: Server

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: requests are no part of the output of tests."""

    def _data(self) -> bytes | None:
        return self.server.files.get(unquote(self.path.split("?")[0].lstrip("/")))

    def do_HEAD(self) -> None:
        data = self._data()
        self.send_response(200 if data is not None else 404)
        self.send_header("Content-Length", str(len(data or b"")))
        if self.server.versions:
            self.server.answers += 1
            self.send_header("ETag", str(self.server.answers if self.server.flapping else hash(data)))
            if self.server.changed:
                self.send_header("Last-Modified", self.server.changed)
        self.end_headers()

    def do_GET(self) -> None:
        data = self._data()
        if data is None:
            self.send_error(404)
            return
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if fault == "refuse":
            self.send_error(503)
            return
        if fault == "hang":
            self.server.over.wait()
            return
        wanted = self.headers.get("Range") if self.server.ranges else None
        self.server.requests += 1
        if wanted is None:
            self.send_response(200)
        else:
            start, _, end = wanted.removeprefix("bytes=").partition("-")
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {wanted.removeprefix('bytes=')}/{len(data)}")
            data = data[int(start) : int(end) + 1]
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)


@pytest.fixture
def server() -> Iterator[Server]:
    """A server on this machine."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def _read(storage: FileStore, pattern: str, format: str = "jsonl", target: int = 2**30) -> list[bytes]:
    reader = build_reader(format, "text", storage)
    parts = [piece for file in storage.expand([pattern]) for piece in reader.split(file, target)]
    groups = (group for piece in parts for group in reader.groups(piece, piece.start, True))
    return [document for group in groups for document in group.documents]


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".bgz"])
def test_a_file_on_any_store_is_read(suffix: str) -> None:
    fsspec.filesystem("memory").pipe(f"/read/x.jsonl{suffix}", compress(suffix, b"".join(LINES)))
    for target in (1000, 2**30):
        assert _read(HASTY, f"memory://read/*.jsonl{suffix}", target=target) == NUMBERS


def test_a_remote_parquet_is_read_and_split(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [f"{number}" for number in range(100)], rows=10)
    fsspec.filesystem("memory").pipe("/read/x.parquet", Path(path).read_bytes())
    for target in (100, 2**30):
        assert _read(HASTY, "memory://read/x.parquet", "parquet", target) == NUMBERS[:100]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bgz"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_url_with_a_query_is_read_through_failures(
    suffix: str, ranges: bool, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "READ_AHEAD_BYTES", 5000)
    server.files[f"a b/x.jsonl{suffix}"] = compress(suffix, b"".join(LINES))
    server.ranges = ranges
    url = server.url(f"a b/x.jsonl{suffix}?key=1&other=a*b")
    for faults in ([], ["refuse"], ["cut", "refuse"], ["", "cut", "", "refuse", "cut"]):
        server.faults = list(faults)
        assert _read(HASTY, url) == NUMBERS


def test_a_hanging_server_is_asked_again(server: Server) -> None:
    server.files["x.jsonl"] = b"".join(LINES)
    server.faults = ["hang", "hang"]
    assert _read(FileStore(FileStoreConfig(retries=3), delay=0.01, timeout=0.2), server.url("x.jsonl")) == NUMBERS


@pytest.mark.parametrize(
    ("fault", "message"),
    [("refuse", "after 3 tries: .*503"), ("cut", "after 3 tries"), ("hang", "after 3 tries: .*no answer within 0.2 s")],
)
def test_a_server_that_goes_on_failing_is_given_up(fault: str, message: str, server: Server) -> None:
    server.files["x.jsonl"] = b"".join(LINES)
    storage = FileStore(FileStoreConfig(retries=2), delay=0.01, timeout=0.2)
    [file] = storage.expand([server.url("x.jsonl")])
    [piece] = build_reader("jsonl", "text", storage).split(file, 2**30)
    server.faults = [fault] * 99
    with pytest.raises(DataError, match=message) as caught:
        list(build_reader("jsonl", "text", storage).groups(piece, 0, True))
    assert caught.value.file == server.url("x.jsonl")


def test_what_is_not_there_is_refused_at_once_and_a_server_that_is_not_there_after_tries(server: Server) -> None:
    patient = FileStore(FileStoreConfig(retries=3), delay=1000.0, timeout=10.0)
    with pytest.raises(DataError, match="there is no such file"):
        patient.expand([server.url("absent.jsonl")])
    with pytest.raises(DataError, match=r"cannot be read, after 2 tries: .*Cannot connect"):
        FileStore(FileStoreConfig(retries=1), delay=0.01).expand(["http://127.0.0.1:1/x.jsonl"])


def test_a_stamp_changes_with_the_version_that_the_server_tells(server: Server) -> None:
    stamps = []
    for data in (b"a", b"b", b"a"):
        server.files["x.txt"] = data
        stamps += [file.stamp for file in HASTY.expand([server.url("x.txt")])]
    assert stamps[0] == stamps[2] != stamps[1]


def test_a_cached_file_is_fetched_once_and_again_when_it_changed(server: Server, tmp_path: Path) -> None:
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path / "cache"), retries=0))
    server.files["x.jsonl.gz"] = gzip.compress(b"".join(LINES))
    url = server.url("x.jsonl.gz?key=1")
    for _ in range(3):
        assert _read(storage, url) == NUMBERS
    assert server.requests == 1
    assert Path(storage.local(url)).read_bytes() == server.files["x.jsonl.gz"]
    server.files["x.jsonl.gz"] = gzip.compress(LINES[0])
    assert _read(storage, url) == NUMBERS[:1]


def test_a_copy_that_was_written_to_is_fetched_again(server: Server, tmp_path: Path) -> None:
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), retries=0))
    server.files["x.txt"] = b"right" * 100
    copy = Path(storage.local(server.url("x.txt")))
    assert copy.stat().st_mode & 0o777 == 0o600, "its user's alone"
    os.utime(copy)  # another time, the same content
    older = tmp_path / f"{copy.name.split('-')[0]}-x.txt"  # as an older version names its copies
    older.write_bytes(b"older")
    assert storage.local(server.url("x.txt")) == str(copy)
    assert server.requests == 1
    copy.write_bytes(b"wrong" * 100)
    assert Path(storage.local(server.url("x.txt"))).read_bytes() == server.files["x.txt"]
    assert server.requests == 2
    assert sorted(tmp_path.iterdir()) == sorted([copy, older])


def test_a_changed_file_of_the_same_size_is_noticed_where_the_server_tells_no_version(server: Server, tmp_path: Path) -> None:
    server.versions = False
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), retries=0))
    for data in (b"a" * 200_000, b"a" * 199_999 + b"b", b"c" * 200_000):
        server.files["x.txt"] = data
        assert [file.stamp for file in storage.expand([server.url("x.txt")])] == [""]
        assert Path(storage.local(server.url("x.txt"))).read_bytes() == data
        assert len(list(tmp_path.iterdir())) == 1


def test_a_tag_that_changes_with_each_answer_is_not_taken_for_a_change_where_time_and_ends_tell(
    server: Server, tmp_path: Path
) -> None:
    server.flapping, server.changed = True, "Mon, 01 Jan 2024 00:00:00 GMT"
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), retries=0))
    for data, when in ((b"a" * 300_000, "00"), (b"a" * 299_999 + b"b", "00"), (b"a" * 150_000 + b"c" * 150_000, "59")):
        server.files["x.txt"], server.changed = data, f"Mon, 01 Jan 2024 00:00:{when} GMT"
        copies = {storage.local(server.url("x.txt")) for _ in range(3)}
        assert [Path(copy).read_bytes() for copy in copies] == [data]
    server.changed = ""
    with pytest.raises(DataError, match="it changed while it was copied"):
        storage.local(server.url("x.txt"))


def test_a_copy_looks_used_to_what_clears_a_scratch_disk(server: Server, tmp_path: Path) -> None:
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), retries=0))
    server.files["x.txt"] = b"right" * 100
    copy = Path(storage.local(server.url("x.txt")))
    before = copy.stat().st_mtime
    assert 0 <= time.time() - before < 2 * 86_400
    os.utime(copy, (before - 30 * 2**17, before - 30 * 2**17))  # used last some 45 days ago
    assert storage.local(server.url("x.txt")) == str(copy)
    assert copy.stat().st_mtime == pytest.approx(before, abs=2**17)
    assert server.requests == 1


def test_a_file_that_changes_while_it_is_copied_is_not_kept(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["x.txt"] = b"before"
    listing = [FileStore.expand(HASTY, [server.url("x.txt")])]
    server.files["x.txt"] = b"behind"
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), retries=0))
    expand = FileStore.expand
    monkeypatch.setattr(FileStore, "expand", lambda self, *names: listing.pop() if listing else expand(self, *names))
    with pytest.raises(DataError, match="it changed while it was copied"):
        storage.local(server.url("x.txt"))
    assert not list(tmp_path.iterdir())


def test_a_renewed_signature_finds_the_copy_and_the_folder_holds_no_secret(server: Server, tmp_path: Path) -> None:
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), retries=0))
    server.files["x.txt"] = b"text"
    assert len({storage.local(server.url(f"x.txt?sig=5ecret{day}")) for day in range(3)}) == 1
    assert server.requests == 1
    assert not [path for path in tmp_path.iterdir() if "5ecret" in path.name]


def test_two_urls_that_differ_only_in_a_secret_are_refused(server: Server, tmp_path: Path) -> None:
    server.files["x.txt"] = b"text"
    urls = [server.url(f"x.txt?key=part-{number}") for number in range(2)]
    with pytest.raises(DataError, match="two URLs differ only in what is withheld") as caught:
        FileStore(FileStoreConfig(retries=0)).expand(urls)
    assert caught.value.file == server.url("x.txt?key=***")


def test_the_copy_used_longest_ago_goes_first(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    for name in "abcd":
        store.pipe(f"/lru/{name}", name.encode() * 400)
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), cache_gb=1200e-9))
    copies = {}
    for age, name in enumerate("abc"):
        copies[name] = Path(storage.local(f"memory://lru/{name}"))
        os.utime(copies[name], (age, age))
    assert storage.local("memory://lru/a") == str(copies["a"])  # used again, so b is the oldest
    copies["d"] = Path(storage.local("memory://lru/d"))
    assert [copies[name].exists() for name in "abcd"] == [True, False, True, True]
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1200


def test_a_file_beyond_the_cache_is_read_where_it_is_but_not_given_a_local_path(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe("/big/x.jsonl", b"".join(LINES))
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), cache_gb=1e-6))
    assert _read(storage, "memory://big/x.jsonl") == NUMBERS
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"does not fit into data\.cache_gb"):
        storage.local("memory://big/x.jsonl")
    with pytest.raises(DataError, match=r"no data\.cache_dir"):
        HASTY.local("memory://big/x.jsonl")
    assert HASTY.local(str(tmp_path)) == HASTY.local(f"file://{tmp_path}") == str(tmp_path)


def test_a_failed_copy_leaves_nothing_behind_and_dead_ones_are_removed(server: Server, tmp_path: Path) -> None:
    storage = FileStore(FileStoreConfig(cache_dir=str(tmp_path), retries=1), delay=0.01)
    server.files["x.txt"] = b"x" * 1000
    server.faults = ["refuse"] * 9
    with pytest.raises(DataError, match="after 2 tries"):
        storage.local(server.url("x.txt"))
    assert not list(tmp_path.iterdir())
    for name, age in (("dead.part", 7200), ("alive.part", 60)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    server.faults = []
    storage.local(server.url("x.txt"))
    assert sorted(path.name[-5:] for path in tmp_path.iterdir()) == [".part", "x.txt"]


def _fetch_all(folder: str, urls: list[str]) -> bool:
    storage = FileStore(FileStoreConfig(cache_dir=folder, cache_gb=250e-6, retries=0))
    return all(len(_read(storage, url, "text")[0]) == 100_000 for url in urls * 5)


def test_processes_share_a_cache_that_is_too_small_for_all(server: Server, tmp_path: Path) -> None:
    urls = []
    for number in range(4):
        server.files[f"{number}.txt"] = b"%d" % number * 100_000
        urls.append(server.url(f"{number}.txt"))
    # under the name by which every process can import it: pytest's own may be another
    fetch_all = importlib.import_module("cistron.tests.datasets.files.test_remote")._fetch_all
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        assert pool.starmap(fetch_all, [(str(tmp_path), urls), (str(tmp_path), urls[::-1])]) == [True, True]
    assert len(list(tmp_path.iterdir())) <= 3
