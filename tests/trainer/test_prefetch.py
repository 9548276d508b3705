"""Batches on their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cistron.datasets.loading import Batch
from cistron.tests.helpers.jobs import write_job
from cistron.trainer.config import load_config
from cistron.trainer.prefetch import Prefetcher
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: streams exist only there")


def batches(count: int, size: int) -> Iterator[Batch]:
    """Batches that are told apart by their values."""
    for number in range(count):
        plane = torch.full((1, size), number)
        yield Batch(plane, plane, plane.int(), plane.int(), rows=[number], sources=[0], state={}, weights=None, values=None)


def test_on_a_cpu_each_batch_is_moved_when_its_turn_comes() -> None:
    moved: list[int] = []

    def move(batch: Batch) -> int:
        moved.append(batch.rows[0])
        return batch.rows[0]

    for expected, got in enumerate(Prefetcher(move, torch.device("cpu"))(batches(4, 8))):
        assert got == expected
        assert moved == list(range(expected + 1))


@needs_cuda
def test_batches_arrive_unharmed_while_others_are_copied() -> None:
    """Long kernels read each batch late; copies that follow would overwrite memory that is let go of too early."""
    device = torch.device("cuda")
    prefetch = Prefetcher(lambda batch: batch.tokens.to(device, non_blocking=True), device)
    seen = []
    for _ in range(5):
        for tokens in prefetch(batches(6, 1 << 22)):
            torch.cuda._sleep(20_000_000)
            seen.append(torch.stack([tokens.amin(), tokens.amax()]))
            del tokens
    assert torch.stack(seen).tolist() == [[n, n] for n in range(6)] * 5


@needs_cuda
def test_a_step_without_metrics_does_not_wait_for_the_device(tmp_path: Path) -> None:
    config, _ = load_config(["--config", str(write_job(tmp_path, steps=9)), "--metrics.log_freq", "100"])
    trainer = Trainer(config, join(config), StopRequest())
    optimize = trainer.optimize

    def watched(*arguments: object) -> object:
        steady = 3 <= trainer.progress.step < 8  # the first steps allocate, the last reports
        torch.cuda.set_sync_debug_mode("error" if steady else "default")
        try:
            return optimize(*arguments)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.optimize = watched  # type: ignore[method-assign, assignment]
    trainer.train()
    trainer.close()
