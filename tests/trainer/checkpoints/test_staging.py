"""The copy of a checkpoint in host memory: what it takes, and that nothing is lost where one slab ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.tests.helpers.jobs import train_here
from cistron.trainer.checkpoints import Spec, pinned_bytes, staging_bytes
from cistron.trainer.checkpoints.dcp import SLAB_BYTES, HostBuffer
from torch import Tensor

GIB = 2**30
SLAB = 256
TENSORS = {
    "of three slabs": torch.arange(200, dtype=torch.float32).reshape(10, 20),
    "not contiguous": torch.arange(12, dtype=torch.float32).reshape(3, 4).t(),
    "without a dimension": torch.tensor(7.0),
    "without an element": torch.empty(0, 5),
    "bfloat16": torch.arange(33, dtype=torch.bfloat16),
    "odd bytes": torch.arange(131, dtype=torch.uint8),
    "trained": torch.ones(5, 5, requires_grad=True),
}
SPECS = {name: Spec.of(tensor) for name, tensor in TENSORS.items()}
SIZE = sum(spec.size for spec in SPECS.values())


class Allocations:
    """Stands in for torch.empty, and keeps the bytes of each request for pinned memory, which no GPU is here for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pinned: list[int] = []
        self.empty = torch.empty
        monkeypatch.setattr(torch, "empty", self)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def __call__(self, *size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        tensor = self.empty(*size, **options)
        if pin_memory:
            self.pinned.append(tensor.nbytes)
        return tensor


def data_of(slabs: list[Tensor]) -> dict[str, Tensor]:
    """The tensors that slabs hold one after another."""
    flat, begin, found = torch.cat(slabs), 0, {}
    for name, spec in SPECS.items():
        found[name] = flat[begin : begin + spec.size].clone().view(spec.dtype).view(spec.shape)
        begin += spec.size
    assert begin == len(flat)
    return found


@pytest.mark.parametrize("slab", [SLAB, 1, 7, 2 * SIZE])
def test_pieces_cross_the_borders_of_slabs_whole(monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    monkeypatch.setattr("cistron.trainer.checkpoints.dcp.SLAB_BYTES", slab)
    held = HostBuffer(torch.device("cpu"))
    for _ in range(2):
        found = data_of(held.copy(TENSORS, SPECS))
        assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())
        with torch.no_grad():
            TENSORS["trained"].add_(1)


def test_pinned_memory_is_asked_for_once_in_slabs_that_the_allocator_does_not_round_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cistron.trainer.checkpoints.dcp.SLAB_BYTES", SLAB)
    allocations, held = Allocations(monkeypatch), HostBuffer(torch.device("cuda"))
    for _ in range(3):
        held.copy(TENSORS, SPECS)
    assert sum(allocations.pinned) == SIZE
    taken = sum(map(pinned_bytes, allocations.pinned))
    assert taken == staging_bytes(SIZE, pinned=True)
    assert taken < SIZE + SLAB / 2 < pinned_bytes(SIZE)


def test_an_eighth_of_an_8b_model_takes_a_quarter_of_a_gib_more_than_it_has() -> None:
    size = int(11.2 * GIB)
    assert pinned_bytes(size) == 16 * GIB
    assert staging_bytes(size, pinned=True) == 11.25 * GIB
    assert staging_bytes(size, pinned=False) == size
    assert [pinned_bytes(n) for n in (1, 2, 3, SLAB_BYTES, SLAB_BYTES + 1)] == [1, 2, 4, SLAB_BYTES, 2 * SLAB_BYTES]


def test_a_job_that_saves_from_many_slabs_writes_the_same_bytes(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cistron.trainer.checkpoints.dcp.SLAB_BYTES", 1000)
    train_here(straight, "--job.dump_folder", str(tmp_path / "slabs"))
    one, other = (folder / "checkpoint" / "step-8" for folder in (straight.parent / "run", tmp_path / "slabs"))
    for name in ("rank-00000.safetensors", "tensors.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
