"""The roofline's FLOPs are those that torch counts while a small model trains."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.models.decoder import Decoder
from cistron.trainer.config import load_config
from cistron.trainer.parallel.activation_checkpoint import apply_activation_checkpointing
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
SMALL = "--model.dim 64 --model.n_layers 4 --model.n_heads 4 --model.n_kv_heads 2 --model.head_dim 16 --model.hidden_dim 192"
ROWS, SEQ_LEN = 2, 64


@pytest.fixture(scope="module")
def roofline() -> Any:
    spec = importlib.util.spec_from_file_location("roofline", ROOT / "benchmarks" / "roofline.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["roofline"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "checkpointing",
    [["none"], ["full"], ["selective"], ["selective", "--activation_checkpoint.selective_ac_option", "3"]],
    ids=["none", "full", "by operator", "every third"],
)
def test_products_head_and_attention_are_the_counted_ones(roofline: Any, checkpointing: list[str]) -> None:
    argv = ["--config", str(ROOT / "train_configs" / "debug.toml"), *SMALL.split()]
    argv += ["--training.seq_len", str(SEQ_LEN), "--training.local_batch_size", str(ROWS)]
    config, _ = load_config([*argv, "--activation_checkpoint.mode", *checkpointing])
    work = roofline.work_of(config, 1)

    model = Decoder(roofline.decoder_of(config, 1))
    apply_activation_checkpointing(model, config.activation_checkpoint)
    tokens, positions = torch.zeros(ROWS, SEQ_LEN, dtype=torch.long), torch.arange(SEQ_LEN, dtype=torch.int32).expand(ROWS, -1)
    mask = torch.ones(ROWS, 1, SEQ_LEN, SEQ_LEN, dtype=torch.bool)
    by_operator = len(checkpointing) == 1 and checkpointing[0] == "selective"
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens, positions, mask).sum().backward()
    counts = counter.get_flop_counts()["Global"]
    products = counts[torch.ops.aten.mm]
    assert work.products + work.head == products
    if not by_operator:  # by operator the attention that is kept is a fused kernel, which this backend is not
        share = work.attention / 4 + work.attention_backward / 10 * 2  # by hand the backward pass keeps the scores: 8, not 10
        whole = (2 * SEQ_LEN) / (SEQ_LEN + 1)  # dense products count all pairs of a row, the roofline the causal ones
        assert counts[torch.ops.aten.bmm] == pytest.approx(4 * share * whole)


def test_a_document_as_long_as_the_row_is_the_most_that_attention_costs(roofline: Any) -> None:
    config = roofline.load("llama3_1b")
    whole, short = roofline.work_of(config, 1), roofline.work_of(config, 1, 512)
    assert short.attention == pytest.approx(whole.attention * 513 / 8193)
    assert short.products == whole.products
