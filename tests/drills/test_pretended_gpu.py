"""The drill on a pretended GPU: its cases cover what they say, each expectation can fail, and waits are seen."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.tests.drills.pretended_gpu.cases import CASES, LAYOUTS, OPTIMIZERS, Case, complaints
from cistron.tests.drills.pretended_gpu.record import Kernel, Record
from cistron.tests.drills.pretended_gpu.tensors import CUDA, PretendedTensors
from cistron.tests.drills.pretended_gpu.training import Observed

aten = torch.ops.aten
DRILL = Path(__file__).parent / "pretended_gpu" / "run.sh"
MODELS = ("llama3_1b", "llama3_8b", "dna_7b", "protein_650m")
EXECUTORS = ("flex", "varlen")
RECOMPUTED = ("none", "selective", "full")
SPREAD = ("CP", "all")  # rows over ranks, which varlen cannot do
CASE = CASES[0]
KERNEL = Kernel(shared=132_096, registers=213, stack=0, warps=8)
GOOD = Observed(graphs=CASE.graphs, waits={"trainer/metrics/log.py:1 step: a number": 3}, per_layer=39, kernels={"k": KERNEL})


def pairs(first: Callable[[Case], str], second: Callable[[Case], str]) -> set[tuple[str, str]]:
    return {(first(case), second(case)) for case in CASES}


def test_cases_have_every_value_and_the_pairs_that_meet_in_the_code() -> None:
    assert {case.model for case in CASES} == set(MODELS)
    assert {case.optimizer for case in CASES} == set(OPTIMIZERS)
    wanted = {pair for pair in product(EXECUTORS, LAYOUTS) if pair[0] == "flex" or pair[1] not in SPREAD}
    assert pairs(lambda case: case.executor, lambda case: case.layout) == wanted
    assert pairs(lambda case: case.executor, lambda case: case.recomputed) == set(product(EXECUTORS, RECOMPUTED))
    assert pairs(lambda case: case.executor, lambda case: case.model) == set(product(EXECUTORS, MODELS))
    assert {case.recomputed for case in CASES if case.layout == "all"} == set(RECOMPUTED)
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"graphs": 4}, "expected 3 compiled graphs, found 4"),
        ({"recompiled": 1}, "no compilation after step 2, found 1"),
        ({"breaks": ["print (1 x)"]}, "no graph break, found: print"),
        ({"quiet_waits": {"trainer/train.py:9 optimize: item": 2}}, "found 2 at trainer/train.py:9 optimize"),
        ({"waits": {"models/decoder.py:9 forward: item": 1}}, "found 1 at models/decoder.py:9"),
        ({"waits": {}}, "is the record blind?"),
        ({"pageable": {"trainer/parallel/inputs.py:9 moved: int64 [2]": 4}}, "found 4 at trainer/parallel/inputs.py:9"),
        ({"per_layer": 39.5}, "at most 39 launches of a layer for a micro-batch, found 39.5"),
        ({"per_layer": 0}, "launches of a layer, found none"),
        ({"kernels": {}}, "found none"),
        ({"kernels": {"k": KERNEL._replace(shared=232_449)}}, "232,448 bytes of shared memory, found 232,449 in k"),
        ({"kernels": {"k": KERNEL._replace(registers=255, warps=16)}}, "found 255 x 512 threads in k"),
        ({"kernels": {"k": KERNEL._replace(stack=701)}}, "700 bytes of stack a thread, found 701 in k"),
    ],
)
def test_each_expectation_can_fail(change: dict[str, Any], named: str) -> None:
    assert list(complaints(CASE, GOOD)) == []
    (line,) = complaints(CASE, replace(GOOD, **change))
    assert named in line


def test_the_host_waits_where_it_reads_the_device_or_copies_from_pageable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    record = Record()
    mode = PretendedTensors(record)
    on_host = torch.arange(6.0)
    with mode:
        there = on_host.to(CUDA)
        assert list(record.pageable) == [("start", "float32 [6]", record_place(record.pageable))]
        pinned = on_host.pin_memory().to(CUDA, non_blocking=True)
        assert sum(record.pageable.values()) == 1
        product = (there + pinned).view(2, 3) @ there.view(3, 2)
        assert product.device.type == "cuda"
        assert product.shape == (2, 2)
        assert sum(record.launches.values()) == 4, "two copies, a sum and a product; views are none"
        assert not record.waits
        aten._local_scalar_dense(product.sum())  # as `item` and an index do, without a torch that was built for CUDA
        there.cpu()
        aten.index(there, [torch.tensor([0, 1])])
    assert sorted(kind for _, kind, _ in record.waits) == ["_local_scalar_dense reads the device", "copy to the host"]
    assert ("start", "int64 [2]", record_place(record.pageable)) in record.pageable
    assert all(where.startswith("tests/drills/test_pretended_gpu.py:") for _, _, where in record.waits)
    with mode, pytest.raises(RuntimeError, match="devices"):
        there + on_host


def record_place(counts: Any) -> str:
    """The place of the newest note."""
    return str(list(counts)[-1][2])


def reason_to_skip() -> str:
    """Why no GPU can be pretended here; empty if one can."""
    if not (torch.version.cuda and torch.__version__.startswith("2.11.")):
        return f"torch {torch.__version__} (CUDA {torch.version.cuda}): the drill pretends a GPU to 2.11 for CUDA alone"
    return "" if sys.platform == "linux" and shutil.which("cc") else "needs Linux and a C compiler"


def drill(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the drill in this environment."""
    environment = {**os.environ, "CISTRON_VENV": sys.prefix}
    return subprocess.run([DRILL, *options], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(bool(reason_to_skip()), reason=reason_to_skip())
def test_shipped_configurations_train_on_a_pretended_gpu_and_a_planted_wait_is_found() -> None:
    one = f"{CASE.model}, {CASE.executor}, {CASE.layout}"
    done = drill("--only", one, "--only", "protein_650m, varlen")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("nothing wrong") >= 2
    done = drill("--only", one, "--plant", "wait")
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{CASE.name}: expected no wait of the host in a step that is not reported, found 2" in done.stdout
