"""From `[model.attention]` to the mask that asks for FlexAttention's kernels, and to what a run says of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.models.attention import FlashFacts
from cistron.models.attention.masks import FlashBlocks
from cistron.tests.helpers.jobs import write_job
from cistron.trainer.build import attention_said, make_decoder_config, make_tokenizer, training_mask
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.errors import ConfigError

CUDA = torch.device("cuda", 0)
Gpu = Callable[..., None]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Return what pretends a GPU of a compute capability, with the package or without."""

    def pretend(*capability: int, installed: bool = True) -> None:
        def facts(device: torch.device, **job: Any) -> FlashFacts:
            return FlashFacts(capability, installed, **job)  # type: ignore[arg-type]

        monkeypatch.setattr("cistron.trainer.build.parts.flash_facts", facts)

    return pretend


def job(folder: Path, *overrides: str) -> JobConfig:
    half = ("--training.mixed_precision_param", "bfloat16")
    return load_config(["--config", str(write_job(folder)), *half, *overrides])[0]


@pytest.mark.parametrize(
    ("asked", "capability", "queries", "said"),
    [
        ("auto", (10, 0), 256, "kernels: flash, FlashAttention 4 is installed, and this is a Blackwell GPU"),
        ("auto", (9, 0), None, "kernels: triton, gradients of FlashAttention 4 were reported to be wrong on Hopper"),
        ("auto", (8, 0), None, "kernels: triton, FlashAttention 4 trains on sm_90 and sm_100 to sm_110, and this GPU is sm_80"),
        ("triton", (10, 0), None, "kernels: triton, as model.attention.flex_backend says"),
        ("flash", (9, 0), 128, "kernels: flash, as model.attention.flex_backend says"),
        ("flash", (10, 3), 256, "kernels: flash, as model.attention.flex_backend says"),
    ],
)
def test_the_option_decides_what_the_mask_is_made_for_and_the_run_says_why(
    tmp_path: Path, gpu: Gpu, asked: str, capability: tuple[int, int], queries: int | None, said: str
) -> None:
    gpu(*capability)
    config = job(tmp_path, "--model.attention.flex_backend", asked)
    mask = training_mask(config, make_tokenizer(config), CUDA)
    assert (mask.executor, mask.flash_queries) == ("flex", queries)
    executor, why = attention_said(config, CUDA)
    assert executor == "flex"
    assert why.endswith(f"; {said}")
    blocks = mask.build(torch.zeros(1, 300, dtype=torch.int32))
    assert isinstance(blocks, FlashBlocks) is (queries is not None)


def test_without_flexattention_nothing_is_said_of_its_kernels(tmp_path: Path, gpu: Gpu) -> None:
    gpu(10, 0)
    executor, why = attention_said(job(tmp_path), torch.device("cpu"))
    assert executor != "flex"
    assert "kernels" not in why


def test_kernels_that_are_not_there_are_refused_with_the_reason(tmp_path: Path, gpu: Gpu) -> None:
    config = job(tmp_path, "--model.attention.flex_backend", "flash")
    for capability, installed, reason in (
        ((10, 0), False, "the package flash-attn-4 is not installed"),
        ((12, 0), True, "this GPU is sm_120"),
    ):
        gpu(*capability, installed=installed)
        with pytest.raises(ConfigError, match=f'flex_backend is "flash": .*{reason}; use "auto"'):
            training_mask(config, make_tokenizer(config), CUDA)


def test_the_decoder_does_not_know_of_it(tmp_path: Path) -> None:
    config = job(tmp_path, "--model.attention.flex_backend", "flash", "--model.attention.executor", "flex")
    decoder = make_decoder_config(config, make_tokenizer(config))
    assert decoder == make_decoder_config(job(tmp_path / "other"), make_tokenizer(config))
    assert "flex_backend" not in str(decoder.table())
