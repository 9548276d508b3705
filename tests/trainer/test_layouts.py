"""The same job on other processes takes the same steps: the same rows in the same order, the same losses."""

from pathlib import Path

import pytest

from .jobs import column, metrics, train, train_here, write_job

TENSOR = ("--parallelism.tensor_parallel_degree", "2")
LAYOUTS = {
    "fsdp_two_workers": (2, ("--data.num_workers", "2")),
    "tensor": (2, TENSOR),
    "fsdp_tensor": (4, TENSOR),
    "hsdp_checkpointing": (4, ("--parallelism.data_parallel_replicate_degree", "2", "--activation_checkpoint.mode", "full")),
    "compiled_fsdp": (2, ("--compile.enable", "true")),
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with QK-norm and tied embeddings, which are what tensor parallelism most easily gets wrong; run on one process."""
    config = write_job(tmp_path_factory.mktemp("layouts"))
    text = config.read_text().replace("[data]\n", "qk_norm = true\ntie_embeddings = true\n[data]\n", 1)
    config.write_text(text)
    train_here(config)
    return config


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_has_the_same_rows_and_the_same_loss_curve_as_one_process(job: Path, layout: str) -> None:
    processes, overrides = LAYOUTS[layout]
    train(job, "--job.dump_folder", str(job.parent / layout), *overrides, processes=processes)
    one, other = metrics(job), metrics(job, layout)
    assert len(one) == 20
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert column(other, "loss") == pytest.approx(column(one, "loss"), rel=1e-4)
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-3)
    assert one[-1]["loss"] < 0.7 * one[0]["loss"], "twenty steps teach the model something"
