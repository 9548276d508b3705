"""torchtitan as a contender begins beside the lowest torch that is allowed, and without `datasets`."""

import importlib
import sys
from pathlib import Path

import pytest
import torch.distributed.fsdp


def test_names_that_torchtitan_imports_and_does_not_use_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    monkeypatch.delattr(torch.distributed.fsdp, "DataParallelMeshDims", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with monkeypatch.context() as context:
        for name in ("datasets", "datasets.distributed", "interleaved", "train_torchtitan"):
            context.delitem(sys.modules, name, raising=False)
        importlib.import_module("train_torchtitan").complete_imports()
        namespace: dict[str, object] = {}
        exec("from torch.distributed.fsdp import DataParallelMeshDims", namespace)
        exec("from datasets.distributed import split_dataset_by_node", namespace)
        assert isinstance(namespace["DataParallelMeshDims"], type)
        for name in ("datasets", "datasets.distributed", "interleaved", "train_torchtitan"):
            sys.modules.pop(name, None)
    if hasattr(torch.distributed.fsdp, "DataParallelMeshDims"):
        del torch.distributed.fsdp.DataParallelMeshDims
