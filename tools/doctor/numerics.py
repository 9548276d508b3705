"""Part `numerics`: the loss head against float64, and documents packed into a row against each alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...models.attention import DocumentMask, executor_complaints
from ...models.config import DecoderConfig, Executor, RopeConfig
from ...models.decoder import Decoder
from ...models.init import init_weights
from ...models.loss import IGNORE, linear_cross_entropy
from .attention import MOST, relative, sequence_ids
from .examination import Examination

LENGTHS = (37, 1, 50, 12)  # documents of the packed row; 5 tokens of padding follow


def examine(e: Examination) -> None:
    """Compare the loss head, then packed rows under every executor that trains here."""
    for dtype in e.share((torch.float32, torch.bfloat16)):
        name = f"loss head, {str(dtype).removeprefix('torch.')}"
        e.within(name, loss_error(e.device, dtype), MOST[dtype], "", "losses and gradients against float64")
    executors: tuple[Executor, ...] = ("sdpa", "flex", "varlen")
    for executor in e.share(executors):
        if wrong := executor_complaints(executor, e.device, half=False, compiled=False):
            e.find(f"packed equals separate, {executor}", "not here", compared_with=wrong[0].split(": ", 1)[1])
        else:
            most = 1e-3 if e.on_gpu else 1e-4  # products of float32 that a GPU may take in TF32
            error = packed_error(e.device, executor)
            e.within(f"packed equals separate, {executor}", error, most, "", "losses and gradients of each document alone")


def loss_error(device: torch.device, dtype: torch.dtype) -> float:
    """Return the largest relative error of losses and gradients; the logits take more than one chunk of a CPU's."""
    draw = torch.Generator().manual_seed(2)
    vocab, dim, tokens = 4_099, 64, 1_100
    hidden = torch.randn(2, tokens, dim, generator=draw).to(dtype)
    weight = (torch.randn(vocab, dim, generator=draw) / 8).to(dtype)
    labels = torch.randint(vocab, (2, tokens), generator=draw)
    labels[:, ::7] = IGNORE
    weights = torch.rand(2, tokens, generator=draw)
    losses = []
    for at, kind in ((device, dtype), (torch.device("cpu"), torch.float64)):
        h, w = (t.to(at, kind).requires_grad_() for t in (hidden, weight))
        if kind == torch.float64:
            plain = F.cross_entropy((h @ w.mT).flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
            out = plain.view_as(labels) * weights.double()
        else:
            out = linear_cross_entropy(h, w, labels.to(at), weights.to(at))
        losses.append([out.detach(), *torch.autograd.grad(out.sum(), (h, w))])
    return max(relative(found, expected) for found, expected in zip(*losses, strict=True))


def packed_error(device: torch.device, executor: Executor) -> float:
    """Return the largest relative error of a small decoder's losses and gradients for packed documents."""
    sizes = {"vocab_size": 101, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 96}
    shape = DecoderConfig(**sizes, norm_eps=1e-5, qk_norm=True, tie_embeddings=False, rope=RopeConfig())
    model = Decoder(shape)
    init_weights(model, 3)
    model.to(device)
    draw = torch.Generator().manual_seed(4)
    documents = [torch.randint(2, 101, (length + 1,), generator=draw) for length in LENGTHS]
    mask = DocumentMask(eos_id=0, pad_id=1, executor=executor)
    packed = losses_of(model, mask, documents, device, padding=5)
    alone = [losses_of(model, mask, [document], device) for document in documents]
    separate = [torch.cat([losses for losses, _ in alone]), sum(gradients for _, gradients in alone)]
    return max(relative(a, torch.as_tensor(b).double()) for a, b in zip(packed, separate, strict=True))


def losses_of(
    model: Decoder, mask: DocumentMask, documents: list[Tensor], device: torch.device, padding: int = 0
) -> tuple[Tensor, Tensor]:
    """Return the losses of a row's documents [tokens], and the gradients of all parameters as one vector."""
    fill = torch.zeros(padding, dtype=torch.int64)
    tokens = torch.cat([*(document[:-1] for document in documents), fill + mask.pad_id])[None]
    labels = torch.cat([*(document[1:] for document in documents), fill + IGNORE])[None]
    lengths = tuple(len(document) - 1 for document in documents)
    positions = torch.cat([*(torch.arange(length) for length in lengths), fill])[None].int()
    ids = sequence_ids((lengths,), tokens.shape[1])
    losses = model(tokens.to(device), positions.to(device), mask.build(ids, device), labels.to(device))
    gradients = torch.autograd.grad(losses.sum(), list(model.parameters()))
    return losses.detach()[0, : sum(lengths)], torch.cat([gradient.flatten() for gradient in gradients])
