"""Traces of single steps, snapshots of memory, and the flight recorder: what is written where, and what is refused."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.tests.helpers.jobs import refusal, train, write_job
from cistron.trainer.config import load_config
from cistron.trainer.metrics import profiling, profiling_complaints
from cistron.trainer.processes.join import enable_flight_recorder

VARIABLES = ("TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_ASYNC_ERROR_HANDLING")


def test_each_rank_writes_a_trace_of_one_step_in_so_many(tmp_path: Path) -> None:
    config = write_job(tmp_path, steps=8)
    train(config, "--profiling.enable_profiling", "true", "--profiling.profile_freq", "3", processes=2)
    folder = tmp_path / "run" / "profile_traces"
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert written == [f"step-{step}/rank{rank}.json.gz" for step in (3, 6) for rank in (0, 1)]
    for path in written:
        with gzip.open(folder / path) as file:
            names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
        assert any("aten::mm" in name for name in names)
        assert sum(name.startswith("ProfilerStep") for name in names) == 1


def test_what_a_cpu_does_not_have_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path)
    for option, value in (("profiling.enable_memory_snapshot", "true"), ("comm.trace_buf_size", "2000")):
        message = refusal(capsys, config, f"--{option}", value)
        assert f"{option} = {value}" in message
        assert "needs CUDA" in message
        job, _ = load_config([str(config), f"--{option}", value])
        assert profiling_complaints(job, torch.device("cuda")) == []
    assert not (tmp_path / "run").exists()


def test_snapshots_are_written_at_their_steps_and_where_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[Any] = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *_, **options: history.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text("snapshot"))
    options = ("--profiling.enable_memory_snapshot", "true", "--profiling.profile_freq", "2")
    config, _ = load_config([str(write_job(tmp_path)), *options])

    def loop() -> None:
        with profiling(config, 1, torch.device("cpu")) as after_step:
            for step in range(1, 6):
                after_step(step)
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        loop()
    folder = tmp_path / "run" / "memory_snapshot"
    written = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.pickle"))
    assert written == ["step-2/rank1.pickle", "step-4/rank1.pickle", "step-6-out-of-memory/rank1.pickle"]
    assert history[-1] == {"enabled": None}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the allocator's history is CUDA's")
def test_a_snapshot_of_a_gpu_holds_its_allocations(tmp_path: Path) -> None:
    options = ("--profiling.enable_memory_snapshot", "true", "--profiling.profile_freq", "2")
    config, _ = load_config([str(write_job(tmp_path)), *options])
    with profiling(config, 0, torch.device("cuda")) as after_step:
        kept = torch.zeros(2**20, device="cuda")
        after_step(2)
    assert kept.is_cuda
    assert (tmp_path / "run" / "memory_snapshot" / "step-2" / "rank0.pickle").stat().st_size > 1000


def test_the_flight_recorder_is_told_by_variables_and_the_environment_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"})
    plain, _ = load_config([str(write_job(tmp_path))])
    enable_flight_recorder(plain)
    assert os.environ == {"TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}, "off unless asked for"

    config, _ = load_config([str(tmp_path / "job.toml"), "--comm.trace_buf_size", "500"])
    enable_flight_recorder(config)
    prefix = str(tmp_path / "run" / "comm_traces" / "rank_")
    assert dict(zip(VARIABLES, map(os.environ.get, VARIABLES), strict=True)) == dict(
        zip(VARIABLES, ("500", prefix, "0", "3"), strict=True)
    )
    assert not (tmp_path / "run").exists(), "a job may still be refused"
    with profiling(config, 0, torch.device("cpu")):
        assert (tmp_path / "run" / "comm_traces").is_dir()


def test_a_period_without_room_for_the_recorded_step_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "profiling.profile_freq" in refusal(capsys, write_job(tmp_path), "--profiling.profile_freq", "1")
