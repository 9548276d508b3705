"""Compiled blocks compute what eager ones do and are compiled before step 2 ends; layouts: test_layouts.py."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch._functorch.config
from cistron.tests.helpers.jobs import column, graphs_alone, metrics, train_here, write_job
from cistron.trainer.config import load_config
from cistron.trainer.processes import StopRequest, join
from cistron.trainer.train import Trainer
from torch._dynamo.utils import counters

pytestmark = pytest.mark.compiled
COMPILED = ("--compile.enable", "true")


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Twelve steps on documents of 2 to 640 bytes, rows of 600: padded rows are 128, 256, 384, 512 or 600 wide."""
    config = write_job(tmp_path, steps=12)
    draw = random.Random(3)
    for part in range(2):
        lines = (json.dumps({"text": "ACGT" * draw.randint(1, 160)}) for _ in range(100))
        (tmp_path / "corpus" / f"{part}.jsonl").write_text("\n".join(lines))
    text = config.read_text().replace("seq_len = 64\nlocal_batch_size = 4", "seq_len = 600\nlocal_batch_size = 1")
    config.write_text(text.replace("global_batch_size = 8", "global_batch_size = 2").replace("interval = 4", "enable = false"))
    return config


def compilations(config: Path, *overrides: str) -> tuple[list[int], set[int]]:
    """Graphs compiled until the end of each step, and the widths of all batches."""
    configuration, _ = load_config(["--config", str(config), *COMPILED, *overrides])
    trainer = Trainer(configuration, join(configuration), StopRequest())
    graphs, widths = [], set()
    optimize = trainer.optimize

    def step(batches: list, totals: object) -> object:  # type: ignore[type-arg]
        widths.update(batch.tokens.shape[1] for batch in batches)
        outcome = optimize(batches, totals)  # type: ignore[arg-type]
        graphs.append(counters["stats"]["unique_graphs"])
        return outcome

    trainer.optimize = step  # type: ignore[method-assign, assignment]
    trainer.train()
    trainer.close()
    return graphs, widths


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_nothing_is_compiled_after_the_second_step_whatever_the_documents(job: Path, layout: str) -> None:
    train_here(job, "--data.layout", layout)
    with graphs_alone() if layout == "packed" else nullcontext():  # padded goes on to machine code, which takes a minute
        graphs, widths = compilations(job, "--data.layout", layout, "--job.dump_folder", str(job.parent / "compiled"))
    assert len(graphs) == 12
    assert graphs[1] > 0
    assert set(graphs[1:]) == {graphs[1]}
    assert widths == ({600} if layout == "packed" else {128, 256, 384, 512, 600})
    assert column(metrics(job, "compiled"), "loss") == pytest.approx(column(metrics(job), "loss"), rel=1e-4)
