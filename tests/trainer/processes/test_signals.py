"""Signals and deaths, caused by a scheduler, a launcher or a person: what is saved, said, and left behind."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cistron.tests.helpers.jobs import column, fork, metrics, start, train_here, write_job
from cistron.trainer.processes import StopRequest
from cistron.trainer.processes.exit import why_lost
from cistron.trainer.processes.signals import is_first_told

VALIDATION = """
[validation]
enable = true
freq = 1000
local_batch_size = 1
[[validation.sources]]
name = "prose"
format = "jsonl"
paths = ["{folder}/prose.jsonl"]
"""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that would train for hours, with a validation of seconds that is off by default."""
    folder = tmp_path_factory.mktemp("signals")
    draw = random.Random(3)
    texts = [" ".join(draw.choices(["pack", "row", "lane"], k=15)) for _ in range(2000)]
    (folder / "prose.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return write_job(folder, 100_000, VALIDATION.format(folder=folder))


class Run:
    """A run of the job in a folder of its own, in processes of its own: those of a command line, or a fork."""

    def __init__(
        self, job: Path, folder: Path, *overrides: str, processes: int = 1, validate: bool = False, forked: bool = False
    ) -> None:
        self.folder = folder
        self.records = folder / "metrics.jsonl"
        overrides = ("--job.dump_folder", str(folder), "--validation.enable", str(validate).lower(), *overrides)
        self.process = fork(job, *overrides) if forked else start(job, *overrides, processes=processes)

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Poll every 2 ms."""
        deadline = time.monotonic() + 120
        while not condition():
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def has_step(self, step: int) -> bool:
        """Whether `step` is logged."""
        return self.records.exists() and f'"step": {step},' in self.records.read_text()

    def unfinished(self) -> list[Path]:
        """Checkpoints that are being written."""
        return [path for path in (self.folder / "checkpoint").glob("step-*") if not (path / "manifest.json").exists()]

    def ends_well(self, name: str) -> int:
        """Status 0, one sentence, no traceback, and all steps saved; returns how many."""
        self.output = output = self.process.communicate(timeout=240)[0]
        assert self.process.returncode == 0, output
        assert "Traceback" not in output
        found = re.search(rf"{name}: stopped after step (\d+) of 100000", output)
        assert found, output
        assert not self.unfinished()
        assert (self.folder / "checkpoint" / f"step-{found[1]}" / "manifest.json").exists()
        assert json.loads(self.records.read_text().splitlines()[-1])["step"] == int(found[1])
        return int(found[1])

    def send(self, number: signal.Signals) -> None:
        """Signal the process and its children, as a terminal or a scheduler does."""
        os.killpg(self.process.pid, number)


def test_a_stop_during_a_save_finishes_that_save(job: Path, tmp_path: Path) -> None:
    run = Run(job, tmp_path / "run", "--checkpoint.interval", "1", "--checkpoint.keep_latest_k", "0", forked=True)
    run.wait_for(lambda: run.has_step(2))
    run.wait_for(run.unfinished)
    saving = run.unfinished()
    run.send(signal.SIGTERM)
    run.ends_well("SIGTERM")
    assert all((path / "manifest.json").exists() for path in saving)


def test_a_stop_during_validation_saves_and_leaves_the_rest_of_it_out(job: Path, tmp_path: Path) -> None:
    run = Run(job, tmp_path / "run", "--checkpoint.interval", "1000", validate=True, forked=True)
    run.wait_for(lambda: run.has_step(1))  # which a validation follows
    time.sleep(0.2)
    run.send(signal.SIGTERM)
    assert run.ends_well("SIGTERM") == 1
    assert not (tmp_path / "run" / "validation.jsonl").exists()


def test_a_stop_during_compilation_takes_the_step_that_waits_for_it(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal reaches compilers and their workers too."""
    cache = tmp_path / "inductor"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(cache))
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "2")
    run = Run(job, tmp_path / "run", "--compile.enable", "true")
    run.wait_for(lambda: any(cache.rglob("*.cpp")))
    assert not run.has_step(1)
    run.send(signal.SIGTERM)
    assert run.ends_well("SIGTERM") == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_closed_terminal_and_slurms_signal_stop_a_run_with_workers_as_sigterm_does(
    job: Path, tmp_path: Path, number: signal.Signals
) -> None:
    run = Run(job, tmp_path / "run", "--data.num_workers", "1", forked=True)
    run.wait_for(lambda: run.has_step(2))
    run.send(number)
    run.ends_well(number.name)
    assert re.search(rf"^{number.name}: finishing step \d+, then saving$", run.output, re.MULTILINE)


def test_a_signal_is_answered_while_a_step_is_computed(capfd: pytest.CaptureFixture[str]) -> None:
    """One call into C, as the products of a row of a million tokens are: Python's own handlers wait for its end."""
    told: list[float] = []
    with StopRequest(lambda: told.append(time.monotonic()) or "finishing step 7, then saving") as stop:  # type: ignore[func-returns-value]
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        torch.ones(3500, 3500) @ torch.ones(3500, 3500)
        computed = time.monotonic()
        assert stop.signal_name == "SIGUSR1"
        os.kill(os.getpid(), signal.SIGTERM)
    assert told[0] < computed
    assert capfd.readouterr().err == "SIGUSR1: finishing step 7, then saving\n", "once"
    for number in (signal.SIGUSR1, signal.SIGTERM):  # which are ignored after a stop
        signal.signal(number, signal.SIG_DFL)


def test_an_answer_that_hangs_in_a_store_does_not_keep_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cistron.trainer.processes.signals.ANSWER_SECONDS", 0.1)
    hangs = threading.Event()
    with StopRequest(lambda: str(hangs.wait(30))) as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        begun = time.monotonic()
        assert stop()
    assert time.monotonic() - begun < 10
    hangs.set()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


def test_a_group_that_ends_meanwhile_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)  # and there is none: torch raises ValueError
    assert is_first_told() is True


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_a_forked_child_is_not_the_parents(capfd: pytest.CaptureFixture[str]) -> None:
    with StopRequest() as stop:
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(child, 0)
        assert not stop()
    assert not capfd.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_repeated_until_the_end_are_one_signal(job: Path, tmp_path: Path, number: signal.Signals) -> None:
    run = Run(job, tmp_path / "run")
    run.wait_for(lambda: run.has_step(2))
    run.send(number)
    deadline = time.monotonic() + 120
    while run.process.poll() is None and time.monotonic() < deadline:
        run.process.send_signal(number)
        time.sleep(0.005)
    run.ends_well(number.name)


def ranks_of(torchrun: int) -> dict[int, int]:
    """Process ids of torchrun's ranks, by rank."""
    ranks = {}
    for children in Path(f"/proc/{torchrun}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            if found := re.search(rb"\0RANK=(\d+)\0", b"\0" + Path(f"/proc/{pid}/environ").read_bytes()):
                ranks[int(found[1])] = pid
    return ranks


def is_alive(pid: int) -> bool:
    """Whether a process is there and not only waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the ranks in /proc")


@linux
def test_a_frozen_rank_is_left_in_time_and_no_rank_outlives_torchrun(job: Path, tmp_path: Path) -> None:
    run = Run(job, tmp_path / "run", "--comm.timeout_seconds", "8", processes=2)
    run.wait_for(lambda: run.has_step(3))
    ranks = ranks_of(run.process.pid)
    os.kill(ranks[1], signal.SIGSTOP)
    run.wait_for(lambda: not is_alive(ranks[0]))
    # torchrun now gives the frozen rank its 30 seconds
    assert is_alive(ranks[1])
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    deadline = time.monotonic() + 10
    while is_alive(ranks[1]) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_alive(ranks[1])
    output, _ = run.process.communicate()
    said = re.search(
        r"\[rank 0\] stopped: after step (\d+): (\w+) with the other processes failed: .*Timed out waiting", output
    )
    assert said, output
    assert said[2].startswith(("all_", "reduce_scatter"))
    assert "(comm.timeout_seconds = 8)" in output
    assert "Traceback" not in output


@linux
def test_torchrun_survives_three_kills_by_itself(tmp_path: Path) -> None:
    job = write_job(tmp_path, 30)
    train_here(job, "--job.dump_folder", str(tmp_path / "undisturbed"), "--checkpoint.enable", "false")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "3"]
    with (tmp_path / "log").open("w") as log:
        torchrun = subprocess.Popen(
            [*launcher, "-m", "cistron.trainer.train", "--config", str(job), "--checkpoint.interval", "2"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    told = lambda: (tmp_path / "log").read_text()  # noqa: E731
    deadline = time.monotonic() + 200
    for kill, step in enumerate((5, 13, 21)):
        # the records of a life begin where the one before was resumed from
        while told().count("process(es) (cpu)") <= kill or not re.search(rf"step +{step}  loss", told()):
            assert torchrun.poll() is None, told()
            assert time.monotonic() < deadline, told()
            time.sleep(0.005)
        os.kill(ranks_of(torchrun.pid)[kill % 2], signal.SIGKILL)
    assert torchrun.wait(timeout=120) == 0, told()
    assert told().count("resumed from") == 3
    assert told().count("] stopped: after step") == 3, "the rank that is left says why it ends"
    assert column(metrics(job), "rows_hash") == column(metrics(job, "undisturbed"), "rows_hash")
    assert column(metrics(job), "loss") == pytest.approx(column(metrics(job, "undisturbed"), "loss"), abs=1e-5)


def test_only_a_lost_peer_is_taken_for_one() -> None:
    transport = (
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer [10.0.0.2]:1. This is typically"
    )
    assert why_lost(RuntimeError(transport)) == "Connection closed by peer [10.0.0.2]:1"
    for bug in (
        "[enforce fail at /pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:446] op.preamble.length <= op.nbytes. 8 vs 4",
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)",
        "CUDA error: device-side assert triggered",
    ):
        assert why_lost(RuntimeError(bug)) is None
