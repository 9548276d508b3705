"""torchtitan as a contender begins beside the lowest torch that is allowed, and takes the steps that Cistron takes."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.fsdp

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("datasets", "datasets.distributed", "interleaved", "train_torchtitan")


def test_names_that_torchtitan_imports_and_does_not_use_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delattr(torch.distributed.fsdp, "DataParallelMeshDims", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with monkeypatch.context() as context:
        for name in NAMES:
            context.delitem(sys.modules, name, raising=False)
        importlib.import_module("train_torchtitan").complete_imports()
        namespace: dict[str, object] = {}
        exec("from torch.distributed.fsdp import DataParallelMeshDims", namespace)
        exec("from datasets.distributed import split_dataset_by_node", namespace)
        assert isinstance(namespace["DataParallelMeshDims"], type)
        for name in NAMES:
            sys.modules.pop(name, None)
    if hasattr(torch.distributed.fsdp, "DataParallelMeshDims"):
        del torch.distributed.fsdp.DataParallelMeshDims


@pytest.mark.skipif(importlib.util.find_spec("torchtitan") is None, reason="torchtitan is not installed")
def test_torchtitan_takes_the_steps_that_cistron_takes(tmp_path: Path) -> None:
    sizes = ["--rows", "2", "--seq-len", "128", "--layers", "2", "--rounds", "1", "--warmup", "0"]
    options = ["--only", "torchtitan", "cistron", *sizes, "--numbers", str(tmp_path / "numbers.jsonl")]
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "train_speed.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    numbers = {line["name"]: line for line in map(json.loads, (tmp_path / "numbers.jsonl").read_text().splitlines())}
    assert {"torchtitan", "cistron", "losses apart"} <= set(numbers), run.stdout
    assert numbers["losses apart"]["value"] < 1e-4
