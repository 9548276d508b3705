"""Frozen parts and adapters: what is trained and what is not, in any layout, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock, patch

import pytest
import torch
from cistron.tests.spawn import run_on_ranks
from cistron.trainer.components import make_model
from cistron.trainer.config import load_config
from cistron.trainer.distributed import join
from cistron.trainer.signals import StopRequest
from cistron.trainer.train import Trainer
from torch import nn

from .jobs import column, metrics, write_job

STEPS = 4
TIED = ["--model.qk_norm", "true", "--model.tie_embeddings", "true"]
LORA = ["--fine_tuning.lora.rank", "1", "--fine_tuning.lora.alpha", "2"]  # of rank 1: on two ranks one of them has none of A
FREEZES = {
    "lora": LORA,
    "blocks": ["--fine_tuning.freeze", '["layers.*"]', *TIED],
    "tables": ["--fine_tuning.freeze", '["output", "layers.0", "*.w?.weight"]', *TIED],
}
RECOMPUTED = "--activation_checkpoint.mode full --compile.enable true"
BY_OPERATOR = "--activation_checkpoint.mode selective --compile.enable true"


class Case(NamedTuple):
    """A way to run one of `FREEZES`."""

    what: str
    replicate: int = 1
    shard: int = 1
    tp: int = 1
    more: str = ""  # further options

    @property
    def name(self) -> str:
        degrees = f"{self.what}, replicate {self.replicate}, shard {self.shard}, tp {self.tp}"
        return ", ".join([degrees, *self.more.split("--")[1:]])

    @property
    def overrides(self) -> list[str]:
        degrees = [
            ("data_parallel_replicate_degree", self.replicate),
            ("data_parallel_shard_degree", self.shard),
            ("tensor_parallel_degree", self.tp),
        ]
        layout = [word for key, degree in degrees for word in (f"--parallelism.{key}", str(degree))]
        return [*FREEZES[self.what], *layout, *self.more.split()]


CASES = [
    Case("lora", shard=2),
    Case("lora", tp=2),
    Case("lora", replicate=2, more=BY_OPERATOR),
    Case("lora", tp=2, more=RECOMPUTED),
    Case("blocks", shard=2, more=RECOMPUTED),
    Case("blocks", tp=2),
    Case("tables", replicate=2, more=BY_OPERATOR),
    Case("tables", tp=2, more=RECOMPUTED),
]
ALONE = [Case(what) for what in FREEZES]


def run_cases(config_path: str, cases: list[tuple[Any, ...]]) -> None:
    """Run the job in each layout from the same checkpoint, in processes that have joined; it saves its last step."""
    for case in (Case(*plain) for plain in cases):
        folder = Path(config_path).parent / case.name
        config, _ = load_config(["--config", config_path, "--job.dump_folder", str(folder), *case.overrides])
        trainer = Trainer(config, join(config), StopRequest())
        trainer.prompt = []
        trained = names(make_model(config, trainer.decoder_config), lambda p: p.requires_grad)
        assert names(trainer.model, trainer.optimizer.state.__contains__) == trained
        # just before gradients are cleared: every trained parameter has one, and no frozen one
        seen: list[list[str]] = []
        with patch.object(trainer.optimizer, "zero_grad", Mock(side_effect=partial(look_at_gradients, trainer, seen))):
            trainer.train()
        assert seen == [trained] * STEPS
        trainer.close()
        torch.compiler.reset()


def look_at_gradients(trainer: Trainer, seen: list[list[str]]) -> None:
    """Note which parameters have one, and clear them."""
    seen.append(names(trainer.model, lambda p: p.grad is not None))
    trainer.model.zero_grad()


def names(model: nn.Module, which: Callable[[nn.Parameter], bool]) -> list[str]:
    """Of the parameters that `which` picks, without what checkpointing inserts."""
    return [name.replace("_checkpoint_wrapped_module.", "") for name, p in model.named_parameters() if which(p)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job that has run in all layouts."""
    config = write_job(tmp_path_factory.mktemp("fine_tuning"), steps=STEPS)
    for processes in (1, 2):
        cases = [case for case in ALONE + CASES if case.replicate * case.shard * case.tp == processes]
        run_on_ranks(run_cases, processes, str(config), [tuple(case) for case in cases])
    return config


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_layout_takes_the_steps_of_one_process(job: Path, case: Case) -> None:
    one, other = metrics(job, Case(case.what).name), metrics(job, case.name)
    assert column(other, "rows_hash") == column(one, "rows_hash")
    assert column(other, "loss") == pytest.approx(column(one, "loss"), rel=1e-5)
    assert column(other, "grad_norm") == pytest.approx(column(one, "grad_norm"), rel=1e-4)
