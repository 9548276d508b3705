"""Sinks that fail: alone, counted, opened anew, and never the end of a run."""

import errno
import os
import shutil
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cistron.tests.helpers.jobs import metrics, train_here, write_job
from cistron.trainer.config import JobConfig
from cistron.trainer.metrics import MetricsRecord, Sink, guarded, records
from cistron.trainer.metrics.guarded import GuardedSink
from cistron.trainer.metrics.sinks import ConsoleLines, JsonLines, TensorBoard


class Place(Sink):
    """Remembers what happens to it, and fails at chosen moments: steps, `open`, `close`."""

    failing: ClassVar[set[int | str]] = set()
    told: ClassVar[list[Any]] = []

    def __init__(self, folder: Path, config: JobConfig, start_step: int) -> None:
        self.told.append(f"open after {start_step}")
        self.fail("open")

    def fail(self, moment: int | str) -> None:
        if moment in self.failing:
            raise RuntimeError(f"no service at {moment}")

    def write(self, record: MetricsRecord) -> None:
        self.fail(record.step)
        self.told.append(record.step)

    def close(self) -> None:
        self.told.append("close")
        self.fail("close")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands."""
    now = [0.0]
    monkeypatch.setattr(guarded.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    monkeypatch.setattr(Place, "failing", set())
    monkeypatch.setattr(Place, "told", [])
    return now


def place() -> GuardedSink:
    return GuardedSink(lambda step: Place(Path(), None, step), 0)  # type: ignore[arg-type]


def give(sink: GuardedSink, *steps: int) -> None:
    for step in steps:
        sink.write(MetricsRecord("metrics", {"step": step}, f"step {step}"))


def test_one_failure_costs_one_record(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    Place.failing = {3}
    give(sink := place(), 1, 2, 3, 4)
    sink.close()
    assert Place.told == ["open after 0", 1, 2, 4, "close"]
    assert capsys.readouterr().err.splitlines() == [
        "warning: step 3 is not in Place: no service at 3",
        "warning: Place is written again from step 4 on; 1 record(s) before it are lost",
        "warning: Place lacks 1 record(s) of steps 3 to 3",
    ]


def test_two_in_a_row_open_it_anew_and_later_tries_wait_longer(clock: list[float]) -> None:
    Place.failing = {*range(3, 30), "close"}
    give(sink := place(), *range(1, 6))
    assert Place.told == ["open after 0", 1, 2, "close", "open after 4"], "at once"
    Place.failing.add("open")
    opened = []
    for second in range(1, 200):
        clock[0] = second
        before = len(Place.told)
        give(sink, 6)
        opened += [second] * (len(Place.told) > before)
    assert opened[:4] == [1, 3, 7, 15]
    assert max(b - a for a, b in pairwise(opened)) == 60
    assert sink.sink is None
    Place.failing = set()
    clock[0] = 300
    give(sink, 30)
    assert Place.told[-2:] == ["open after 6", 30]
    assert (sink.lost, sink.first, sink.last) == (202, 3, 6)
    sink.close()


def test_a_slow_service_takes_no_more_than_a_twentieth_of_the_time(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    sink = place()
    Place.failing.update(range(1, 100), {"open"})
    opened = Place.__init__

    def slowly(self: Place, *args: Any) -> None:
        clock[0] += 90.0
        opened(self, *args)

    monkeypatch.setattr(Place, "__init__", slowly)
    give(sink, 1, 2, 3)
    assert clock[0] == 90.0
    clock[0] += 20 * 90.0 - 1
    give(sink, 4)
    assert clock[0] == 90.0 * 21 - 1
    clock[0] += 1
    give(sink, 5)
    assert clock[0] == 90.0 * 22


def test_warnings_become_rare(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    Place.failing = set(range(1, 1001))
    give(place(), *range(1, 1001))
    assert len(capsys.readouterr().err.splitlines()) == 10


def test_closing_never_raises(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    Place.failing = {"close"}
    place().close()
    assert "Place could not be closed, and may lack its last records: no service at close" in capsys.readouterr().err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of the job whose sinks fail below."""
    config = write_job(tmp_path_factory.mktemp("undisturbed"), steps=12)
    train_here(config)
    return metrics(config)


FAILING = {"jsonl": JsonLines, "tensorboard": TensorBoard, "console": ConsoleLines}


def points(folder: Path) -> list[int]:
    """Steps that TensorBoard has of the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [point.step for point in events.Scalars("loss")]


@pytest.mark.parametrize("name", FAILING)
def test_a_disk_that_is_full_for_a_while_costs_that_sink_those_records(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    undisturbed: list[dict[str, Any]],
    name: str,
) -> None:
    """Steps 5 to 9 of 12: as a disk fails that is full, with half of a write done."""
    sink, now = FAILING[name], [0]
    write = sink.write

    def at(self: Sink, record: MetricsRecord) -> None:
        now[0] = record.step
        write(self, record)  # type: ignore[arg-type]

    monkeypatch.setattr(sink, "write", at)
    append = records.append

    def full(file: Path, data: bytes) -> None:
        ours = (name == "jsonl" and file.name == "metrics.jsonl") or (name == "tensorboard" and "tfevents" in file.name)
        if ours and 5 <= now[0] <= 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        append(file, data)

    monkeypatch.setattr(records, "append", full)
    monkeypatch.setattr("cistron.trainer.metrics.sinks.append", full)
    if name == "console":
        say = ConsoleLines.say

        def no_reader(self: ConsoleLines, message: str) -> None:
            if 5 <= now[0] <= 9:
                raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
            say(self, message)

        monkeypatch.setattr(ConsoleLines, "say", no_reader)
    config = write_job(tmp_path, steps=12)
    train_here(config, "--metrics.enable_tensorboard", "true")
    captured = capsys.readouterr()
    left = [step for step in range(1, 13) if not 5 <= step <= 9]
    found = metrics(config)
    assert [record["step"] for record in found] == (left if name == "jsonl" else [*range(1, 13)])
    assert points(tmp_path / "run") == (left if name == "tensorboard" else [*range(1, 13)])
    lost = found[-1]["lost_records"][name]
    assert f"lacks {lost} record(s) of steps 5 to 9" in captured.err
    assert lost == 5 or (name == "console" and lost > 5), "messages are records of the console"
    assert "step 5 is not in" in captured.err
    same = {record["step"]: (record["loss"], record["rows_hash"]) for record in undisturbed}
    assert all(same[record["step"]] == (record["loss"], record["rows_hash"]) for record in found)


def test_tensorboard_writes_each_record_whole_and_has_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = threading.active_count()
    board = TensorBoard(tmp_path, None, 0)  # type: ignore[arg-type]
    board.write(MetricsRecord("metrics", {"step": 1, "loss": 1.5}, ""))
    assert threading.active_count() == threads
    (file,) = (tmp_path / "tensorboard").iterdir()
    whole = file.read_bytes()

    class HalfWritten(type(file.open("ab"))):  # type: ignore[misc]
        def write(self, data: bytes) -> int:
            super().write(data[: len(data) // 2])
            self.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda path, mode: HalfWritten(open(path, mode, buffering=0)))  # noqa: PTH123, SIM115
        with pytest.raises(OSError, match="No space"):
            board.write(MetricsRecord("metrics", {"step": 2, "loss": 1.25}, ""))
    assert file.read_bytes() == whole
    board.write(MetricsRecord("metrics", {"step": 3, "loss": 1.0}, ""))
    assert points(tmp_path) == [1, 3]
    TensorBoard(tmp_path, None, 1).write(MetricsRecord("metrics", {"step": 2, "loss": 1.25}, ""))  # type: ignore[arg-type]
    assert points(tmp_path) == [1, 2], "a resume voids what came after"


def test_a_damaged_end_of_each_file_is_told_by_the_resume_which_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], undisturbed: list[dict[str, Any]]
) -> None:
    config = write_job(tmp_path, steps=12)
    train_here(config)
    shutil.rmtree(tmp_path / "run" / "checkpoint" / "step-12")
    for kind in ("metrics", "validation", "extrapolation"):
        with (tmp_path / "run" / f"{kind}.jsonl").open("ab") as file:
            file.write(b"\0" * 5000)
    capsys.readouterr()
    train_here(config)
    output = capsys.readouterr().out
    for kind in ("metrics", "validation", "extrapolation"):
        assert f"{kind}.jsonl: 1 damaged line(s)" in output
        assert (tmp_path / "run" / f"{kind}.jsonl.damaged").stat().st_size == 5001
    assert [(r["step"], r["loss"]) for r in metrics(config)] == [(r["step"], r["loss"]) for r in undisturbed]
