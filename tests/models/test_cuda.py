"""What only a GPU can show: flex and varlen train, compiled, in bfloat16, as accurately as sdpa does."""

from __future__ import annotations

import pytest
import torch
from cistron.models.attention import DocumentMask, flash_facts, flash_obstacles
from cistron.models.config import AttentionConfig, DecoderConfig
from cistron.models.decoder import Decoder
from cistron.models.loss import linear_cross_entropy
from cistron.tests.helpers.packed import EOS, LLAMA, PAD, QWEN, mean_loss, random_decoder
from torch import Tensor

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: flex and varlen can be trained nowhere else"),
]
SEQ_LEN = 640


def _tokens(seed: int) -> Tensor:
    """Rows of documents of about 300 tokens, the last row ending in padding."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, LLAMA.vocab_size, (3, SEQ_LEN), generator=generator)
    tokens[torch.rand(tokens.shape, generator=generator) < 1 / 300] = EOS
    tokens[-1, 500], tokens[-1, 501:] = EOS, PAD
    return tokens


def _positions(sequence_ids: Tensor) -> Tensor:
    earlier_in_document = (sequence_ids[:, :, None] == sequence_ids[:, None, :]).tril(-1)
    return earlier_in_document.sum(-1, dtype=torch.int32)


def _train_step(model: Decoder, executor: str, tokens: Tensor, flash: int | None = None) -> tuple[Tensor, Tensor]:
    """Logits of the text and all gradients as one vector, float32 on the CPU."""
    mask = DocumentMask(EOS, PAD, model.config.causal, executor, model.config.attention, flash)
    ids = mask.sequence_ids(tokens)
    model.zero_grad()
    logits = model(tokens.cuda(), _positions(ids).cuda(), mask.build(ids, "cuda"))
    labels = torch.where(ids >= 0, tokens, -100).cuda()
    mean_loss(logits, labels, labels.numel()).backward()
    gradients = torch.cat([parameter.grad.flatten().float() for parameter in model.parameters()])
    return logits.detach().float().cpu()[ids >= 0], gradients.cpu()


def _error(value: Tensor, truth: Tensor) -> float:
    return ((value - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("config", [LLAMA, QWEN], ids=["llama", "qwen"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("executor", ["flex", "varlen"])
def test_a_bfloat16_step_is_as_accurate_as_with_sdpa(
    executor: str, compiled: bool, config: DecoderConfig, causal: bool
) -> None:
    torch.compiler.reset()
    config, tokens = config.replace(causal=causal), _tokens(seed=0)
    truth = _train_step(random_decoder(config).cuda(), "sdpa", tokens)
    model = random_decoder(config).cuda().bfloat16()
    reference = _train_step(model, "sdpa", tokens)
    if compiled:
        for block in model.layers:
            block.compile(fullgraph=True)
    step = _train_step(model, executor, tokens)
    for part, by_sdpa, exact in zip(step, reference, truth, strict=True):
        assert _error(part, exact) <= 1.5 * _error(by_sdpa, exact)

    with torch.compiler.set_stance("fail_on_recompile"):  # other documents, the same code
        _train_step(model, executor, _tokens(seed=1))


FAR = {
    "sliding": AttentionConfig(mask="sliding", window=100),
    "lambda": AttentionConfig(mask="lambda", window=100, sinks=4),
    "rerope": AttentionConfig(position_map="rerope", map_window=100),
    "leaky_rerope": AttentionConfig(position_map="leaky_rerope", map_window=100),
    "self_extend": AttentionConfig(position_map="self_extend", map_window=96, logn=True),
    "distance_cap": AttentionConfig(position_map="distance_cap", map_window=100),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("method", FAR)
def test_windows_and_maps_train_in_flex_as_in_sdpa(method: str, compiled: bool) -> None:
    """In float32 the same gradients, of two joined passes; in bfloat16 as accurate ones; no recompilation."""
    torch.compiler.reset()
    tokens = _tokens(seed=0)
    config = LLAMA.replace(rope=LLAMA.rope.replace(original_seq_len=256), attention=FAR[method])
    flex, truth = (_train_step(random_decoder(config).cuda(), executor, tokens) for executor in ("flex", "sdpa"))
    assert all(_error(a, b) < 2**-9 for a, b in zip(flex, truth, strict=True))
    model = random_decoder(config).cuda().bfloat16()
    reference = _train_step(model, "sdpa", tokens)
    if compiled:
        for block in model.layers:
            block.compile(fullgraph=True)
    for part, by_sdpa, exact in zip(_train_step(model, "flex", tokens), reference, truth, strict=True):
        assert _error(part, exact) <= 1.5 * _error(by_sdpa, exact)
    with torch.compiler.set_stance("fail_on_recompile"):
        _train_step(model, "flex", _tokens(seed=1))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_step_by_flash_attention_4_is_as_accurate_as_with_sdpa(compiled: bool, causal: bool) -> None:
    torch.compiler.reset()
    config, tokens = LLAMA.replace(causal=causal), _tokens(seed=0)
    facts = flash_facts(torch.device("cuda"), half=True, head_dim=config.head_dim, attention=config.attention)
    if obstacles := flash_obstacles(facts):
        pytest.skip("; ".join(obstacles))
    truth = _train_step(random_decoder(config).cuda(), "sdpa", tokens)
    model = random_decoder(config).cuda().bfloat16()
    reference = _train_step(model, "sdpa", tokens)
    if compiled:
        for block in model.layers:
            block.compile(fullgraph=True)
    step = _train_step(model, "flex", tokens, facts.queries)
    for part, by_sdpa, exact in zip(step, reference, truth, strict=True):
        assert _error(part, exact) <= 1.5 * _error(by_sdpa, exact)


def test_flex_in_float32_equals_sdpa() -> None:
    tokens = _tokens(seed=0)
    flex, sdpa = (_train_step(random_decoder(LLAMA).cuda(), executor, tokens) for executor in ("flex", "sdpa"))
    # TF32 products inside the flex kernel keep 10 bits of mantissa.
    assert all(_error(a, b) < 2**-9 for a, b in zip(flex, sdpa, strict=True))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_fused_loss_is_as_accurate_as_bfloat16_allows_with_its_weight_gradient_summed_in_float32(compiled: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 4096, 64, generator=generator).cuda().bfloat16().requires_grad_()
    weight = (torch.randn(100_000, 64, generator=generator) / 8).cuda().bfloat16().requires_grad_()  # four chunks
    labels = torch.randint(1000, (2, 4096), generator=generator).cuda()
    labels[0, ::3] = -100
    losses = linear_cross_entropy(hidden, weight, labels, compiled=compiled)
    gradients = torch.autograd.grad(losses.sum(), (hidden, weight))
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    truth = torch.nn.functional.cross_entropy((exact[0] @ exact[1].T).flatten(0, 1), labels.flatten(), reduction="none")
    assert losses.dtype == torch.float32
    assert _error(losses.flatten().double(), truth) < 2**-10
    for ours, theirs in zip(gradients, torch.autograd.grad(truth.sum(), exact), strict=True):
        assert _error(ours.double(), theirs) < 2**-7
