"""Text from a model: plain sampling, one forward pass over the whole document per new token."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from ...base import IDS, TOKENS
from ...datasets.tokenizers import TokenizeError, Tokenizer
from ...models.attention import DocumentMask
from ...models.decoder import Decoder
from ...models.errors import ModelError
from ..errors import ConfigError
from ..processes import gather, local
from .documents import make_rows
from .open import ModelOrPath, opened_model

NOT_FINITE = -1  # in place of a token


def sample(
    model: ModelOrPath,
    prompt: str | bytes,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
) -> str:
    """Continue a text and return the continuation alone.

        >>> model = open_model("outputs/dna/checkpoint")
        >>> text = sample(model, "ACGT", max_new_tokens=8, seed=7)
        >>> text == sample(model, "ACGT", max_new_tokens=8, seed=7)
        True

    Args:
        model: what `open_model` returns, or the path of a checkpoint or a Hugging Face folder.
        prompt: at least one token: a model learns to continue documents, not to begin them.
        max_new_tokens: upper bound on new tokens; an eos ends the text before.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens are drawn from.
        seed: of the draws.

    Raises:
        ConfigError: the prompt has no tokens or cannot be encoded, or a number is out of its range.
        ModelError: a bidirectional model, or one with a head for labels; or what it predicts is not finite.
    """
    for name, value, smallest, largest in (
        ("temperature", temperature, 0, 10**6),
        ("top_k", top_k, 1, IDS),
        ("max_new_tokens", max_new_tokens, 0, TOKENS),
        ("seed", seed, 0, 2**63 - 1),
    ):
        if not smallest <= value <= largest:
            raise ConfigError(f"{name} = {value}: must be from {smallest} to {largest}")
    opened = opened_model(model)
    opened.refuse_encoder("generate")
    try:
        ids = opened.tokenizer.encode(opened.shown(prompt))
    except TokenizeError as error:
        raise ConfigError(f"prompt: {error.problem}") from None
    if not len(ids):
        raise ConfigError("prompt: has no tokens; a model learns to continue documents, not to begin them")
    try:
        new = sample_tokens(
            opened.model,
            opened.tokenizer,
            ids.tolist(),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            seed=seed,
            device=opened.device,
        )
    except ModelError as error:
        raise ModelError(f"{opened.where}: {error}") from None
    return opened.tokenizer.decode(new)


@torch.no_grad()
def sample_tokens(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    seed: int = 0,
    multiple_of: int = 1,
    device: torch.device | str = "cpu",
) -> list[int]:
    """Continue `prompt` until eos or `max_new_tokens`, and return the new ids alone.

    There is no key-value cache: cost grows with the square of the length, which is fine for looking at a model and
    keeps this the same code for a plain, a sharded and a tensor-parallel one. In a process group every rank must call
    it; rank 0 draws.

    Args:
        model: the decoder, in any layout.
        tokenizer: the one that the model was trained with.
        prompt: ids to continue; at least one, since the first token of a document is never a target.
        max_new_tokens: upper bound on new tokens.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens are drawn from.
        seed: of the draws.
        multiple_of: pad the row to a multiple of this, for sequence-parallel layouts.
        device: where the model is.

    Raises:
        ModelError: what it predicts is not finite, on every rank; the message names the parameters that are not.
    """
    attention = model.config.attention
    mask = DocumentMask(eos_id=tokenizer.eos_id, pad_id=tokenizer.pad_id, executor="sdpa", attention=attention)
    generator = torch.Generator().manual_seed(seed)
    new: list[int] = []
    with torch.compiler.set_stance("force_eager"):  # lengths change with every token: a compiled block would recompile
        while len(new) < max_new_tokens:
            ids = np.array([*prompt, *new])
            row = make_rows([[ids]], mask, torch.device(device), multiple_of)
            logits = model(row.tokens, row.positions, row.mask)[0, len(ids) - 1, : tokenizer.vocab_size]
            token = draw_token(logits.float().cpu(), temperature, top_k, generator)
            if dist.is_initialized():
                dist.broadcast(token, src=0)
            if int(token) == NOT_FINITE:
                raise ModelError(f"no text: what the model predicts is not finite; {why_not_finite(model)}")
            if int(token) == tokenizer.eos_id:
                break
            new.append(int(token))
    return new


def draw_token(logits: torch.Tensor, temperature: float, top_k: int, generator: torch.Generator) -> torch.Tensor:
    """One token id, int64 [], from logits float32 [vocab]; NOT_FINITE where one of them is not."""
    if not logits.isfinite().all():
        return torch.tensor(NOT_FINITE)
    if temperature == 0.0:
        return logits.argmax()
    best, indices = logits.topk(min(top_k, len(logits)))
    choice = torch.multinomial(torch.softmax(best / temperature, dim=-1), 1, generator=generator)
    return indices[choice[0]]


def why_not_finite(model: Decoder) -> str:
    """Name the first parameter that is not finite, on any rank, and count the others; all ranks must call it."""
    names = [name for name, p in model.named_parameters() if not local(p).isfinite().all()]
    found = gather(names) if dist.is_initialized() else [names]
    wrong = [name for name, _ in model.named_parameters() if any(name in part for part in found)]
    if not wrong:
        return "its parameters are, so its activations overflow"
    more = f", nor are {len(wrong) - 1} other parameter(s)" if wrong[1:] else ""
    return f"{wrong[0]} is not{more}"
