"""A head's outputs are those of each document alone: whatever is packed with it, and as Hugging Face computes them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cistron.models.attention import DocumentMask
from cistron.models.config import DecoderConfig
from cistron.models.decoder import Decoder
from cistron.models.errors import ModelError
from cistron.models.huggingface import hf_names
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, Packed, pack, random_decoder
from cistron.trainer.estimates import row_flops
from torch import Tensor
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForSequenceClassification

CAUSAL = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
POOL = pytest.mark.parametrize("pool", ["mean", "last"])
OUTPUTS = pytest.mark.parametrize("outputs", [1, 3], ids=["value", "classes"])


def labelled(batch: Packed, outputs: int) -> tuple[Tensor, Tensor]:
    """A class, or 0 and a value, at the last token of each document."""
    labels, values = torch.full_like(batch.tokens, -100), torch.zeros(batch.tokens.shape)
    generator = torch.Generator().manual_seed(7)
    for row, where in batch.documents:
        labels[row, where.stop - 1] = int(torch.randint(outputs, (), generator=generator)) if outputs > 1 else 0
        values[row, where.stop - 1] = torch.randn((), generator=generator)
    return labels, values


def alone(model: Decoder, tokens: Tensor) -> Tensor:
    """Outputs [outputs] of one document, from the hidden states of a row of its own."""
    length = len(tokens)
    mask = torch.ones(1, 1, length, length, dtype=torch.bool)
    states: list[Tensor] = []
    hook = model.norm.register_forward_hook(lambda _module, _inputs, out: states.append(out))
    model(tokens[None], torch.arange(length, dtype=torch.int32)[None], mask.tril() if model.config.causal else mask)
    hook.remove()
    pooled = states[0][0].mean(0) if model.config.pool == "mean" else states[0][0, -1]
    return model.score.weight @ pooled


@CAUSAL
@POOL
@OUTPUTS
def test_a_packed_document_has_the_outputs_loss_and_gradients_that_it_has_alone(causal: bool, pool: str, outputs: int) -> None:
    model = random_decoder(LLAMA.replace(causal=causal, head_outputs=outputs, pool=pool)).double()
    batch = pack()
    labels, values = labelled(batch, outputs)
    weights = torch.linspace(0.5, 2, labels.numel()).view(labels.shape)
    mask = DocumentMask(EOS, PAD, causal=causal, executor="sdpa").build(batch.sequence_ids)
    packed = model(batch.tokens, batch.positions, mask)
    losses = model(batch.tokens, batch.positions, mask, labels, weights, values)
    losses.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()

    total = torch.zeros((), dtype=torch.float64)
    for row, where in batch.documents:
        expected = alone(model, batch.tokens[row, where])
        assert_close(packed[row, where], expected.expand(where.stop - where.start, -1), rtol=1e-9, atol=1e-9)
        end = where.stop - 1
        loss = F.cross_entropy(expected, labels[row, end]) if outputs > 1 else (expected[0] - values[row, end]) ** 2
        assert_close(losses[row, end], loss * weights[row, end], rtol=1e-9, atol=1e-9)
        total = total + loss * weights[row, end]
    total.backward()
    assert_close(gradients, {name: p.grad for name, p in model.named_parameters()}, rtol=1e-9, atol=1e-9)
    assert torch.count_nonzero(losses) == len(batch.documents)


def test_a_head_on_the_last_token_is_that_of_hugging_face() -> None:
    model = random_decoder(LLAMA.replace(head_outputs=3, pool="last"))
    theirs = LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=LLAMA.vocab_size,
            hidden_size=LLAMA.dim,
            intermediate_size=LLAMA.hidden_dim,
            num_hidden_layers=LLAMA.n_layers,
            num_attention_heads=LLAMA.n_heads,
            num_key_value_heads=LLAMA.n_kv_heads,
            head_dim=LLAMA.head_dim,
            rms_norm_eps=LLAMA.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": LLAMA.rope.theta},
            num_labels=3,
            pad_token_id=PAD,
        )
    ).eval()
    names = hf_names(LLAMA) | {"score.weight": "score.weight"}
    theirs.load_state_dict({names[name]: value for name, value in model.state_dict().items()}, strict=True)
    batch = pack()
    mask = DocumentMask(EOS, PAD, executor="sdpa").build(batch.sequence_ids)
    ours = model(batch.tokens, batch.positions, mask)
    for row, where in batch.documents:
        with torch.no_grad():
            assert_close(ours[row, where.start], theirs(batch.tokens[row, where][None]).logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_with_a_head_has_no_output_projection_and_counts_its_parameters(tied: bool) -> None:
    config: DecoderConfig = LLAMA.replace(head_outputs=3, tie_embeddings=tied)
    model = Decoder(config)
    assert not hasattr(model, "output")
    assert config.parameter_count() == sum(p.numel() for p in model.parameters())
    blocks = sum(p.numel() for p in model.layers.parameters())
    assert row_flops(config, 0, 1) == 6 * (blocks + config.dim + 3 * config.dim)
    with pytest.raises(ModelError, match="pool is 'max'"):
        config.replace(pool="max")
