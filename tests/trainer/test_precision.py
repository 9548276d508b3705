"""Mixed precision: bfloat16 where it is meant, float32 where it matters."""

from pathlib import Path

import pytest
import torch
from cistron.trainer.config import load_config
from cistron.trainer.distributed import join
from cistron.trainer.signals import StopRequest
from cistron.trainer.train import Trainer

from .jobs import column, metrics, train_here, write_job


def test_activations_are_bfloat16_but_cosines_logits_and_master_weights_float32(tmp_path: Path) -> None:
    options = ["--config", str(write_job(tmp_path, steps=1)), "--training.mixed_precision_param", "bfloat16"]
    config, _ = load_config(options)
    trainer = Trainer(config, join(config), StopRequest())
    seen: dict[str, torch.dtype] = {}

    def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.update(x=inputs[0].dtype, cos=inputs[1].dtype, weight=module.wq.weight.dtype)

    trainer.model.layers[0].attention.register_forward_pre_hook(look)
    trainer.model.register_forward_hook(lambda _m, _i, logits: seen.update(logits=logits.dtype))
    trainer.train()
    trainer.close()
    assert seen["x"] == seen["weight"] == torch.bfloat16
    assert seen["cos"] == seen["logits"] == torch.float32
    assert {p.dtype for group in trainer.optimizer.param_groups for p in group["params"]} == {torch.float32}


def test_a_bfloat16_run_follows_the_float32_run(tmp_path: Path) -> None:
    config = write_job(tmp_path)
    train_here(config)
    folder = str(tmp_path / "bf16")
    train_here(config, "--job.dump_folder", folder, "--training.mixed_precision_param", "bfloat16")
    assert column(metrics(config, "bf16"), "loss") == pytest.approx(column(metrics(config), "loss"), rel=0.05)
