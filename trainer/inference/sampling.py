"""Text from a model: tokens are drawn one by one, each behind all that are there (`decoding.py`).

What is drawn is a token that texts consist of, or the eos, which ends the text: never padding, another special token,
the unknown one, or a row of the embedding that no id of the tokenizer has. A sample has a generator of its own, so it
depends on its prompt and its seed, and on nothing that runs beside it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ...base import IDS, TOKENS
from ...datasets.tokenizers import MAP, Ids, TokenizeError, Tokenizer
from ...models.decoder import Decoder
from ...models.errors import ModelError
from ..errors import ConfigError
from ..processes import gather, local
from .decoding import Decoding
from .documents import BATCH_TOKENS, batches
from .open import ModelOrPath, OpenedModel, opened_model

NOT_FINITE = -1  # in place of a token


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    The filters apply in this order: temperature, `top_k`, `top_p` of what that leaves.

    Attributes:
        max_new_tokens: upper bound on new tokens; an eos ends the text before.
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens are drawn from.
        top_p: only the most likely tokens that have this probability together are drawn from; 1: all.
        seed: of the first sample of a prompt; the next ones have seed + 1, seed + 2, ...

    Raises:
        ConfigError: a number is out of its range.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, smallest, largest in (
            ("temperature", self.temperature, 0, 10**6),
            ("top_k", self.top_k, 1, IDS),
            ("top_p", self.top_p, math.ulp(0.0), 1),
            ("max_new_tokens", self.max_new_tokens, 0, TOKENS),
            ("seed", self.seed, 0, 2**63 - 1),
        ):
            if not smallest <= value <= largest:
                raise ConfigError(f"{name} = {value}: must be from {smallest} to {largest}")


class NewTokens(NamedTuple):
    """What was drawn behind a prompt.

    Attributes:
        ids: without an eos.
        ended: whether an eos came; else `max_new_tokens` is reached.
        seed: of the draws.
    """

    ids: list[int]
    ended: bool
    seed: int


class NewText(NamedTuple):
    """What a prompt was continued by.

    Attributes:
        prompt: its number among the prompts, from 0.
        text: the continuation alone.
        ended: whether the model ended it; else `max_new_tokens` is reached.
        seed: of the draws.
    """

    prompt: int
    text: str
    ended: bool
    seed: int


def sample(
    model: ModelOrPath,
    prompt: str | bytes,
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
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
        top_p: only the most likely tokens that have this probability together are drawn from, of those that top_k
            leaves.
        seed: of the draws.

    Raises:
        ConfigError: the prompt has no tokens or cannot be encoded, or a number is out of its range.
        ModelError: a bidirectional model, or one with a head for labels; or what it predicts is not finite.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    opened = opened_model(model)
    opened.refuse_encoder("generate")
    (new,) = samples(opened, [prompt_ids(opened, prompt)], sampling)
    return new.text


def prompt_ids(opened: OpenedModel, prompt: str | bytes) -> Ids:
    """Return the tokens of a prompt. Raises ConfigError where it has none or cannot be encoded."""
    try:
        ids = opened.tokenizer.encode(prompt.encode(errors="surrogateescape") if isinstance(prompt, str) else prompt)
    except TokenizeError as error:
        problem = error.problem.replace(MAP, 'on_unknown = "map"')  # of `open_model`, and of the command line
        raise ConfigError(f"prompt: {problem}") from None
    if not len(ids):
        raise ConfigError("prompt: has no tokens; a model learns to continue documents, not to begin them")
    return ids


def samples(
    opened: OpenedModel, prompts: Sequence[Ids], sampling: Sampling, count: int = 1, batch_tokens: int = BATCH_TOKENS
) -> Iterator[NewText]:
    """Yield continuations of prompts, `count` of the first one, then of the next, as they are there.

    Args:
        opened: a causal model.
        prompts: as `prompt_ids` returns them, of any lengths.
        sampling: how tokens are drawn.
        count: samples of each prompt, which share what the prompt costs.
        batch_tokens: of all rows that grow at once, or of one that has more; memory and speed, not the draws.

    Raises:
        ModelError: what the model predicts is not finite.
    """
    tokenizer, all_ids = opened.tokenizer, [ids.tolist() for ids in prompts]
    found = draw_samples(
        opened.model, tokenizer, all_ids, sampling, count=count, batch_tokens=batch_tokens, device=opened.device
    )
    try:
        for number, new in enumerate(found):
            prompt = number // count
            yield NewText(prompt, text_behind(tokenizer, all_ids[prompt], new.ids), new.ended, new.seed)
    except ModelError as error:
        raise ModelError(f"{opened.where}: {error}") from None


def text_behind(tokenizer: Tokenizer, prompt: list[int], new: list[int]) -> str:
    """Return the text of tokens behind others: a decoder may drop the blank that a text would begin with."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def sample_tokens(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int = 0,
    multiple_of: int = 1,
    device: torch.device | str = "cpu",
) -> list[int]:
    """Continue `prompt` until eos or `max_new_tokens`, and return the new ids alone; see `draw_samples`."""
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    (new,) = draw_samples(model, tokenizer, [prompt], sampling, multiple_of=multiple_of, device=device)
    return new.ids


def draw_samples(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    count: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    multiple_of: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[NewTokens]:
    """Yield what `count` samples of each prompt draw, prompt by prompt.

    In a process group every rank must take all of it; rank 0 draws.

    Args:
        model: the decoder, in any layout.
        tokenizer: the one that the model was trained with.
        prompts: ids to continue; at least one in each, since the first token of a document is never a target.
        sampling: how tokens are drawn.
        count: samples of each prompt.
        batch_tokens: of all rows that grow at once, or of one that has more.
        multiple_of: tokens run in multiples of this, for sequence-parallel layouts.
        device: where the model is.

    Raises:
        ModelError: what it predicts is not finite, on every rank; the message names the parameters that are not.
    """

    def tokens(row: tuple[int, int]) -> int:
        return len(prompts[row[0]]) + sampling.max_new_tokens

    # rows are numbers of prompts, and seeds
    for together in batches(((number, 0) for number in range(len(prompts))), tokens, batch_tokens):
        first = together[0][0]
        part = [prompts[number] for number, _ in together]
        prefilled = Decoding.begin(model, part, tokenizer.pad_id, torch.device(device), multiple_of)
        rows = ((number, sampling.seed + one) for number, _ in together for one in range(count))
        for some in batches(rows, tokens, batch_tokens):
            decoding = prefilled.rows([number - first for number, _ in some])
            yield from _grow(decoding, tokenizer, sampling, [seed for _, seed in some])


def _grow(decoding: Decoding, tokenizer: Tokenizer, sampling: Sampling, seeds: Sequence[int]) -> list[NewTokens]:
    """Continue each row with the seed of its own."""
    drawable = torch.tensor([*tokenizer.text_ids(), tokenizer.eos_id], device=decoding.logits.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    ids: list[list[int]] = [[] for _ in seeds]
    ended = [False] * len(seeds)
    of_rows = list(range(len(seeds)))  # which sample each row of `decoding` is
    for left in reversed(range(sampling.max_new_tokens)):
        logits = decoding.logits[:, : tokenizer.vocab_size].float()
        drawn = draw_tokens(logits, drawable, sampling, [generators[i] for i in of_rows])
        if dist.is_initialized():
            dist.broadcast(drawn, src=0)
        tokens = drawn.tolist()
        for i, token in zip(of_rows, tokens, strict=True):
            if ended[i]:
                continue
            if token == NOT_FINITE:
                raise ModelError(f"no text: what the model predicts is not finite; {why_not_finite(decoding.model)}")
            ended[i] = token == tokenizer.eos_id
            if not ended[i]:
                ids[i].append(token)
        going = [row for row, i in enumerate(of_rows) if not ended[i]]
        if not going or not left:
            break
        if 2 * len(going) <= len(of_rows):  # rows that have ended run along until they are half of all
            decoding, tokens, of_rows = decoding.rows(going), [tokens[row] for row in going], [of_rows[row] for row in going]
        decoding = decoding.append(tokens)
    return [NewTokens(*new) for new in zip(ids, ended, seeds, strict=True)]


def draw_tokens(logits: Tensor, drawable: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw a token for each row.

    Args:
        logits: float32 [rows, vocab_size of the tokenizer].
        drawable: int64 [n]: ids that may be drawn.
        sampling: how.
        generators: of each row, on the CPU.

    Returns:
        int64 [rows] on the CPU; NOT_FINITE where a row's logits are not all finite.
    """
    finite = logits.isfinite().all(1).cpu()
    logits = logits.index_select(1, drawable)
    if sampling.temperature == 0:
        return torch.where(finite, drawable[logits.argmax(1)].cpu(), NOT_FINITE)
    best, order = logits.topk(min(sampling.top_k, len(drawable)))  # falling
    best, ids = best.cpu(), drawable[order].cpu()
    probabilities = torch.softmax((best - best[:, :1]) / sampling.temperature, dim=1)
    if sampling.top_p < 1:  # a sum of all may be above 1
        probabilities[probabilities.cumsum(1) - probabilities >= sampling.top_p] = 0
    rows = zip(probabilities, ids, finite.tolist(), generators, strict=True)
    drawn = [int(row[torch.multinomial(p, 1, generator=one)]) if sound else NOT_FINITE for p, row, sound, one in rows]
    return torch.tensor(drawn)


def why_not_finite(model: Decoder) -> str:
    """Name the first parameter that is not finite, on any rank, and count the others; all ranks must call it."""
    names = [name for name, p in model.named_parameters() if not local(p).isfinite().all()]
    found = gather(names) if dist.is_initialized() else [names]
    wrong = [name for name, _ in model.named_parameters() if any(name in part for part in found)]
    if not wrong:
        return "its parameters are, so its activations overflow"
    more = f", nor are {len(wrong) - 1} other parameter(s)" if wrong[1:] else ""
    return f"{wrong[0]} is not{more}"
