"""float8: what is converted, what is refused, and that training goes on as before."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from cistron.tests.helpers.jobs import column, metrics, refusal, train, train_here, write_job

HAS_TORCHAO = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not HAS_TORCHAO, reason="torchao is not installed: pip install '.[float8]'")
WIDE = ("--model.head_dim", "16")  # so that all sides are multiples of 16, and of 32 where two ranks split them
EMULATED = (*WIDE, "--float8.enable", "true", "--float8.emulate", "true")
ROWWISE = ("--float8.recipe_name", "rowwise")


@needs_torchao
@pytest.mark.parametrize(
    ("processes", "overrides"),
    [(1, ROWWISE), (2, ()), (2, ("--parallelism.tensor_parallel_degree", "2"))],
    ids=["rowwise", "fsdp", "tensor_parallel"],
)
def test_an_emulated_run_follows_the_float32_run(tmp_path: Path, processes: int, overrides: tuple[str, ...]) -> None:
    config = write_job(tmp_path, steps=6)
    train_here(config, *WIDE)
    train(config, *EMULATED, *overrides, "--job.dump_folder", str(tmp_path / "float8"), processes=processes)
    exact, rough = column(metrics(config), "loss"), column(metrics(config, "float8"), "loss")
    assert rough == pytest.approx(exact, rel=0.02)
    assert abs(rough[1] / exact[1] - 1) > 1e-5, "something was rounded"


@needs_torchao
def test_a_filter_that_matches_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(capsys, write_job(tmp_path), *EMULATED, "--float8.filter_fqns", '["output", "atention"]')
    assert "float8.filter_fqns: no linear layer's name contains ['atention']" in message
    assert "layers.0.attention.wq" in message


def test_what_float8_cannot_do_is_refused_all_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("--float8.enable", "true", "--float8.filter_fqns", '["wq"]', "--model.hidden_dim", "72")
    message = refusal(capsys, write_job(tmp_path), *overrides, "--training.seq_len", "60")
    assert ("needs torchao, which is not installed: pip install" in message) == (not HAS_TORCHAO)
    assert "this device (cpu) has no float8 products; they need a GPU of compute capability 8.9" in message
    assert "float8.filter_fqns = ['wq']: must hold \"output\"" in message
    assert "model.hidden_dim = 72: must be a multiple of 16" in message
    assert "training.seq_len = 60: must be a multiple of 16" in message
    assert "model.n_heads x model.head_dim" not in message, "32 is one"
