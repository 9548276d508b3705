"""Where memory runs out, a run ends with one message: step, place, what holds it, and what would take less."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cistron.tests.helpers.jobs import refusal, train_here, write_job
from cistron.tests.helpers.ranks import run_on_ranks
from cistron.trainer.config import load_config
from cistron.trainer.errors import OutOfMemoryError
from cistron.trainer.estimates import JobOnDevice, Relief, estimate, peak_of, reliefs
from cistron.trainer.optim import StepGuard
from cistron.trainer.out_of_memory import out_of_memory_told
from cistron.trainer.processes import Layout, World, join, ran_out, run_command
from cistron.trainer.start import verify
from cistron.trainer.train import Trainer, main

GIB = 2**30
ON_CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.02 GiB is free. "
    "Of the allocated memory 70.00 GiB is allocated by PyTorch"
)


def of_torch() -> None:
    torch.empty(10**15)


def of_numpy() -> None:
    np.empty(10**15)


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError(ON_CUDA)


def of_the_system() -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def of_python() -> None:
    raise MemoryError


SHORTAGES = [of_torch, of_numpy, of_a_gpu, of_the_system, of_python]


def plant(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, shortage: Callable[[], None], call: int = 1) -> None:
    """Have the `call`-th call of a method run out of memory."""
    whole, calls = getattr(owner, name), iter(range(1, 1000))

    def short(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            shortage()
        return whole(*args, **kwargs)

    monkeypatch.setattr(owner, name, short)


def refused(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str) -> str:
    """Run a job that must run out of memory; returns its one message."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_command(lambda: train_here(config, *overrides))
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "Traceback" not in said
    assert said.count("error: ") == 1
    return said


@pytest.mark.parametrize("shortage", SHORTAGES)
def test_a_step_without_memory_ends_with_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shortage: Callable[[], None]
) -> None:
    plant(monkeypatch, StepGuard, "watch", shortage, call=3)
    said = refused(capsys, write_job(tmp_path))
    assert "error: step 3: out of memory of " in said
    assert f"in {shortage.__name__} (tests/trainer/test_out_of_memory.py:" in said
    for part in (
        "parameters ",
        "optimizer ",
        "activations ",
        "documents ",
        "checkpoint ",
        "sum ",
        "this process ",
        "the host ",
    ):
        assert f"\n    {part}" in said
    assert 'activation_checkpoint.mode = "full", now "none"' in said


def test_what_could_not_be_allocated_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, StepGuard, "watch", of_torch)
    assert "out of memory of the host: tried to allocate 4000000000000000 bytes" in refused(capsys, write_job(tmp_path))


@pytest.mark.parametrize("where", ["open_shard", "open_evaluations"])
def test_building_without_memory_ends_with_the_same_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    plant(monkeypatch, Trainer, where, of_torch)
    said = refused(capsys, write_job(tmp_path))
    assert "error: before the first step: out of memory of the host" in said
    assert "what takes less" in said


def test_a_save_without_memory_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, Trainer, "save", of_torch)
    assert "error: step 5: out of memory of the host: tried to allocate" in refused(capsys, write_job(tmp_path))


def test_any_other_error_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug() -> None:
        raise RuntimeError("shapes do not match")

    plant(monkeypatch, StepGuard, "watch", bug)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run_command(lambda: train_here(write_job(tmp_path)))


def test_a_command_that_does_not_train_says_whose_memory_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run_command(of_a_gpu)
    assert caught.value.code == 2
    assert "error: out of memory of the device: tried to allocate 2.50 GiB" in capsys.readouterr().err


def test_errors_of_memory_are_told_from_others() -> None:
    assert ran_out(torch.OutOfMemoryError(ON_CUDA)) == "device"
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")) == "device"
    assert ran_out(RuntimeError("NCCL error: Cuda failure 2 'out of memory'")) == "device"
    assert ran_out(RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2>")) == "host"
    assert ran_out(OSError(errno.ENOSPC, "No space left on device")) is None
    assert ran_out(RuntimeError("out of resource: shared memory, Required: 264192, Hardware limit: 232448")) is None


class Gpu:
    """Stands in for torch's allocator of a GPU of 80 GiB."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * GIB, 80 * GIB))
        for name, gib in (("memory_allocated", 60), ("memory_reserved", 75), ("max_memory_allocated", 70)):
            monkeypatch.setattr(torch.cuda, name, lambda device, size=gib: size * GIB)


def test_on_a_gpu_the_allocators_numbers_stand_beside_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Gpu(monkeypatch)
    config, _ = load_config(["--config", str(write_job(tmp_path)), "--activation_checkpoint.mode", "full"])
    world = World(rank=0, layout=Layout.resolve(config), device=torch.device("cuda", 0), mesh=Any)  # type: ignore[arg-type]
    _, decoder = verify(config, world.layout)
    peak = peak_of(estimate(config, decoder, world.layout, "flex", "cuda"))
    with pytest.raises(OutOfMemoryError), out_of_memory_told(config, world, lambda: "step 5", lambda: False):
        of_a_gpu()
    said = " ".join(capsys.readouterr().err.split())
    assert "error: step 5: out of memory of cuda:0: tried to allocate 2.50 GiB, in of_a_gpu (tests/" in said
    assert f"at the peak ({peak.name})" in said
    assert f"sum | {peak.size / GIB:.3f}" in said
    assert "allocated | 60.000, 70.000 at the peak" in said
    assert "reserved | 75.000, of which 15.000 are not allocated" in said
    assert "the device | 80.000, of which 2.000 are free; others have 3.000" in said
    assert "activation_checkpoint" not in said.split("what takes less")[1], "it is used already"
    assert "checkpoint.async_mode" not in said, "it takes memory of the host"
    assert "documents" not in said


def test_of_the_host_of_a_gpu_the_hosts_parts_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Gpu(monkeypatch)
    config, _ = load_config(["--config", str(write_job(tmp_path)), "--data.num_workers", "4"])
    world = World(rank=0, layout=Layout.resolve(config), device=torch.device("cuda", 0), mesh=Any)  # type: ignore[arg-type]
    with pytest.raises(OutOfMemoryError), out_of_memory_told(config, world, lambda: "step 5", lambda: False):
        of_numpy()
    said = " ".join(capsys.readouterr().err.split())
    assert "messages | " in said
    assert "parameters" not in said.split("what takes less")[0]
    assert "data.num_workers = 2, now 4" in said


def test_the_effects_are_those_of_the_estimate_and_in_order(tmp_path: Path) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path)), "--training.seq_len", "512"])
    layout = Layout.resolve(config)
    _, decoder = verify(config, layout)

    def size(other: Any, on: Layout) -> float:
        return peak_of(estimate(other, decoder, on, "varlen", "cpu")).size

    def of(config: Any, layout: Layout) -> list[Relief]:
        return reliefs(JobOnDevice(config, decoder, layout, "varlen", "cpu"), size)

    found = of(config, layout)
    saved = [relief.saved for relief in found]
    assert saved == sorted(saved, reverse=True)
    by_key = {relief.change.split(" = ")[0]: relief.saved for relief in reversed(found)}
    full = config.replace(activation_checkpoint=config.activation_checkpoint.replace(mode="full"))
    assert by_key["activation_checkpoint.mode"] == size(config, layout) - size(full, layout)
    assert by_key["parallelism.data_parallel_shard_degree"] == size(config, layout) - size(config, replace(layout, shard=2))
    assert not any(relief.change.startswith("activation_checkpoint") for relief in of(full, layout))
    replicated = replace(layout, replicate=2)
    assert "parallelism.data_parallel_replicate_degree = 1, now 2" in "".join(
        relief.change for relief in of(config, replicated)
    )


@pytest.mark.parametrize("most", [0, 1024])
def test_fewer_logits_at_once_are_advised_among_the_others_by_their_effect(tmp_path: Path, most: int) -> None:
    """A small model of a large vocabulary on a GPU: a chunk of logits is most of what it takes."""
    shape = ("--model.vocab_size", "128256", "--training.seq_len", "2048", "--training.local_batch_size", "4")
    options = [*shape, "--training.loss_chunk_tokens", str(most)]
    config, _ = load_config(["--config", str(write_job(tmp_path)), *options])
    layout = Layout.resolve(config)
    _, decoder = verify(config, layout)
    job = JobOnDevice(config, decoder, layout, "flex", "cuda")

    def size(other: Any, on: Layout) -> float:
        return peak_of(estimate(other, decoder, on, "flex", "cuda")).size

    found = reliefs(job, size)
    assert [relief.saved for relief in found] == sorted((relief.saved for relief in found), reverse=True)
    (advice,) = (relief for relief in found if relief.change.startswith("training.loss_chunk_tokens"))
    chunk = 1024 if most else 2048  # 8,192 tokens in four chunks of at most 2,093
    assert job.loss_chunk == chunk
    assert f"= {chunk // 2}, now {most}: logits of {chunk:,} tokens at once now" in advice.change
    followed = config.replace(training=config.training.replace(loss_chunk_tokens=chunk // 2))
    assert advice.saved == size(config, layout) - size(followed, layout) > 0


def train_on_ranks(config: str, short: list[int]) -> tuple[Any, str]:
    """On every rank: run a job that runs out of memory on some ranks at step 3; returns its status and what it said."""
    rank, whole = int(os.environ["RANK"]), StepGuard.watch

    def watch(guard: StepGuard, step: int, *args: Any) -> Any:
        if step == 3 and rank in short:
            of_a_gpu()
        return whole(guard, step, *args)

    with patch.object(StepGuard, "watch", watch), redirect_stderr(StringIO()) as said:
        try:
            main(["--config", config])
        except SystemExit as ending:
            return ending.code, said.getvalue()
    return None, said.getvalue()


def test_a_rank_that_is_alone_with_it_speaks_before_the_others_miss_it(tmp_path: Path) -> None:
    (status, said), (status_of_one, said_by_one) = run_on_ranks(train_on_ranks, 2, str(write_job(tmp_path)), [1])
    assert (status, status_of_one) == (1, 2)
    assert re.match(r"\[rank 0\] stopped: after step \d: \w+ with the other processes failed", said)
    assert said_by_one.startswith("[rank 1] error: step 3: out of memory of cpu: tried to allocate 2.50 GiB")
    assert "what takes less" in said_by_one
    assert said_by_one.count("error: ") == 1


def test_a_rank_that_is_told_to_stop_meanwhile_says_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path))])
    monkeypatch.setenv("RANK", "1")
    world = replace(join(config), rank=1)
    started = time.monotonic()
    with pytest.raises(OutOfMemoryError), out_of_memory_told(config, world, lambda: "step 5", lambda: True):
        of_torch()
    assert time.monotonic() - started < 2.9
    said = capsys.readouterr().err
    assert said.startswith("[rank 1] error: step 5: out of memory of the host")
    assert said.count("\n") == 1


def test_a_refused_job_is_no_matter_of_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "out of memory" not in refusal(capsys, write_job(tmp_path), "--model.eos_id", "9")
