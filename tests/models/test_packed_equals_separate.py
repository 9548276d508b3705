"""A packed row computes what its documents compute one by one: logits, loss, gradients; own and Hugging Face's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cistron.models.attention import DocumentMask
from cistron.models.config import DecoderConfig
from cistron.models.decoder import Decoder
from cistron.models.huggingface import hf_names
from cistron.tests.helpers.packed import CONFIGS, EOS, LLAMA, PAD, QWEN, Packed, mean_loss, pack, random_decoder
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
ALL = [pytest.param(config, id=name) for name, config in CONFIGS.items()]


def _bidirectional(batch: Packed) -> Packed:
    """The same rows with the token itself as the target of every third place, as a masked language model has it."""
    labels = torch.where(torch.arange(batch.tokens.shape[1]) % 3 == 0, batch.tokens, -100)
    return replace(batch, labels=torch.where(batch.text(), labels, -100))


def _batch_for(config: DecoderConfig) -> Packed:
    return pack() if config.causal else _bidirectional(pack())


def _run_packed(model: Decoder, batch: Packed, executor: str = "sdpa") -> Tensor:
    mask = DocumentMask(EOS, PAD, causal=model.config.causal, executor=executor)
    return model(batch.tokens, batch.positions, mask.build(mask.sequence_ids(batch.tokens)))


def _run_alone(model: Decoder, tokens: Tensor) -> Tensor:
    """Logits [length, vocab] of one document in a row of its own, under no mask or torch's own causal one."""
    length = len(tokens)
    everything = torch.ones(1, 1, length, length, dtype=torch.bool)
    mask = everything.tril() if model.config.causal else everything
    return model(tokens[None], torch.arange(length, dtype=torch.int32)[None], mask)[0]


def _hugging_face(model: Decoder) -> nn.Module:
    """Hugging Face's model of the same shape, carrying the same weights."""
    config = model.config
    config_class, model_class = (Qwen3Config, Qwen3ForCausalLM) if config.qk_norm else (LlamaConfig, LlamaForCausalLM)
    theirs = model_class(
        config_class(
            vocab_size=config.vocab_size,
            hidden_size=config.dim,
            intermediate_size=config.hidden_dim,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            head_dim=config.head_dim,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=None,
            eos_token_id=EOS,
        )
    )
    ours = model.state_dict()
    theirs.load_state_dict({name: ours[key].clone() for key, name in hf_names(config).items()}, strict=True)
    return theirs.eval()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("config", ALL)
def test_packed_rows_equal_their_documents_run_one_by_one(config: DecoderConfig, causal: bool) -> None:
    config = config.replace(causal=causal)
    batch = _batch_for(config)
    targets = int((batch.labels >= 0).sum())
    packed, separate = random_decoder(config), random_decoder(config)

    logits = _run_packed(packed, batch)
    loss = mean_loss(logits, batch.labels, targets)
    loss.backward()
    total = 0.0
    for row, where in batch.documents:
        alone = _run_alone(separate, batch.tokens[row, where])
        assert_close(logits[row, where], alone, **TOLERANCE)
        part = mean_loss(alone, batch.labels[row, where], targets)
        part.backward()
        total += part.item()

    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert_close(_gradients(packed), _gradients(separate), **TOLERANCE)


@pytest.mark.parametrize("config", ALL)
def test_packed_rows_equal_hugging_face_on_each_document(config: DecoderConfig) -> None:
    batch = pack()
    targets = int((batch.labels >= 0).sum())
    ours = random_decoder(config)
    theirs = _hugging_face(ours)

    logits = _run_packed(ours, batch)
    loss = mean_loss(logits, batch.labels, targets)
    loss.backward()
    total = 0.0
    for row, where in batch.documents:
        positions = torch.arange(where.stop - where.start)[None]
        alone = theirs(batch.tokens[row, where][None], position_ids=positions).logits[0]
        assert_close(logits[row, where], alone, **TOLERANCE)
        part = mean_loss(alone, batch.labels[row, where], targets)
        part.backward()
        total += part.item()

    assert loss.item() == pytest.approx(total, rel=1e-5)
    hugging_face, names = _gradients(theirs), hf_names(config)
    for name, gradient in _gradients(ours).items():
        assert_close(gradient, hugging_face[names[name]], **TOLERANCE)


@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen"])
def test_packed_rows_equal_hugging_face_given_per_document_position_ids(config: DecoderConfig) -> None:
    batch, ours = pack(), random_decoder(config)
    theirs = _hugging_face(ours)
    with torch.no_grad():
        logits = _run_packed(ours, batch)
        for row, text in enumerate(batch.text()):
            # Without a cache and an attention mask, Hugging Face derives its own document mask from the restarts.
            tokens, positions = batch.tokens[row, text][None], batch.positions[row, text][None]
            alone = theirs(tokens, position_ids=positions, use_cache=False).logits[0]
            assert_close(logits[row, text], alone, **TOLERANCE)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("config", ALL)
def test_flex_agrees_with_sdpa(config: DecoderConfig, causal: bool) -> None:
    batch, model = pack(), random_decoder(config.replace(causal=causal))
    with torch.no_grad():
        assert_close(_run_packed(model, batch, "flex"), _run_packed(model, batch, "sdpa"), **TOLERANCE)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("changed", range(len(pack().documents)))
def test_changing_one_document_changes_no_bit_of_any_other(changed: int, causal: bool) -> None:
    batch, model = pack(), random_decoder(LLAMA.replace(causal=causal))
    row, where = batch.documents[changed]
    other = batch.tokens.clone()
    inner = slice(where.start, where.stop - 1) if where.stop - where.start > 1 else where
    other[row, inner] = 60 - other[row, inner] % 58
    mask = DocumentMask(EOS, PAD, causal=causal).build(batch.sequence_ids)
    with torch.no_grad():
        before, after = (model(tokens, batch.positions, mask) for tokens in (batch.tokens, other))
    same = (before == after).all(-1)
    assert not same[row, where].all()
    same[row, where] = True
    assert same.all()


def test_padding_is_finite_and_reaches_no_document_not_even_through_its_gradient() -> None:
    batch, model = pack(), random_decoder(LLAMA)
    logits = _run_packed(model, batch)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in _gradients(model).values())

    model.zero_grad()
    mean_loss(_run_packed(model, batch), batch.labels, 1).backward()
    assert model.tok_embeddings.weight.grad[PAD].count_nonzero() == 0


def test_a_causal_model_sees_no_future_and_a_bidirectional_one_does() -> None:
    tokens = torch.randint(2, 61, (1, 16))
    later = tokens.clone()
    later[0, -1] = 2 + (tokens[0, -1] - 1) % 58
    for causal in (True, False):
        model = random_decoder(LLAMA.replace(causal=causal))
        with torch.no_grad():
            first, second = _run_alone(model, tokens[0]), _run_alone(model, later[0])
        assert torch.equal(first[:-1], second[:-1]) is causal


@pytest.mark.parametrize("executor", ["sdpa", "varlen"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
def test_padded_rows_equal_packed_ones_in_logits_loss_and_gradients(causal: bool, executor: str) -> None:
    config = LLAMA.replace(causal=causal)
    batch = _batch_for(config)
    model, of_padded = random_decoder(config), random_decoder(config)
    packed = _run_packed(model, batch, executor)
    mean_loss(packed, batch.labels, 1).backward()

    longest = max(where.stop - where.start for _, where in batch.documents)
    tokens, labels = torch.full((len(batch.documents), longest), PAD), torch.full((len(batch.documents), longest), -100)
    ids, positions = torch.full_like(tokens, -1).int(), torch.zeros_like(tokens).int()
    for row, (of_row, where) in enumerate(batch.documents):
        length = where.stop - where.start
        tokens[row, :length], labels[row, :length] = batch.tokens[of_row, where], batch.labels[of_row, where]
        ids[row, :length], positions[row, :length] = 0, torch.arange(length)
    mask = DocumentMask(EOS, PAD, causal=causal, executor=executor)
    padded = of_padded(tokens, positions, mask.build(ids))
    mean_loss(padded, labels, 1).backward()
    for row, (of_row, where) in enumerate(batch.documents):
        assert_close(padded[row, : where.stop - where.start], packed[of_row, where], **TOLERANCE)
    assert padded.isfinite().all()
    assert_close(_gradients(of_padded), _gradients(model), rtol=1e-5, atol=1e-4)  # of a sum over 130 targets
