"""The executors compute one and the same attention; those that cannot run somewhere say so."""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import pairwise, product

import pytest
import torch
from cistron.models.attention import DocumentMask, choose_executor, executor_complaints, has_flash_attention_3
from cistron.models.attention.kernels import _flash, attend
from cistron.models.attention.masks import DocumentOffsets
from cistron.models.config import AttentionConfig, Executor
from cistron.tests.helpers.packed import EOS, PAD, pack
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def _qkv(batch: int, seq_len: int, heads: int = 4, kv_heads: int = 2, head_dim: int = 16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, n, seq_len, head_dim) for n in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def _written_out(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Softmax attention of one document, [heads, length, head_dim], in float64 and one line per formula."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(q.shape[0] // x.shape[0], dim=0) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
    return (scores.softmax(-1) @ v).float()


@CAUSAL
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("executor", ["sdpa", "flex"])
def test_each_document_attends_as_if_alone(executor: str, causal: bool) -> None:
    batch = pack()
    q, k, v = _qkv(*batch.tokens.shape)
    with torch.no_grad():
        out = attend(q, k, v, DocumentMask(EOS, PAD, causal, executor).build(batch.sequence_ids))
    for row, where in batch.documents:
        alone = _written_out(*(x[row, :, where] for x in (q, k, v)), causal)
        assert_close(out[row, :, where], alone, rtol=1e-5, atol=1e-5)


@CAUSAL
def test_the_segments_of_the_offsets_attend_as_the_dense_mask_does(causal: bool) -> None:
    """What varlen is told: attention over each interval of the flattened batch, empty ones included."""
    ids = pack().sequence_ids
    q, k, v = _qkv(*ids.shape)
    offsets = DocumentMask(EOS, PAD, causal, "varlen").build(ids)
    assert offsets.causal is causal
    assert (offsets.cu_seqlens.diff() >= 0).all()
    assert offsets.cu_seqlens.diff().max() <= offsets.max_seqlen

    flat = [x.transpose(1, 2).flatten(0, 1).transpose(0, 1) for x in (q, k, v)]
    bounds = offsets.cu_seqlens.tolist()
    pieces = [_written_out(*(x[:, a:b] for x in flat), causal) for a, b in pairwise(bounds)]
    by_segment = torch.cat(pieces, dim=1).transpose(0, 1).unflatten(0, ids.shape).transpose(1, 2)
    dense = attend(q, k, v, DocumentMask(EOS, PAD, causal, "sdpa").build(ids))
    assert_close(dense, by_segment, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
def test_document_by_document_gives_what_a_mask_gives_and_its_gradients(causal: bool) -> None:
    ids = pack().sequence_ids
    inputs = [[x.requires_grad_() for x in _qkv(*ids.shape)] for _ in range(2)]
    masks = [DocumentMask(EOS, PAD, causal, executor).build(ids) for executor in ("sdpa", "varlen")]
    dense, varlen = (attend(*x, mask) for x, mask in zip(inputs, masks, strict=True))
    assert_close(varlen, dense, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(dense)
    for output in (dense, varlen):
        output.backward(upstream)
    for one, other in zip(*inputs, strict=True):
        assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_chosen_executor_can_train(device: str, compiled: bool, half: bool) -> None:
    for spread in (True, False):
        executor, reason = choose_executor(torch.device(device), half=half, compiled=compiled, spread=spread)
        assert reason
        assert executor == ("flex" if device == "cuda" else "sdpa" if compiled or spread else "varlen")
        assert executor_complaints(executor, torch.device(device), half=half, compiled=compiled) == []


def test_a_cpu_has_no_flash_attention_3_beside_a_gpu_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert not has_flash_attention_3(torch.device("cpu"))


@pytest.mark.parametrize("checkpointed", [False, True])
def test_offsets_of_any_number_of_documents_of_any_length_are_compiled_for_once(checkpointed: bool) -> None:
    """Both sizes follow the documents; what is compiled for the first batch serves all others, backward too."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")

    def block(q: Tensor, k: Tensor, v: Tensor, mask: DocumentOffsets) -> Tensor:
        use = partial(checkpoint, _flash, use_reentrant=False) if checkpointed else _flash
        return use(q, k, v, mask)

    compiled = torch.compile(block, backend=counter, dynamic=False, fullgraph=True)
    sizes = set()
    for length in (512, 2048, 100, 60, 30, 20, 10, 5, 3, 1):
        ids = (torch.arange(2048) // length).int()[None]
        mask = DocumentMask(EOS, PAD, executor="varlen").build(ids, "meta")
        sizes.add((len(mask.cu_seqlens), mask.max_seqlen))
        q, k, v = (x.to("meta").requires_grad_() for x in _qkv(1, 2048))
        out = compiled(q, k, v, mask)
        assert out.shape == q.shape
        out.sum().backward()
        assert q.grad is not None
    assert len(sizes) == 9
    assert counter.frame_count == 1


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_windows_and_maps_are_for_flex_and_sdpa_alone(device: str) -> None:
    for half, compiled in product((True, False), repeat=2):
        executor, reason = choose_executor(torch.device(device), half=half, compiled=compiled, spread=False, plain=False)
        assert executor == ("flex" if device == "cuda" else "sdpa")
        assert "position map" in reason
    rerope, sliding = AttentionConfig(position_map="rerope", map_window=8), AttentionConfig(mask="sliding", window=8)
    for attention, named in ((rerope, 'position_map = "rerope"'), (sliding, 'mask = "sliding"')):
        asked = {"half": True, "compiled": False, "attention": attention}
        assert executor_complaints("sdpa", torch.device(device), **asked) == []
        (said,) = executor_complaints("varlen", torch.device(device), **asked)
        assert re.search(rf'executor is "varlen" with model\.attention\.{named}.* use "auto"', said)


@pytest.mark.parametrize("spread", [True, False])
def test_flash_attention_3_is_chosen_where_it_is_installed_and_can_compute_this(
    spread: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cistron.models.attention.kernels.has_flash_attention_3", lambda device: True)
    for half in (True, False):
        executor, _ = choose_executor(torch.device("cuda"), half=half, compiled=True, spread=spread)
        assert executor == ("varlen" if half and not spread else "flex")


@pytest.mark.parametrize(
    ("executor", "device", "compiled", "reason"),
    [
        ("flex", "cpu", False, "no backward"),
        ("varlen", "cpu", True, "document by document"),
        ("varlen", "cuda", False, "float16 or bfloat16"),
    ],
)
def test_an_executor_that_cannot_train_is_refused(executor: Executor, device: str, compiled: bool, reason: str) -> None:
    (said,) = executor_complaints(executor, torch.device(device), half=False, compiled=compiled)
    assert re.search(rf"model\.attention\.executor is .{executor}.*{reason}", said)


def test_flex_on_the_cpu_really_has_no_backward() -> None:
    """Why `executor_complaints` refuses it; when this fails, torch has learned it and the refusal can go."""
    ids = pack().sequence_ids
    q, k, v = (x.requires_grad_() for x in _qkv(*ids.shape))
    with pytest.raises(NotImplementedError):
        attend(q, k, v, DocumentMask(EOS, PAD, executor="flex").build(ids))
