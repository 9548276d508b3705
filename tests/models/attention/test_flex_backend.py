"""Whose kernels compute FlexAttention: which are chosen, which are refused and why, and that the call asks for them."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cistron.models.attention import (
    DocumentMask,
    FlashFacts,
    choose_flex_backend,
    flash_facts,
    flash_obstacles,
    flex_backend_complaints,
    has_flash_attention_4,
)
from cistron.models.attention.kernels import attend
from cistron.models.attention.masks import FlashBlocks
from cistron.models.config import FULL_ATTENTION, AttentionConfig, Executor
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, pack, random_decoder
from torch.testing import assert_close

SLIDING = AttentionConfig(mask="sliding", window=8)
REROPE = AttentionConfig(position_map="rerope", map_window=8)


def facts(*capability: int, installed: bool = True, **job: Any) -> FlashFacts:
    """Return those of a usual job, with what is other; no capability: the GPU is not here."""
    usual = {"half": True, "head_dim": 128, "attention": FULL_ATTENTION}
    return FlashFacts(capability or None, installed and bool(capability), **usual | job)  # type: ignore[arg-type]


GOOD = {
    "B200": facts(10, 0),
    "B300": facts(10, 3),
    "Thor": facts(11, 0),
    "narrow heads": facts(10, 0, head_dim=8),
    "a window": facts(10, 0, attention=SLIDING),
}
BAD = {
    "an RTX 5090": (facts(12, 0), "this GPU is sm_120"),
    "an A100": (facts(8, 0), "this GPU is sm_80"),
    "no package": (facts(10, 0, installed=False), "the package flash-attn-4 is not installed"),
    "float32": (facts(10, 0, half=False), "not in float32"),
    "wide heads": (facts(10, 0, head_dim=192), "head_dim of at most 128 in eights, and it is 192"),
    "odd heads": (facts(10, 0, head_dim=60), "head_dim of at most 128 in eights, and it is 60"),
    "a position map": (facts(10, 0, attention=REROPE), r'no gradient of the log-sum-exp, .*\.position_map = "rerope"'),
}


@pytest.mark.parametrize("case", GOOD)
def test_flash_attention_4_is_taken_on_blackwell_where_it_can_train(case: str) -> None:
    backend, reason = choose_flex_backend(GOOD[case])
    assert (backend, reason) == ("flash", "FlashAttention 4 is installed, and this is a Blackwell GPU")
    assert flex_backend_complaints("flash", "flex", GOOD[case]) == []
    assert GOOD[case].queries == 256


@pytest.mark.parametrize("case", BAD)
def test_where_it_cannot_train_triton_is_taken_and_asking_for_it_is_refused(case: str) -> None:
    wrong, expected = BAD[case]
    backend, reason = choose_flex_backend(wrong)
    assert backend == "triton"
    (said,) = flex_backend_complaints("flash", "flex", wrong)
    for text in (reason, said):
        assert re.search(expected, text)
    assert said.startswith('model.attention.flex_backend is "flash": ')
    assert said.endswith('; use "auto"')
    assert flex_backend_complaints("triton", "flex", wrong) == []


def test_every_obstacle_is_told_at_once() -> None:
    assert len(flash_obstacles(facts(10, 0, installed=False, half=False, head_dim=192, attention=REROPE))) == 4


def test_on_hopper_it_has_to_be_asked_for() -> None:
    backend, reason = choose_flex_backend(facts(9, 0))
    assert (backend, reason) == ("triton", "gradients of FlashAttention 4 were reported to be wrong on Hopper")
    assert flex_backend_complaints("flash", "flex", facts(9, 0)) == []
    assert facts(9, 0).queries == 128


def test_of_a_gpu_that_is_not_here_neither_it_nor_the_package_is_a_reason() -> None:
    backend, reason = choose_flex_backend(facts())
    assert (backend, reason) == ("triton", "no GPU is here to be asked for more")
    assert flex_backend_complaints("flash", "flex", facts()) == []
    assert len(flex_backend_complaints("flash", "flex", facts(half=False, attention=REROPE))) == 2


@pytest.mark.parametrize("executor", ["varlen", "sdpa"])
def test_whatever_is_chosen_without_flexattention_is_refused(executor: Executor) -> None:
    assert flex_backend_complaints("auto", executor, facts(10, 0)) == []
    for backend in ("triton", "flash"):
        (said,) = flex_backend_complaints(backend, executor, facts(10, 0))  # type: ignore[arg-type]
        assert said.startswith(f'model.attention.flex_backend is "{backend}", and {executor} computes attention')
        assert 'set executor = "flex"' in said


def package(folder: Path, init: str, parts: tuple[str, ...]) -> None:
    """Write the package flash_attn with some parts."""
    for path in (folder / "flash_attn", *(folder / "flash_attn" / part for part in parts)):
        path.mkdir(parents=True)
        (path / "__init__.py").write_text("")
    (folder / "flash_attn" / "__init__.py").write_text(init)


@pytest.mark.parametrize(
    ("init", "parts", "found"),
    [("", ("cute",), True), ("", ("bert_padding",), False), ("raise ImportError('undefined symbol')", ("cute",), False)],
    ids=["FlashAttention 4", "FlashAttention 2", "one that does not load"],
)
def test_the_package_is_told_from_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, parts: tuple[str, ...], found: bool
) -> None:
    package(tmp_path, init, parts)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    try:
        assert has_flash_attention_4() is found
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
            del sys.modules[name]


def test_the_facts_are_those_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(device: str) -> FlashFacts:
        return flash_facts(torch.device(device), half=False, head_dim=64, attention=SLIDING)

    job = {"half": False, "head_dim": 64, "attention": SLIDING}
    monkeypatch.setattr("cistron.models.attention.flex_backend.has_flash_attention_4", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert asked("cpu") == asked("cuda") == facts(**job)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (10, 3))
    assert asked("cuda:0") == facts(10, 3, **job)
    assert asked("cpu") == facts(**job), "a CPU beside a GPU"


class Graphs:
    """A compiler that keeps the graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.found: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        self.found.append(graph)
        return graph.forward

    def backends(self) -> list[str]:
        """Of every call of FlexAttention, what its `kernel_options` ask for."""
        call = torch.ops.higher_order.flex_attention
        return [node.args[6]["BACKEND"] for graph in self.found for node in graph.graph.nodes if node.target is call]


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("queries", "asked"), [(None, "AUTO"), (128, "FLASH"), (256, "FLASH")])
def test_a_compiled_block_asks_flexattention_for_these_kernels(queries: int | None, asked: str) -> None:
    torch.compiler.reset()
    model, graphs, batch = random_decoder(LLAMA), Graphs(), pack()
    for block in model.layers:
        block.compile(backend=graphs, fullgraph=True)
    mask = DocumentMask(EOS, PAD, executor="flex", flash_queries=queries).build(batch.sequence_ids)
    with torch.no_grad():
        logits = model(batch.tokens, batch.positions, mask)
        expected = model(batch.tokens, batch.positions, DocumentMask(EOS, PAD, executor="sdpa").build(batch.sequence_ids))
    assert set(graphs.backends()) == {asked}
    assert_close(logits[batch.text()], expected[batch.text()], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("attention", [FULL_ATTENTION, SLIDING], ids=["full", "sliding"])
def test_the_mask_for_it_has_its_blocks_and_says_what_other_masks_say(attention: AttentionConfig) -> None:
    ids = pack().sequence_ids
    masks = {
        queries: DocumentMask(EOS, PAD, executor="flex", attention=attention, flash_queries=queries).build(ids)
        for queries in (128, 256)
    }
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(*ids.shape, heads, 16, generator=draw).transpose(1, 2) for heads in (4, 2, 2))
    dense = attend(q, k, v, DocumentMask(EOS, PAD, executor="sdpa", attention=attention).build(ids))
    for queries, mask in masks.items():
        assert isinstance(mask, FlashBlocks)
        block_size = mask.blocks.BLOCK_SIZE
        assert block_size == (queries, 128)
        with torch.no_grad():
            assert_close(attend(q, k, v, mask), dense, rtol=1e-5, atol=1e-5)


def test_other_documents_recompile_nothing_with_it_either() -> None:
    torch.compiler.reset()
    model, batch = random_decoder(LLAMA), pack()
    rule = DocumentMask(EOS, PAD, executor="flex", flash_queries=256)
    for block in model.layers:
        block.compile(backend="eager", fullgraph=True)
    with torch.no_grad():
        model(batch.tokens, batch.positions, rule.build(batch.sequence_ids))
        with torch.compiler.set_stance("fail_on_recompile"):
            model(batch.tokens, batch.positions, rule.build(batch.sequence_ids.flip(0)))


@pytest.mark.parametrize("wrong", [{"executor": "sdpa"}, {"flash_queries": 200}, {"attention": REROPE}], ids=str)
def test_a_mask_for_it_that_no_kernel_could_read_is_not_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        DocumentMask(EOS, PAD, **{"executor": "flex", "flash_queries": 256} | wrong)
