"""One process at a time has a folder: two at once have one winner, the dead hold nothing, the living are named."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cistron.datasets.errors import InUseError
from cistron.datasets.files import Lock, lock

ESCAPE = lock.Claim.mine().model_dump_json().replace('"since":"', '"since":"\\u001b[2J').encode()
HERE = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats of 0.05 s instead of 5, watched for 0.5 s instead of 30."""
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.5)


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder that is not there yet, on a disk and in an object store."""
    return str(tmp_path / "a" / "run") if request.param == "disk" else f"memory://{tmp_path.name}/run"


def claims(folder: str) -> list[str]:
    """Return the names of the claims that are in a folder, of holders and of those who want it."""
    return [name for name in lock._place(folder).names() if "lock" in name]


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on this process takes itself for one of another machine."""
    monkeypatch.setattr(lock, "machine", lambda: "another boot pid:[1]")


def test_a_folder_is_held_until_the_end_of_the_block_and_nothing_stays(folder: str, tmp_path: Path) -> None:
    for _ in range(2):
        with Lock(folder):
            assert len(claims(folder)) == 1
            with pytest.raises(InUseError) as caught, Lock(folder, advice="; name another"):
                pytest.fail("two hold it")
            assert len(claims(folder)) == 1
        assert claims(folder) == []
    assert re.search(
        rf"run: in use: host '.+', process {os.getpid()}, since 20.+ writes to it; name another", str(caught.value)
    )
    assert list(tmp_path.iterdir()) == [], "an empty folder that the lock has made goes with it"


def test_what_the_holder_wrote_stays(tmp_path: Path) -> None:
    with Lock(tmp_path / "a" / "run"):
        (tmp_path / "a" / "run" / "config.toml").touch()
    assert [path.name for path in (tmp_path / "a" / "run").iterdir()] == ["config.toml"]


def test_locks_of_other_names_in_one_folder_do_not_meet(folder: str) -> None:
    with Lock(folder, "one.lock"), Lock(folder, "two.lock"):
        assert len(claims(folder)) == 2


@pytest.mark.parametrize("processes", [True, False], ids=["processes", "threads"])
def test_of_many_that_start_at_once_one_wins(tmp_path: Path, processes: bool) -> None:
    """The winner holds on until all others were refused, so that two that follow each other would be seen."""
    count, rounds = (4, 2) if processes else (8, 5)
    wins = tmp_path / "wins"
    wins.mkdir()
    kind = HERE if processes else threading
    barrier, refused = kind.Barrier(count), kind.Semaphore(0)

    def start(number: int) -> None:
        barrier.wait(30)
        try:
            with Lock(tmp_path / "run"):
                (wins / str(number)).touch()
                for _ in range(count - 1):
                    assert refused.acquire(timeout=20)
        except InUseError:
            refused.release()

    for _ in range(rounds):
        starts = [(HERE.Process if processes else threading.Thread)(target=start, args=(n,)) for n in range(count)]
        for one in starts:
            one.start()
        for one in starts:
            one.join(60)
        (winner,) = wins.iterdir()
        winner.unlink()
    assert claims(str(tmp_path / "run")) == []


def hold(folder: str, taken: object) -> None:
    """Hold a folder until the process is killed."""
    with Lock(folder):
        taken.set()  # type: ignore[attr-defined]
        time.sleep(600)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[multiprocessing.process.BaseProcess]:
    """Another process, which holds the folder `run`."""
    taken = HERE.Event()
    process = HERE.Process(target=hold, args=(str(tmp_path / "run"), taken))
    process.start()
    assert taken.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_killed_holder_is_taken_over_at_once_even_as_a_zombie(
    tmp_path: Path, holder: multiprocessing.process.BaseProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lock, "watch", lambda *_: pytest.fail("the kernel knows"))
    with pytest.raises(InUseError, match=f"process {holder.pid}"), Lock(tmp_path / "run"):
        pass
    assert holder.pid
    os.kill(holder.pid, signal.SIGKILL)
    while lock.started(holder.pid):  # not reaped: it stays in /proc until the join
        time.sleep(0.001)
    with Lock(tmp_path / "run"):
        assert len(claims(str(tmp_path / "run"))) == 1


def test_another_process_of_the_same_number_is_not_the_holder(folder: str) -> None:
    with Lock(folder) as _:
        (name,) = claims(folder)
        place = lock._place(folder)
        mine = lock.Claim.read(place.read(name)[0])  # type: ignore[index]
    place.make()
    place.write(name, mine.model_copy(update={"started": mine.started - 1}))
    with Lock(folder):
        assert claims(folder) != [name]


def test_the_holder_on_another_machine_is_known_by_its_heartbeat(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lock(folder):
        elsewhere(monkeypatch)
        with pytest.raises(InUseError), Lock(folder):
            pass
    with Lock(folder):
        pass


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_dead_holder_on_another_machine_is_taken_over_whatever_its_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], ahead: int
) -> None:
    place, claim = lock._place(str(tmp_path)), lock.Claim.mine()
    place.write(f"lock-{'0' * 16}", claim)
    os.utime(tmp_path / f"lock-{'0' * 16}", (time.time() + ahead, time.time() + ahead))
    elsewhere(monkeypatch)
    began = time.monotonic()
    with Lock(tmp_path):
        assert time.monotonic() - began > 0.5
        assert claims(str(tmp_path)) != [f"lock-{'0' * 16}"]
    assert "gives no sign; watching for" in capsys.readouterr().err


def test_a_request_to_stop_ends_the_watch_of_another_machine(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = lock._place(folder)
    place.make()
    place.write(f"lock-{'0' * 16}", lock.Claim.mine())
    elsewhere(monkeypatch)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 60)
    began, asked = time.monotonic(), iter([False, False, True])
    with pytest.raises(InUseError, match=r"told to stop while watching whether host .*, process .* still writes to it"):
        Lock(folder, stop=lambda: next(asked)).__enter__()
    assert time.monotonic() - began < 30
    assert claims(folder) == [f"lock-{'0' * 16}"], "the other's claim stays, its own goes"


def test_a_store_that_refuses_to_delete_is_no_traceback_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class ClientError(Exception):
        """As botocore's, which is no OSError."""

    def refuse(*_: object) -> None:
        raise ClientError("AccessDenied")

    with Lock(f"memory://{tmp_path.name}/run"):
        monkeypatch.setattr(lock._Store, "delete", refuse)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff" * 10, b"[" * 5000, ESCAPE])
def test_a_claim_that_cannot_be_read_counts_while_it_is_renewed(tmp_path: Path, text: bytes) -> None:
    damaged = tmp_path / f"lock-{'f' * 16}"
    damaged.write_bytes(text)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.02):
            os.utime(damaged)

    thread = threading.Thread(target=renew)
    thread.start()
    with pytest.raises(InUseError, match="host 'unknown'"), Lock(tmp_path):
        pass
    ended.set()
    thread.join()
    with Lock(tmp_path):
        assert not damaged.exists()


def test_a_claim_that_somebody_deleted_is_written_again(folder: str) -> None:
    with Lock(folder):
        (name,) = claims(folder)
        lock._place(folder).delete(name)
        deadline = time.monotonic() + 10
        while claims(folder) != [name]:
            assert time.monotonic() < deadline
    assert claims(folder) == []


def test_a_holder_that_slept_until_it_was_taken_over_ends_when_it_wakes(
    tmp_path: Path, holder: multiprocessing.process.BaseProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert holder.pid
    elsewhere(monkeypatch)
    with pytest.raises(InUseError), Lock(tmp_path / "run"):
        pass
    os.kill(holder.pid, signal.SIGSTOP)
    with Lock(tmp_path / "run"):
        os.kill(holder.pid, signal.SIGCONT)
        holder.join(10)
        assert holder.exitcode == 1
        assert len(claims(str(tmp_path / "run"))) == 1


def test_a_heartbeat_needs_no_room_on_the_disk_and_no_main_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Lock(tmp_path):
        monkeypatch.setattr(lock._Disk, "write", lambda *_: pytest.fail("a full disk"))
        (file,) = tmp_path.iterdir()
        before, deadline = file.stat().st_mtime_ns, time.monotonic() + 10
        while file.stat().st_mtime_ns == before:  # which is all that the main thread does
            assert time.monotonic() < deadline
    assert not capsys.readouterr().err


def test_a_disk_that_is_away_for_a_while_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: object) -> bool:
        beats.append(1)
        raise OSError(116, "Stale file handle")

    beats: list[int] = []
    with Lock(tmp_path), monkeypatch.context() as patch:
        patch.setattr(lock._Disk, "renew", away)
        while len(beats) < 3:
            time.sleep(0.01)
    assert capsys.readouterr().err.count("could not be renewed: OSError: [Errno 116] Stale file handle") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory"), Lock(tmp_path / "file" / "run"):
        pass
