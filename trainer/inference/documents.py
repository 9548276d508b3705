"""A trained model on one device, and documents through it: what embedding, scoring and sampling have in common.

Documents are read as in training, each with the tokenizer's opening token, if it has one, and its eos. They run packed,
one after another in a single row as long as a budget of tokens, under the document mask: no document sees another or
any padding, so nothing depends on what it shares a row with, and nothing has to be sorted by length to save padding.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from ...datasets.errors import DataConfigError
from ...datasets.readers import NamedSequence, SequenceFiles
from ...datasets.rows import PAD_MULTIPLE, lay_out
from ...datasets.tokenizers import MAP, Ids, TokenizeError, Tokenizer
from ...models.attention import AttentionMask, DocumentMask
from ...models.config import AttentionConfig, RopeConfig, untrained_attention_warning
from .open import OpenedModel, inference_mask

BATCH_TOKENS = 16_384
Texts: TypeAlias = Iterable[str | bytes]
T = TypeVar("T")


class Document(NamedTuple):
    """A sequence as the model reads it.

    Attributes:
        name: of the sequence.
        ids: with what opens a document, if anything does, and its eos.
        stored: bytes of files before it, see `NamedSequence`.
        mapped: letters that the tokenizer read as others.
    """

    name: str
    ids: Ids
    stored: float = 0.0
    mapped: int = 0


class Rows(NamedTuple):
    """Rows of documents on a device.

    Attributes:
        tokens: int64 [rows, width].
        labels: int64 [rows, width], the next token; -100 at the last one of a document and on padding.
        positions: int32 [rows, width], restarting at 0 with every document.
        mask: which tokens see which.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    mask: AttentionMask


def with_positions(opened: OpenedModel, rope: RopeConfig, attention: AttentionConfig, length: int) -> OpenedModel:
    """Return a model with another rotary scaling, window or position map than in training, and a message that says so.

    Args:
        opened: its model is changed in place; `opened.trained.rope`, `opened.trained.attention` and the length that it
            had give it back.
        rope: see `Decoder.set_positions`.
        attention: likewise.
        length: likewise.

    Raises:
        ModelError: what does not fit together, or `length`.
    """
    model = opened.model
    model.set_positions(rope, attention, length)
    mask = inference_mask(opened.tokenizer, model.config, opened.device, model.tok_embeddings.weight.dtype)
    warning = untrained_attention_warning(opened.trained.attention, attention)
    return replace(opened, mask=mask, messages=(*opened.messages, *warning))


def read_documents(
    opened: OpenedModel, files: SequenceFiles, sequences: Iterable[NamedSequence], max_length: int | None = None
) -> Iterator[Document]:
    """Encode sequences of files; stderr tells of the first one longer than rows of training, and of mapped letters.

    Args:
        opened: whose tokenizer encodes.
        files: where the sequences are from, which locates what is wrong with one.
        sequences: in any order.
        max_length: tokens, the eos included, that none may exceed; None: as many as there are.

    Raises:
        DataError: a sequence is empty or too long, or cannot be encoded.
    """
    told = False
    mapped = 0
    for sequence in sequences:
        try:
            document = encode_sequence(opened.tokenizer, sequence)
        except TokenizeError as error:
            problem = error.problem.replace(MAP, "--on-unknown map")
            raise files.located(sequence, problem, error.offset or 0) from None
        length = len(document.ids)
        if max_length is not None and length > max_length:
            raise files.located(sequence, f"has {length} tokens with its eos, and --max-length is {max_length}")
        if opened.seq_len is not None and length > opened.seq_len and not told:
            print(
                f"{sequence.name} has {length} tokens, and the model was trained on rows of {opened.seq_len}: longer sequences "
                "run whole, at positions that it has not seen; --max-length refuses them",
                file=sys.stderr,
            )
            told = True
        mapped += document.mapped
        yield document
    if mapped:
        what = "letters are none of the vocabulary and were read as others: on_unknown is map"
        if opened.tokenizer.alphabet is None:
            what = "unknown tokens stand for what the vocabulary lacks"
        print(f"{mapped:,} {what}", file=sys.stderr)


def encode_sequence(tokenizer: Tokenizer, sequence: NamedSequence) -> Document:
    """Return the document of a sequence. Raises TokenizeError where it cannot be one, or has no residue."""
    encoded = tokenizer.encode_batch([sequence.data])
    if len(encoded.ids) <= opening_tokens(tokenizer) + 1:
        raise TokenizeError("an empty sequence: there is nothing to ask the model about", None, 0)
    return Document(sequence.name, encoded.ids, sequence.stored, sum(encoded.mapped or ()))


def encoded(opened: OpenedModel, sequences: Texts) -> Iterator[Document]:
    """Yield the documents of sequences that a caller has at hand.

    Raises:
        DataConfigError: one cannot be encoded, or is empty; or a text was given in place of a list of them.
    """
    if isinstance(sequences, str | bytes):
        raise DataConfigError("sequences: is one text; give a list of them")
    for number, sequence in enumerate(sequences):
        data = sequence.encode(errors="surrogateescape") if isinstance(sequence, str) else sequence
        try:
            yield encode_sequence(opened.tokenizer, NamedSequence(str(number), data))
        except TokenizeError as error:
            place = "" if error.offset is None else f", byte {error.offset}"
            problem = error.problem.replace(MAP, 'open_model(..., on_unknown="map")')
            raise DataConfigError(f"sequences[{number}]{place}: {problem}") from None


def opening_tokens(tokenizer: Tokenizer) -> int:
    """Return how many tokens come before a document's first residue: 1 where documents open with a token, else 0."""
    return 0 if tokenizer.bos_id is None else 1


def batches(items: Iterable[T], length: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Consecutive items, as many as have `budget` tokens together, or one that has more by itself."""
    batch: list[T] = []
    total = 0
    for item in items:
        tokens = length(item)
        if batch and total + tokens > budget:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += tokens
    if batch:
        yield batch


def make_row(opened: OpenedModel, documents: Sequence[Ids]) -> Rows:
    """Lay out documents one after another, where `starts_of` says."""
    return make_rows([documents], opened.mask, opened.device)


def starts_of(documents: Sequence[Ids]) -> list[int]:
    """Return where in a row each document begins, and where padding does."""
    return list(accumulate(map(len, documents), initial=0))


def make_rows(rows: Sequence[Sequence[Ids]], mask: DocumentMask, device: torch.device, multiple_of: int = PAD_MULTIPLE) -> Rows:
    """Lay out the documents of each row; widths are multiples of 128: few shapes for kernels that are compiled."""
    width = max(sum(map(len, row)) for row in rows)
    planes = lay_out(rows, width + -width % multiple_of, mask.pad_id)
    used = (planes.tokens, planes.labels, planes.positions)
    tokens, labels, positions = (torch.from_numpy(plane).to(device) for plane in used)
    return Rows(tokens, labels, positions, mask.build(torch.from_numpy(planes.sequence_ids), device))
