"""What the decoder does beside its mathematics: where its frequencies are, and which tensors it copies."""

from __future__ import annotations

from typing import Any

import torch
from cistron.models.attention import DocumentMask
from cistron.models.config import RopeConfig
from cistron.models.decoder import Decoder
from cistron.models.positions import rope_table
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
