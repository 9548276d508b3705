"""A run's folder is one run's: a second start is refused before it reads or changes anything, and any end frees it."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from cistron.datasets.errors import InUseError
from cistron.datasets.files import Lock
from cistron.tests.helpers.jobs import fork, metrics, refusal, train_here, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.checkpoints import Folder
from cistron.trainer.config import load_config
from cistron.trainer.processes import join
from cistron.trainer.start import locked_run


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder that is no claim."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("lock-")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def claims(folder: Path) -> list[Path]:
    """The claims below a folder."""
    return list(folder.rglob("lock-*"))


def test_the_same_command_twice_is_refused_and_harms_nothing_and_a_killed_run_is_taken_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = write_job(tmp_path, steps=100_000), tmp_path / "run"
    first = fork(config, "--checkpoint.interval", "2")
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint" / "step-2" / "manifest.json").exists():
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)
    while Path(f"/proc/{first.pid}/stat").read_text().rpartition(") ")[2][0] != "T":
        time.sleep(0.001)
    before = content(folder)
    try:
        message = refusal(capsys, config, "--checkpoint.interval", "2")
        after = content(folder)
    finally:
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
    assert f"{folder}: in use: host " in message
    assert f"process {first.pid}, since " in message
    assert "; end it, or name another job.dump_folder" in message
    assert after == before
    (folder / "config.toml.77-0123abcd.part").touch()  # as a kill leaves it
    steps = 1 + max(record["step"] for record in metrics(config))
    train_here(config, "--training.steps", str(steps))
    assert "resumed from" in capsys.readouterr().out
    assert [record["step"] for record in metrics(config)] == [*range(1, steps + 1)]
    assert claims(folder) == list(folder.glob("*.part")) == []


@pytest.mark.parametrize("place", ["elsewhere", "run/checkpoint", "memory://locked/{}"])
def test_two_runs_cannot_save_into_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    config = write_job(tmp_path, steps=1)
    shared = place.format(tmp_path.name) if "://" in place else str(tmp_path / place)
    with Lock(shared):
        message = refusal(capsys, config, "--job.dump_folder", str(tmp_path / "other"), "--checkpoint.folder", shared)
        assert f"{shared}: in use: host " in message
        assert "; end it, or name another checkpoint.folder" in message
    assert not (tmp_path / "other").exists()


def test_a_folder_by_two_paths_is_one(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    train_here(config, "--checkpoint.folder", str(tmp_path / "link"))
    with Lock(tmp_path / "link"), pytest.raises(InUseError):
        train_here(config)
    assert claims(tmp_path) == []


def test_a_refused_run_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path, steps=1)
    assert "not a complete checkpoint" in refusal(capsys, config, "--checkpoint.load_step", "3")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [MemoryError("no memory"), KeyboardInterrupt(), ZeroDivisionError()])
def test_any_end_frees_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    config, seen = write_job(tmp_path, steps=1), []

    def fail(*_: object) -> None:
        seen.append(len(claims(tmp_path / "run")))
        raise error

    monkeypatch.setattr("cistron.trainer.train.Trainer", fail)
    with pytest.raises(BaseException):  # noqa: B017, PT011 (memory has a message of its own)
        train_here(config)
    assert seen == [2]
    assert not (tmp_path / "run").exists()


def lock_twice(config_path: str) -> str:
    """What a rank is told where another run has the folder."""
    config, _ = load_config(["--config", config_path])
    world = join(config)
    with locked_run(config, world), pytest.raises(InUseError) as caught, locked_run(config, world):
        pytest.fail("two runs hold it")
    return str(caught.value)


def test_every_rank_is_told_what_rank_zero_found(tmp_path: Path) -> None:
    first, other = run_on_ranks(lock_twice, 2, str(write_job(tmp_path, steps=1)))
    assert first == other
    assert f"{tmp_path / 'run'}: in use: host " in first
    assert not Folder(tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), "Permission denied: /a/b"),
        (PermissionError("Access Denied"), "Access Denied"),  # as s3fs says it
        (OSError(), "OSError: "),
        (KeyError("no credentials"), "KeyError: 'no credentials'"),  # as some other store may
    ],
)
def test_a_store_that_refuses_in_its_own_way_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    config = write_job(tmp_path, steps=1)
    for method in (f"{Lock.__module__}.Lock.take", f"{Folder.__module__}.Folder.make"):
        with monkeypatch.context() as patches:
            patches.setattr(method, refuse)
            message = refusal(capsys, config, "--checkpoint.enable", "false")
        assert f"job.dump_folder = '{tmp_path / 'run'}': cannot be written: {told}" in message
        assert "None" not in message
        assert "Traceback" not in message
