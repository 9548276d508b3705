"""What the decoder does beside its mathematics: where its frequencies are, and which tensors it copies."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cistron.models.attention import DocumentMask, kernels
from cistron.models.config import RopeConfig
from cistron.models.decoder import Decoder
from cistron.models.positions import rope_table, rotary_tables
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, pack, random_decoder
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class _FromTheHost(TorchDispatchMode):
    """Shapes of CPU tensors that were copied to another device."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in args if isinstance(x, Tensor)]
        if isinstance(result, Tensor) and result.device.type != "cpu" and any(x.device.type == "cpu" for x in tensors):
            self.shapes += [x.shape for x in tensors]
        return result


def test_frequencies_are_copied_to_the_device_once() -> None:
    with torch.device("meta"):
        model = Decoder(LLAMA)
    batch = pack()
    mask = DocumentMask(EOS, PAD).build(batch.sequence_ids, "meta")
    tokens, positions = batch.tokens.to("meta"), batch.positions.to("meta")
    copied = []
    for _ in range(3):
        with _FromTheHost() as seen:
            model(tokens, positions, mask)
        copied.append(seen.shapes)
    assert copied == [[model.inv_freq.shape], [], []]
    model.set_positions(RopeConfig(theta=5e5), model.config.attention, 0)
    with _FromTheHost() as seen:
        model(tokens, positions, mask)
    assert seen.shapes == [model.inv_freq.shape]


def test_frequencies_survive_what_parameters_lose_and_are_in_no_checkpoint() -> None:
    expected, _ = rope_table(LLAMA.rope, LLAMA.head_dim, 0)
    with torch.device("meta"):
        model = Decoder(LLAMA)
    model.frequencies(torch.device("meta"))  # of a forward pass for shapes alone
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    assert torch.equal(model.frequencies(torch.device("cpu")), expected)
    assert not any("freq" in name for name in model.state_dict())


def test_other_frequencies_are_used_at_once() -> None:
    model, batch = random_decoder(LLAMA), pack()
    mask = DocumentMask(EOS, PAD).build(batch.sequence_ids)
    with torch.no_grad():
        before = model(batch.tokens, batch.positions, mask)
        model.set_positions(RopeConfig(theta=100.0), model.config.attention, 0)
        assert not torch.equal(model(batch.tokens, batch.positions, mask), before)
        model.set_positions(LLAMA.rope, model.config.attention, 0)
        assert torch.equal(model(batch.tokens, batch.positions, mask), before)


class _Copies(TorchDispatchMode):
    """Copies of whole tensors that only change where they lie or how, outside of the optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.clone, torch.ops.aten.contiguous):
            self.found.append(f"{func} {tuple(args[0].shape)}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("executor", ["sdpa", "varlen", "flash"])
@pytest.mark.parametrize("causal", [True, False])
def test_attention_copies_no_tensor_to_lay_it_out_anew(causal: bool, executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward; flash attention is that of CUDA, of which torch knows the shapes on the meta device."""
    batch, device = pack(), "cpu"
    mask = DocumentMask(EOS, PAD, causal, "sdpa" if executor == "sdpa" else "varlen").build(batch.sequence_ids)
    model = random_decoder(LLAMA.replace(causal=causal))
    if executor == "flash":
        if not kernels._VARLEN_HAS_GQA:
            pytest.skip("flash attention of torch 2.11 has no grouped heads: keys and values are repeated")
        monkeypatch.setattr(kernels, "_varlen", kernels._flash)
        model, device = model.to("meta"), "meta"
        mask = mask._replace(cu_seqlens=mask.cu_seqlens.to("meta"))
    x = torch.randn(*batch.tokens.shape, LLAMA.dim, device=device).requires_grad_()
    positions = batch.positions.to(device)
    rotary = rotary_tables(LLAMA.attention, LLAMA.rope, positions, model.inv_freq.to(device), model.attention_factor)
    with _Copies() as copies:
        out = model.layers[0].attention(x, rotary, mask)
        out.backward(torch.empty_like(out))
    assert copies.found == []


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_is_given_what_the_projections_laid_out_and_its_output_lies_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, model, found = pack(), random_decoder(LLAMA), []
    mask, flex = DocumentMask(EOS, PAD, True, "flex").build(batch.sequence_ids), kernels._flex

    def watched(*given: Any) -> Tensor:
        out = flex(*given)
        found.extend(x.transpose(1, 2).is_contiguous() for x in (*given[:3], out))
        return out

    monkeypatch.setattr(kernels, "_flex", watched)
    with torch.no_grad():
        model(batch.tokens, batch.positions, mask)
    assert found == [True] * 4 * LLAMA.n_layers
