"""The rows of a run are a function of config and files: not of ranks, workers, prefetching, or when it was resumed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from cistron.datasets.config import DataConfig
from cistron.datasets.errors import DataConfigError, DataError, DataOrderError
from cistron.datasets.lanes import LaneRow, LaneState
from cistron.datasets.loading import DataState, merge_states, transport
from cistron.datasets.loading.transport import LaneKey, RowStream
from cistron.datasets.readers import SourceConfig
from cistron.datasets.rows import row_violations
from cistron.tests.helpers.corpora import (
    Settings,
    Sleepy,
    TakingTurns,
    byte_loader,
    config,
    loaders,
    numbered_rows,
    take,
    take_on_ranks,
    text_source,
    words,
    write_bytes,
    write_fasta,
    write_jsonl,
    write_text,
)
from pydantic import ValidationError

# torchdata 0.11 on torch 2.13
pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Three formats in unequal shares, in rows that most documents overflow."""
    folder = tmp_path_factory.mktemp("mixed")
    return config(
        text_source(write_text(folder / "text", words(30)), "text", weight=2.0),
        SourceConfig(name="lines", format="jsonl", paths=[write_jsonl(folder / "x.jsonl", words(70, 1), "body")], field="body"),
        SourceConfig(name="genes", format="fasta", paths=[write_fasta(folder / "x.fa", ["ACGT" * n for n in range(1, 60)])]),
        lanes=8,
        seq_len=48,
    )


@pytest.fixture(scope="module")
def straight(mixed: Settings) -> dict[int, tuple[bytes, ...]]:
    """The rows of one rank without workers, never resumed."""
    return numbered_rows(take_on_ranks(mixed.but(batch_size=10), 1, 44)[0])


# Ranks, workers, rows per batch of a rank, batches: rows done are a multiple of the next leg's ranks, but not of its
# ranks x workers.
TOPOLOGIES = [
    *[(1, 0, 4, 1), (2, 1, 3, 2), (4, 2, 3, 5), (4, 0, 1, 2), (1, 2, 6, 2)],
    *[(2, 2, 6, 1), (1, 1, 12, 4), (4, 1, 5, 3), (2, 0, 8, 6)],
]


@pytest.mark.parametrize(
    ("legs", "processes"),
    [(TOPOLOGIES, False), (TOPOLOGIES[::-1], False), ([(1, 0, 6, 1), (2, 1, 6, 2), (1, 2, 9, 3)], True)],
    ids=["in-turns", "in-turns-reversed", "in-processes"],
)
def test_rows_are_the_same_on_any_ranks_and_workers_across_resumes(
    legs: list[tuple[int, int, int, int]],
    processes: bool,
    mixed: Settings,
    straight: dict[int, tuple[bytes, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not processes:
        monkeypatch.setattr(transport, "StatefulDataLoader", TakingTurns)
    state = None
    rows: dict[int, tuple[bytes, ...]] = {}
    for ranks, workers, size, batches in legs:
        taken, state = take_on_ranks(mixed.but(num_workers=workers, batch_size=size), ranks, batches, state)
        rows |= numbered_rows(taken)
    assert sorted(rows) == list(range(sum(ranks * size * batches for ranks, _, size, batches in legs)))
    assert rows == {number: straight[number] for number in rows}


def test_rows_do_not_depend_on_the_batch_size(mixed: Settings, straight: dict[int, tuple[bytes, ...]]) -> None:
    with byte_loader(mixed, batch_size=5) as loader:
        rows = numbered_rows(take(loader, 20))
    assert rows == {number: straight[number] for number in range(100)}


def test_each_batch_carries_the_state_after_itself(mixed: Settings, straight: dict[int, tuple[bytes, ...]]) -> None:
    with byte_loader(mixed, batch_size=7) as loader:
        batches = take(loader, 9)
        frozen = [str(batch.state) for batch in batches]
        take(loader, 3)
        assert [str(batch.state) for batch in batches] == frozen, "a state is a value, not a view"
    for batch in batches:
        with byte_loader(mixed, batch_size=6, state=batch.state) as loader:
            rows = numbered_rows(take(loader, 2))
        first = batch.rows[-1] + 1
        assert rows == {number: straight[number] for number in range(first, first + 12)}


def test_batches_are_typed_whole_and_mixed_by_weight(mixed: Settings) -> None:
    with byte_loader(mixed, batch_size=16) as loader:
        batches = take(loader, 6)
    sources = [source for batch in batches for source in batch.sources]
    assert [round(sources.count(source) / 96, 2) for source in range(3)] == [0.5, 0.25, 0.25]
    for batch in batches:
        planes = (batch.tokens, batch.labels, batch.positions, batch.sequence_ids)
        assert [str(plane.dtype) for plane in planes] == ["torch.int64"] * 2 + ["torch.int32"] * 2
        assert all(plane.shape == (16, 48) and plane.is_contiguous() for plane in planes)
        held = batch.with_documents()
        planes = (held.tokens, held.labels, held.positions, held.sequence_ids)
        assert row_violations(*(plane.numpy() for plane in planes), eos_id=0) == []


def test_a_state_is_small_plain_json(mixed: Settings) -> None:
    with byte_loader(mixed) as loader:
        take(loader, 30)
        state = loader.state()
    text = json.dumps(state.model_dump(mode="json"))
    assert DataState.read(json.loads(text)) == state
    assert len(text) < 4096 * mixed.data.lanes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, "rows: Field required"),
        ({"rows": "7"}, "rows: Input should be a valid integer"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"version": 3}, "version: Input should be 4"),
        ({"lanes": {"genes/0": [0, 0, 0, "x"]}}, "lanes.genes/0.3: Input should be a valid integer"),
        ({"counts": None, "begin": 1.5}, "begin: .*; counts: Field required"),
    ],
)
def test_a_state_with_a_missing_unknown_or_mistyped_key_is_refused_by_the_key(
    mixed: Settings, change: dict[str, Any], message: str
) -> None:
    saved = mixed.loader().state().model_dump(mode="json") | change
    saved = {key: value for key, value in saved.items() if value is not None or key not in change}
    with pytest.raises(DataOrderError, match=f"data state cannot be read by this program: {message}"):
        DataState.read(saved)


def test_lanes_saved_before_the_last_counters_were_added_are_read(mixed: Settings) -> None:
    saved = mixed.loader().state().model_dump(mode="json") | {"lanes": {"genes/0": [3, 1, 0, 17, 1, 0, 2, 9]}}
    lane = DataState.read(saved).lanes["genes/0"]
    assert (lane.epoch, lane.row, lane.documents, lane.truncated, lane.context) == (3, 2, 9, 0, 0)


def test_an_epoch_of_all_lanes_reads_every_document(tmp_path: Path) -> None:
    documents = words(40)
    data = config(text_source(write_text(tmp_path, documents)), seq_len=300, packing="best_fit")
    found: list[bytes] = []
    with byte_loader(data, batch_size=1) as loader:
        while {lane.epoch for lane in loader.state().lanes.values()} != {1}:
            before = loader.state().lanes
            (batch,) = take(loader, 1)
            if before.get(f"main/{batch.rows[0] % 4}", LaneState()).epoch == 0:
                found += batch.tokens[batch.sequence_ids >= 0].numpy().astype("uint8").tobytes().split(b"\0")[:-1]
    assert sorted(found) == sorted(document.encode() for document in documents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"data\.seed: checkpoint 0, now 1"),
        ({"seq_len": 64}, r"data\.seq_len: checkpoint 32, now 64"),
        ({"lanes": 8}, r"data\.lanes: checkpoint 4, now 8"),
        ({"packing": "concat"}, r"data\.packing: checkpoint 'best_fit', now 'concat'"),
    ],
)
def test_a_state_of_another_config_is_refused(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    source = text_source(write_text(tmp_path, words(20)))
    state = byte_loader(config(source)).state()
    with pytest.raises(DataConfigError, match=message):
        byte_loader(config(source, **changes), state=state)


def test_a_state_of_other_files_or_weights_is_refused(tmp_path: Path) -> None:
    pattern = write_text(tmp_path, words(20))
    state = byte_loader(config(text_source(pattern))).state()
    with pytest.raises(DataConfigError, match=r"data\.stages\.0\.main: checkpoint 1\.0, now 2\.0"):
        byte_loader(config(text_source(pattern, weight=2.0)), state=state)
    (tmp_path / "new.txt").write_text("new")
    with pytest.raises(DataConfigError, match=r"data\.sources\.main\.files: checkpoint '[0-9a-f]+', now '[0-9a-f]+'"):
        byte_loader(config(text_source(pattern)), state=state)


def test_states_of_ranks_at_different_rows_do_not_merge(mixed: Settings) -> None:
    with loaders(mixed, 2) as (first, second):
        with ThreadPoolExecutor(1) as thread:
            thread.submit(take, second, 2)
            take(first, 1)
        with pytest.raises(AssertionError, match="different rows"):
            merge_states([first.state(), second.state()])


@pytest.mark.parametrize(
    ("changes", "degree", "message"),
    [
        ({"lanes": 6, "num_workers": 2}, 2, r"data\.lanes: 6 .* 2 x 2 = 4; raise it to 8"),
        ({"sources": []}, 1, r"data\.sources: name at least one"),
    ],
)
def test_a_config_that_cannot_be_met_is_refused(changes: dict[str, Any], degree: int, message: str, tmp_path: Path) -> None:
    data = config(text_source(write_text(tmp_path, words(20))))
    with pytest.raises(DataConfigError, match=message):
        byte_loader(data.but(**changes), dp_degree=degree)


@pytest.mark.parametrize(
    ("source", "message"), [(text_source("x", weight=0.0), r"data\.sources\.weight: all are 0, .*; give one more than 0")]
)
def test_a_bad_source_is_refused(source: SourceConfig, message: str) -> None:
    with pytest.raises(DataConfigError, match=message):
        byte_loader(config(source))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lanes": 0}, "lanes\n.*greater than 0"),
        ({"packing": "random"}, "packing\n.*'best_fit' or 'concat'"),
        ({"layout": "sparse"}, "layout\n.*'packed' or 'padded'"),
        ({"on_bad_record": "ignore"}, "on_bad_record\n.*'error' or 'skip'"),
    ],
)
def test_what_no_table_of_data_may_hold_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": -1.0}, "weight\n.*greater than or equal to 0"),
        ({"format": "jsonn"}, r"format\n.*no such format, did you mean 'jsonl'\?"),
        ({"paths": []}, "paths\n.*at least 1 item"),
    ],
)
def test_what_no_source_may_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SourceConfig(**{"name": "x", "format": "text", "paths": ["x"]} | wrong)


def test_two_sources_of_one_name_are_refused(tmp_path: Path) -> None:
    source = text_source(write_text(tmp_path, words(9)))
    with pytest.raises(DataConfigError, match=r"data\.sources: names must differ, found \['main', 'main'\]"):
        byte_loader(config(source, source))


def test_a_source_of_empty_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataConfigError, match="no file of source 'main' has a byte"):
        byte_loader(config(text_source(write_text(tmp_path, ["", ""]))))


def test_every_file_with_a_byte_is_dealt_to_a_lane(tmp_path: Path) -> None:
    (source,) = byte_loader(config(text_source(write_text(tmp_path, ["abc", "", *"defgh"])), lanes=4)).sources
    assert sorted(file.size for file in source.files) == [0, 1, 1, 1, 1, 1, 3]
    assert source.pieces is not None
    assigned = [[piece.path for _, piece in source.pieces.of_lane(lane, 0)] for lane in range(4)]
    assert sorted(path for lane in assigned for path in lane) == sorted(file.path for file in source.files if file.size)
    assert max(map(len, assigned)) <= 2


def test_documents_without_tokens_are_counted_over_lanes_and_ranks(tmp_path: Path) -> None:
    # Per 10 lines 3 empty ones; every lane holds some, and a batch of a new epoch counts all of the last.
    lines = [("" if number % 10 < 3 else "abc") for number in range(400)]
    path = write_jsonl(tmp_path / "x.jsonl", lines)
    data = config(SourceConfig(name="s", format="jsonl", paths=[path]), seq_len=16)
    _, state = take_on_ranks(data.but(batch_size=2), 2, 24)
    assert {lane.epoch for lane in state.lanes.values()} == {1}
    assert state.total("dropped") == 120


NUL_IN_FORMATS = {
    "text": (b"abc\0d", None, 3),
    "jsonl": (b'{"text": "fine"}\n{"text": "a\\u0000"}\n', 2, 17),
    "fasta": (b">one\nAC\n>two x\nACGT\nA\0\n", "two", 21),
}


@pytest.mark.parametrize("format", NUL_IN_FORMATS)
def test_a_nul_byte_never_becomes_a_boundary(format: str, tmp_path: Path) -> None:
    data, record, offset = NUL_IN_FORMATS[format]
    path = write_bytes(tmp_path / "x", data)
    with byte_loader(config(SourceConfig(name="s", format=format, paths=[path]), lanes=1)) as loader:
        with pytest.raises(DataError, match="NUL") as caught:
            loader.next()
        assert (caught.value.file, caught.value.record, caught.value.offset) == (path, record, offset)
        with pytest.raises(DataError, match="NUL"):
            loader.next()


def test_an_error_in_a_worker_names_file_record_and_offset(tmp_path: Path) -> None:
    good = '{"text": "fine"}\n'
    path = write_bytes(tmp_path / "x.jsonl", (good * 50 + "{nonsense\n").encode())
    data = config(SourceConfig(name="s", format="jsonl", paths=[path]), num_workers=1)
    with byte_loader(data) as loader, pytest.raises(DataError, match="not valid JSON") as caught:
        take(loader, 50)
    assert (caught.value.file, caught.value.record, caught.value.offset) == (path, 51, 50 * len(good))


def test_waiting_for_a_batch_can_be_interrupted(mixed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def stall(self: RowStream, key: LaneKey) -> Iterator[LaneRow]:
        released.wait()
        return iter(())

    monkeypatch.setattr(RowStream, "lane", stall)
    polls = iter([False, True])
    with byte_loader(mixed) as loader:
        assert loader.next(interrupted=lambda: next(polls)) is None
        released.set()


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_a_worker_that_hangs_is_ended_when_the_loader_closes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cistron.datasets.loading.loader.CLOSE_SECONDS", 0.5)
    data = config(text_source(write_text(tmp_path, words(20))), num_workers=2)
    hanging = tmp_path / "hanging"
    hanging.mkdir()
    with data.loader(Sleepy(hanging)) as loader:
        assert loader.next(interrupted=lambda: len(list(hanging.iterdir())) == 2) is None
    assert _gone([int(file.name) for file in hanging.iterdir()], 10)


SCRIPT = """
import sys
from cistron.datasets.errors import WorkerError
from cistron.datasets.config import DataConfig
from cistron.datasets.loading import Loader, RowSettings
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers.bytes import ByteTokenizer

source = SourceConfig(name="code", format="text", paths=["{stdlib}/*.py"])
config = DataConfig(sources=[source], lanes=2, num_workers=2)
loader = Loader(config, ByteTokenizer(), RowSettings(seq_len=64, seed=0, batch_size=4))
loader.next()
print("ready", flush=True)
sys.stdin.readline()
try:
    while True:
        loader.next()
except WorkerError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with a batch, which waits for a line before the next; its two workers do not run its script again."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, str(script)], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def _workers(parent: int, what: bytes = b"spawn_main") -> list[int]:
    """Process ids of a process's workers, or of another kind of its children."""
    children = [int(pid) for path in Path(f"/proc/{parent}/task").glob("*/children") for pid in path.read_text().split()]
    return sorted(pid for pid in children if what in _cmdline(pid))


def _gone(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(_cmdline(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def _cmdline(pid: int) -> bytes:
    """The command line of a process, empty once it is dead even where nobody has reaped it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_workers_die_with_a_killed_parent(process: subprocess.Popen[str]) -> None:
    workers = _workers(process.pid)
    assert len(workers) == 2
    process.kill()
    assert _gone(workers, 20)


def test_a_worker_that_still_imports_has_signals_blocked_and_the_parent_gets_its_own_later() -> None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with transport._no_signals():
        source = "import signal; print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))))"
        said = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    assert set(transport.STOPS) <= set(json.loads(said))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == blocked


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc")
def test_workers_leave_signals_to_their_parent_and_a_killed_one_is_told(process: subprocess.Popen[str]) -> None:
    first, second = _workers(process.pid)
    (tracker,) = _workers(process.pid, b"resource_tracker")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        for child in (first, second, tracker):
            os.kill(child, number)
    assert not _gone([first], 0.5)
    assert not _gone([second], 0.1)
    assert not _gone([tracker], 0.1)
    os.kill(first, signal.SIGKILL)
    _, errors = process.communicate("go on\n", timeout=60)
    assert process.returncode == 1
    assert re.search(r"worker .*exited unexpectedly", errors)
    assert _gone([second], 10)
