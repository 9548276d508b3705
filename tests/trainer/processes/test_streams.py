"""Standard streams that go away: training goes on, a command ends quietly or says what happened."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cistron.base import Stream
from cistron.tests.helpers.jobs import metrics, train_here, write_job
from cistron.trainer.processes import run_command
from cistron.trainer.train import main

FAILURES = {"no room": errno.ENOSPC, "no reader": errno.EPIPE, "no terminal": errno.EIO}


class Gone(io.StringIO):
    """A stream that fails from its n-th write on."""

    def __init__(self, number: int, after: int = 0) -> None:
        super().__init__()
        self.number, self.after = number, after

    def write(self, text: str) -> int:
        self.after -= 1
        if self.after < 0:
            raise OSError(self.number, os.strerror(self.number))
        return super().write(text)


@pytest.mark.parametrize("number", FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("both", [False, True], ids=["stdout", "stdout and stderr"])
def test_training_goes_on_without_them_and_its_records_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, both: bool
) -> None:
    config = write_job(tmp_path, steps=6)
    stderr = Gone(number) if both else io.StringIO()
    monkeypatch.setattr(sys, "stdout", Gone(number, after=4))
    monkeypatch.setattr(sys, "stderr", stderr)
    train_here(config)
    assert [record["step"] for record in metrics(config)] == [*range(1, 7)]
    assert metrics(config)[-1]["lost_records"]["console"] > 0
    assert (tmp_path / "run" / "checkpoint" / "step-6" / "manifest.json").exists()
    if not both:
        assert "is not in ConsoleLines:" in stderr.getvalue()
        assert os.strerror(number) in stderr.getvalue()
        assert "warning: ConsoleLines lacks" in stderr.getvalue()


def test_training_goes_on_with_streams_that_were_closed_before_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_job(tmp_path, steps=2)
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    train_here(config)
    assert len(metrics(config)) == 2


def status_of(command: Callable[[], None]) -> int:
    """The exit status of a command line with this body."""
    try:
        run_command(command)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.mark.parametrize("ends", [False, True], ids=["returns", "sys.exit(0)"])
def test_a_command_without_a_reader_ends_quietly_and_on_a_full_disk_it_says_so(
    monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    def command() -> None:
        print("a result")
        if ends:
            sys.exit(0)

    for number, status, said in (
        (errno.EPIPE, 0, ""),
        (errno.ENOSPC, 2, "error: standard output: No space left on device; what was printed is not whole\n"),
    ):
        stderr = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(sys, "stdout", Gone(number))
        assert status_of(command) == status
        assert stderr.getvalue() == said


def test_an_error_is_told_also_where_stdout_is_gone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr(sys, "stdout", Gone(errno.EPIPE))
    assert status_of(lambda: main(["--config", str(tmp_path / "none.toml")])) == 2
    assert "none.toml" in stderr.getvalue()


def test_letters_that_a_stream_lacks_are_written_as_escapes() -> None:
    below = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    failed: list[Exception] = []
    stream = Stream(below, failed.append)
    print("Größe ∎ \udcff", file=stream)  # type: ignore[arg-type]
    stream.flush()
    assert below.buffer.getvalue() == b"Gr\\xf6\\xdfe \\u220e \\udcff\n"  # type: ignore[attr-defined]
    assert not failed


COMMAND = "from cistron.trainer.processes import run_command\nrun_command(lambda: print('x' * 100_000))"


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("{} | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        ("{} >/dev/full", 2, "error: standard output: No space left on device; what was printed is not whole\n"),
        ("{} >/dev/full 2>/dev/full", 2, ""),
        ("{} >&-", 0, ""),
        ("{} >&- 2>&- <&-", 0, ""),
    ],
)
def test_the_status_is_that_of_the_command_to_the_end_of_the_interpreter(shell: str, status: int, said: str) -> None:
    command = f'"{sys.executable}" -c "$COMMAND"'
    done = subprocess.run(
        ["bash", "-c", shell.format(command)],
        env={**os.environ, "COMMAND": COMMAND},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, said)
