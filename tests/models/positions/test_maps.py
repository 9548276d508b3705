"""Windows and position maps: each pair of a document has the distance that a method defines, or does not attend."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from cistron.models.attention import DocumentMask, attend_in_regions
from cistron.models.attention.kernels import join_regions
from cistron.models.attention.masks import document_dense_mask
from cistron.models.config import AttentionConfig, DecoderConfig, RopeConfig, check_length, check_training
from cistron.models.errors import ModelError
from cistron.models.positions import keys_seen, reaches, rope_table, rotary_tables, rotate
from cistron.models.positions.maps import position_map
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, QWEN, mean_loss, pack, random_decoder
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import flex_attention
from torch.testing import assert_close

WINDOW, SINKS, LEAK, GROUP, TRAINED = 8, 3, 5.0, 4, 16
Distance = Callable[[int, int], "float | None"]


def _rerope(q: int, k: int) -> float:
    return min(q - k, WINDOW)


def _leaky(q: int, k: int) -> float:
    return q - k if q - k < WINDOW else WINDOW + (q - k - WINDOW) / LEAK


def _self_extend(q: int, k: int) -> float:
    return q - k if q - k < WINDOW else q // GROUP - k // GROUP + WINDOW - WINDOW // GROUP


def _sliding(q: int, k: int) -> float | None:
    return q - k if q - k < WINDOW else None


def _lambda(q: int, k: int) -> float | None:
    return q - k if q - k < WINDOW or k < SINKS else None


def _capped(q: int, k: int) -> float | None:
    return min(q - k, WINDOW) if q - k < WINDOW or k < SINKS else None


# The option, and the distance from position k of a document to position q >= k; None: they do not attend.
METHODS: dict[str, tuple[AttentionConfig, Distance]] = {
    "full": (AttentionConfig(), lambda q, k: q - k),
    "sliding": (AttentionConfig(mask="sliding", window=WINDOW), _sliding),
    "sliding, itself alone": (AttentionConfig(mask="sliding", window=1), lambda q, k: 0 if q == k else None),
    "lambda": (AttentionConfig(mask="lambda", window=WINDOW, sinks=SINKS), _lambda),
    "rerope": (AttentionConfig(position_map="rerope", map_window=WINDOW), _rerope),
    "leaky_rerope": (AttentionConfig(position_map="leaky_rerope", map_window=WINDOW, leak=LEAK), _leaky),
    "self_extend": (AttentionConfig(position_map="self_extend", map_window=WINDOW, group=GROUP), _self_extend),
    "distance_cap": (AttentionConfig(position_map="distance_cap", map_window=WINDOW, sinks=SINKS), _capped),
}
METHODS["logn"] = METHODS["full"][0].replace(logn=True), METHODS["full"][1]
METHODS["self_extend and logn"] = METHODS["self_extend"][0].replace(logn=True), _self_extend
METHOD = pytest.mark.parametrize("method", METHODS)
MAPS = [name for name, (config, _) in METHODS.items() if config.position_map != "none"]

ROPE = RopeConfig(theta=100.0, scaling="yarn", factor=4.0, original_seq_len=TRAINED)
DOCUMENTS = [[48], [30, 18], [1, 20, 3, 17, 5]]  # of rows of 48; the last ends in two tokens of padding
HEAD_DIM = 8
NO_WARNING = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def _rows() -> tuple[Tensor, Tensor]:
    """Sequence ids and positions of `DOCUMENTS`, int32 [3, 48]; positions of padding are 0."""
    ids, positions = torch.full((3, 48), -1, dtype=torch.int32), torch.zeros(3, 48, dtype=torch.int32)
    for row, lengths in enumerate(DOCUMENTS):
        for number, length in enumerate(lengths):
            start = sum(lengths[:number])
            ids[row, start : start + length] = number
            positions[row, start : start + length] = torch.arange(length)
    return ids, positions


def _qkv(kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, heads, 48, HEAD_DIM) for heads in (4, kv_heads, kv_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def _ours(method: str, executor: str, qkv: list[Tensor]) -> Tensor:
    """Attention of the package, its tables in the dtype of the inputs, 0 on padding."""
    config = METHODS[method][0]
    q, k, v = qkv
    ids, positions = _rows()
    inv_freq, factor = rope_table(ROPE, HEAD_DIM, 0)
    rotary = rotary_tables(config, ROPE, positions, inv_freq.to(q.dtype), factor)
    by_token = q.transpose(1, 2), k.transpose(1, 2)
    rotated = [[rotate(x, *table).transpose(1, 2) for x, table in zip(by_token, tables, strict=True)] for tables in rotary]
    mask = DocumentMask(EOS, PAD, executor=executor, attention=config).build(ids)
    return attend_in_regions(rotated, v, mask) * (ids >= 0)[:, None, :, None]


@cache
def _truth(method: str, kv_heads: int) -> list[Tensor]:
    """Output and input gradients, float64, from a loop over the pairs of each document: its distance decides the score.

    Pairs of elements are complex numbers, and the product of q rotated by a with k rotated by b is that of q rotated by
    a - b with k.
    """
    config, distance = METHODS[method]
    q, k, v = qkv = _qkv(kv_heads, torch.float64)
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    inv_freq, factor = rope_table(ROPE, HEAD_DIM, 0)
    complex_q, complex_k = (torch.complex(*x.chunk(2, dim=-1)) for x in (q, k))
    out = torch.zeros_like(q)
    for row, lengths in enumerate(DOCUMENTS):
        start = 0
        for length in lengths:
            for i in range(length):
                distances = {j: distance(i, j) for j in range(i + 1)}
                keys = [start + j for j, d in distances.items() if d is not None]
                apart = torch.tensor([d for d in distances.values() if d is not None], dtype=torch.float64)
                turn = torch.exp(1j * apart[:, None] * inv_freq.double())
                scores = (complex_q[row, :, start + i, None] * turn * complex_k[row, :, keys].conj()).real.sum(-1)
                scores = scores * factor**2 / math.sqrt(HEAD_DIM)
                if config.logn:
                    scores = scores * max(1.0, math.log(i + 1) / math.log(TRAINED))
                out[row, :, start + i] = (scores.softmax(-1)[..., None] * v[row, :, keys]).sum(1)
            start += length
    return _with_gradients(out, qkv)


def _with_gradients(out: Tensor, qkv: list[Tensor]) -> list[Tensor]:
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, qkv, upstream)]


KV_HEADS = pytest.mark.parametrize("kv_heads", [4, 2], ids=["mha", "gqa"])
TYPES = ((torch.float64, 1e-12), (torch.float32, 1e-5))


@KV_HEADS
@METHOD
def test_attention_is_that_of_the_distances_in_the_definition_and_so_are_its_gradients(method: str, kv_heads: int) -> None:
    for dtype, tolerance in TYPES:
        qkv = _qkv(kv_heads, dtype)
        expected = [x.to(dtype) for x in _truth(method, kv_heads)]
        assert_close(_with_gradients(_ours(method, "sdpa", qkv), qkv), expected, rtol=tolerance, atol=tolerance)


@NO_WARNING
@KV_HEADS
@METHOD
def test_flex_gives_the_same_in_one_pass_or_two(method: str, kv_heads: int) -> None:
    for dtype, tolerance in TYPES:
        out = _ours(method, "flex", [x.detach() for x in _qkv(kv_heads, dtype)])
        assert_close(out, _truth(method, kv_heads)[0].to(dtype), rtol=tolerance, atol=tolerance)


@NO_WARNING
@METHOD
def test_gradients_of_two_passes_are_those_of_one_softmax(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flex refuses gradients on a CPU, but has a reference there that its kernels are held against."""
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)
    qkv = _qkv(2, torch.float64)
    assert_close(_with_gradients(_ours(method, "flex", qkv), qkv), _truth(method, 2), rtol=1e-12, atol=1e-12)


def test_a_far_region_without_a_key_has_weight_0_and_leaves_no_nan_in_the_gradient() -> None:
    near, near_lse, far = torch.randn(1, 1, 2, 4), torch.randn(1, 1, 2), torch.zeros(1, 1, 2, 4)
    parts = [x.double().requires_grad_() for x in (near, near_lse, far, torch.full((1, 1, 2), -torch.inf))]
    out = join_regions(*parts)
    assert torch.equal(out, parts[0])
    gradients = torch.autograd.grad(out.sum(), parts)
    assert torch.equal(gradients[0], torch.ones_like(out))
    assert not any(gradient.count_nonzero() for gradient in gradients[1:])


@METHOD
def test_regions_share_no_pair_and_leave_as_many_keys_as_are_counted(method: str) -> None:
    config, distance = METHODS[method]
    ids, positions = _rows()
    masks = [document_dense_mask(ids, causal=True, reach=reach)[:, 0] for reach in reaches(config)]
    assert len(masks) == len(position_map(config, positions))
    assert sum(mask.int() for mask in masks).max() == 1
    counted = keys_seen(config, positions)
    for row, column in torch.nonzero(ids >= 0).tolist():
        p = int(positions[row, column])
        assert sum(int(mask[row, column].sum()) for mask in masks) == counted[row, column]
        assert counted[row, column] == sum(distance(p, k) is not None for k in range(p + 1))


@given(trained=st.integers(8, 5000), part=st.floats(0.1, 0.95), times=st.floats(1.1, 70.0))
def test_the_leak_and_the_group_that_are_advised_work_and_less_does_not(trained: int, part: float, times: float) -> None:
    rope, length, window = RopeConfig(original_seq_len=trained), int(trained * times), max(1, int(trained * part))
    for key, least, values in (("leak", 1.0, float), ("group", 2, int)):
        name = "leaky_rerope" if key == "leak" else "self_extend"
        maps = AttentionConfig(position_map=name, map_window=window)
        said = check_length(rope, maps.replace(**{key: least}), length)
        if not said or said[0].endswith("none works: lower map_window"):
            continue
        advised = values(said[0].rpartition(" ")[2])
        assert not check_length(rope, maps.replace(**{key: advised}), length)
        if key == "leak":
            assert check_length(rope, maps.replace(leak=(advised - 1e-4) * (1 - 1e-8)), length)
            assert window + (length - 1 - window) / advised <= (trained - 1) * (1 + 1e-9)
            continue
        assert window % advised == 0
        smaller = [group for group in range(2, advised) if window % group == 0]
        assert all(check_length(rope, maps.replace(group=group), length) for group in smaller)


@given(trained=st.integers(2, 10**6), seq_len=st.integers(2, 10**8))
def test_the_factor_that_is_advised_works_and_less_does_not(trained: int, seq_len: int) -> None:
    plain = AttentionConfig()
    linear = RopeConfig(scaling="linear", factor=1.0001, original_seq_len=trained)
    if seq_len <= trained:
        (said,) = check_training(linear, plain, seq_len)
        assert "raise seq_len, set scaling" in said
        assert not check_training(linear, plain, seq_len, learned=True)
        assert not check_training(linear.replace(scaling="llama3"), plain, seq_len)
        return
    if said := check_training(linear, plain, seq_len):
        advised = float(said[0].rpartition(" ")[2])
        assert not check_training(linear.replace(factor=advised), plain, seq_len)
        assert check_training(linear.replace(factor=(advised - 1e-4) * (1 - 1e-8)), plain, seq_len)


def test_what_begins_beyond_the_trained_length_is_refused_up_to_there_alone() -> None:
    dynamic = RopeConfig(scaling="dynamic_ntk", factor=2.0, original_seq_len=16), AttentionConfig()
    logn = RopeConfig(original_seq_len=16), AttentionConfig(logn=True)
    for settings in (dynamic, logn):
        (said,) = check_training(*settings, 16)
        assert "begins beyond model.rope.original_seq_len = 16; raise seq_len, or" in said
        for seq_len in (17, 32, 33, 1000):
            assert check_training(*settings, seq_len) == []


def _decoder_config(method: str, config: DecoderConfig) -> DecoderConfig:
    return config.replace(rope=ROPE.replace(theta=config.rope.theta), attention=METHODS[method][0])


@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen"])
@METHOD
def test_packed_rows_equal_their_documents_run_one_by_one(method: str, config: DecoderConfig) -> None:
    config, batch = _decoder_config(method, config), pack()
    rule = DocumentMask(EOS, PAD, attention=config.attention)
    packed, separate = random_decoder(config), random_decoder(config)
    logits = packed(batch.tokens, batch.positions, rule.build(batch.sequence_ids))
    mean_loss(logits, batch.labels, 100).backward()
    for row, where in batch.documents:
        tokens = batch.tokens[row, where][None]
        alone = separate(tokens, torch.arange(tokens.shape[1])[None].int(), rule.build(torch.zeros_like(tokens).int()))[0]
        assert_close(logits[row, where], alone, rtol=1e-5, atol=1e-5)
        mean_loss(alone, batch.labels[row, where], 100).backward()
    assert logits.isfinite().all()
    for one, other in zip(packed.parameters(), separate.parameters(), strict=True):
        assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-5)


def test_a_decoder_is_asked_otherwise_in_place_and_back() -> None:
    batch, model = pack(), random_decoder(LLAMA)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def logits() -> Tensor:
        mask = DocumentMask(EOS, PAD, attention=model.config.attention).build(batch.sequence_ids)
        with torch.no_grad():
            return model(batch.tokens, batch.positions, mask)

    plain = logits()
    config = _decoder_config("self_extend", LLAMA)
    model.set_positions(config.rope, config.attention, 40)
    assert (model.max_document_length, model.config) == (40, config)
    assert torch.equal(logits(), _logits_of(config, batch))
    model.set_positions(LLAMA.rope, LLAMA.attention, 0)
    assert torch.equal(logits(), plain)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with pytest.raises(ModelError, match=r"model\.attention\.group is 4, too little for 300 tokens"):
        model.set_positions(config.rope, config.attention, 300)


def _logits_of(config: DecoderConfig, batch: object) -> Tensor:
    mask = DocumentMask(EOS, PAD, attention=config.attention).build(batch.sequence_ids)
    with torch.no_grad():
        return random_decoder(config)(batch.tokens, batch.positions, mask)
