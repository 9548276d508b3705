"""scripts/cistron.sbatch with stand-ins for Slurm's commands: what it starts and signals, when it asks for time."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cistron.tests.helpers.jobs import write_job

SCRIPT = Path(__file__).parents[2] / "scripts" / "cistron.sbatch"
# srun becomes the command; scancel signals it and its children, as Slurm does with all processes of a step
STAND_INS = {
    "srun": """
printf '%s\\n' "$@" > "$CALLS/srun"
echo "${PYTORCH_ALLOC_CONF-unset}" > "$CALLS/allocator"
[ -z "${SRUN_STATUS:-}" ] || exit "$SRUN_STATUS"
while [ "${1#--}" != "$1" ]; do shift; done
echo $$ > "$CALLS/step"
exec "$@"
""",
    "scancel": """
printf '%s\\n' "$@" > "$CALLS/scancel"
kill -TERM "$(cat "$CALLS/step")" $(cat /proc/"$(cat "$CALLS/step")"/task/*/children)
""",
    "scontrol": """
case "$1" in
    show) echo localhost ;;
    requeue) echo "$2" >> "$CALLS/requeue" ;;
esac
""",
}
pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the stand-in of scancel looks into /proc")


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a batch script."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text("#!/usr/bin/env bash" + body)
        (commands / name).chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_GPUS_ON_NODE": "1",
    }
    return {**os.environ, **job, "PATH": path, "CALLS": str(tmp_path), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}


def start(slurm: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    """Run the script."""
    return subprocess.Popen(
        ["bash", str(SCRIPT), *arguments],
        env=slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_preempted_job_saves_and_is_requeued_and_a_finished_one_is_not(tmp_path: Path, slurm: dict[str, str]) -> None:
    job, records = write_job(tmp_path, steps=100_000), tmp_path / "run" / "metrics.jsonl"
    running = start(slurm, str(job), "--checkpoint.interval", "1000")
    deadline = time.monotonic() + 120
    while not (records.exists() and '"step": 3,' in records.read_text()):
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(running.pid, signal.SIGTERM)  # as --signal=B:TERM does: the script alone
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 0, output
    assert "Traceback" not in output
    stopped = re.search(r"stopped after step (\d+) of", output)
    assert stopped, output
    assert (tmp_path / "scancel").read_text().split() == ["--signal=TERM", slurm["SLURM_JOB_ID"]]
    assert (tmp_path / "requeue").read_text().split() == [slurm["SLURM_JOB_ID"]]

    last = int(stopped[1]) + 2
    again = start({**slurm, "SLURM_RESTART_COUNT": "1"}, str(job), "--training.steps", str(last))
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    assert f"resumed from {tmp_path}/run/checkpoint/step-{stopped[1]}" in output
    assert json.loads(records.read_text().splitlines()[-1])["step"] == last
    assert len((tmp_path / "requeue").read_text().split()) == 1


def test_a_job_that_fails_keeps_its_status_and_is_not_requeued(tmp_path: Path, slurm: dict[str, str]) -> None:
    nodes = {"SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "123456", "SRUN_STATUS": "7"}
    running = start({**slurm, **nodes}, "x.toml", "--training.steps", "9")
    running.communicate(timeout=60)
    assert running.returncode == 7
    assert not (tmp_path / "requeue").exists()
    arguments = " ".join((tmp_path / "srun").read_text().splitlines())
    assert arguments.endswith(
        "torchrun --nnodes 4 --nproc_per_node 8 --max-restarts 3 --rdzv_id 123456.0 --rdzv_backend c10d "
        "--rdzv_endpoint localhost:23456 --signals-to-handle SIGINT,SIGHUP,SIGQUIT "
        "-m cistron.trainer.train --config x.toml --training.steps 9"
    )


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:512"}, "max_split_size_mb:512"),
        ({"PYTORCH_ALLOC_CONF": ""}, ""),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}, "unset"),
    ],
)
def test_the_allocators_segments_grow_unless_the_user_says_otherwise(
    tmp_path: Path, slurm: dict[str, str], given: dict[str, str], seen: str
) -> None:
    environment = {name: value for name, value in slurm.items() if "ALLOC_CONF" not in name} | given
    start({**environment, "SRUN_STATUS": "7"}, "x.toml").communicate(timeout=60)
    assert (tmp_path / "allocator").read_text() == f"{seen}\n"
    for command in ("python3", "torchrun"):  # one process and several of run_train.sh
        (tmp_path / "bin" / command).write_text('#!/bin/sh\necho "${PYTORCH_ALLOC_CONF-unset}"\n')
        (tmp_path / "bin" / command).chmod(0o755)
    for processes in ("1", "2"):
        run = ["bash", str(SCRIPT.parents[1] / "run_train.sh")]
        done = subprocess.run(run, env={**environment, "NGPU": processes}, capture_output=True, text=True, check=True)
        assert done.stdout == f"{seen}\n"


def test_a_job_needs_a_configuration(slurm: dict[str, str]) -> None:
    running = start(slurm)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 2
    assert "usage: sbatch" in output


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)
