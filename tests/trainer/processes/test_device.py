"""A run on the CPU of a machine that has something faster says so."""

import sys
from pathlib import Path

import pytest
import torch
from cistron.tests.helpers.jobs import train_here, write_job
from cistron.trainer.processes import device_remarks

JOIN = sys.modules["cistron.trainer.processes.join"]  # the room names its function so too


def lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a run of one step says that is about the device."""
    train_here(write_job(tmp_path, steps=1), "--checkpoint.enable", "false")
    return [line for line in capsys.readouterr().out.splitlines() if "trains on the CPU" in line]


def test_a_mac_says_once_that_its_gpu_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    (line,) = lines(tmp_path, capsys)
    assert "this Mac's GPU (MPS) is not used, as neither FSDP2 nor the attention and loss kernels were ever tried" in line


def test_elsewhere_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(JOIN, "NVIDIA_DRIVER", tmp_path / "none")
    assert lines(tmp_path, capsys) == []


def test_a_driver_that_torch_cannot_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JOIN, "NVIDIA_DRIVER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    (line,) = device_remarks(torch.device("cpu"))
    assert f"torch {torch.__version__}, built without CUDA, finds no GPU" in line
    assert device_remarks(torch.device("cuda")) == []
