"""A trained model on one device, and documents through it: what embedding, scoring and sampling have in common.

Documents are read as in training, each with the tokenizer's opening token, if it has one, and its eos. They run packed,
one after another in a single row as long as a budget of tokens, under the document mask: no document sees another or
any padding, so nothing depends on what it shares a row with, and nothing has to be sorted by length to save padding.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate, groupby
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...datasets.documents import LetterEncoder
from ...datasets.errors import BadRecords, DataConfigError, DataError
from ...datasets.nucleotides import CODES, reverse_complement
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
        ids: with what opens a document, if anything does, a prefix, if there is one, and its eos.
        stored: bytes of files before it, see `NamedSequence`.
        mapped: letters that the tokenizer read as others.
        begin: where in `ids` the sequence begins.
        targets: bool [ids]: whether training could have taken each as a target; None: all of them.
        record: see `NamedSequence`.
    """

    name: str
    ids: Ids
    stored: float = 0.0
    mapped: int = 0
    begin: int = 0
    targets: npt.NDArray[np.bool_] | None = None
    record: int = 0

    @property
    def residues(self) -> int:
        """Tokens of the sequence alone."""
        return len(self.ids) - 1 - self.begin


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


class SequenceEncoder:
    """Makes documents of sequences, with their letters as in training.

    Args:
        opened: the model.
        prefix: a text before every sequence, encoded by itself: it conditions, and is neither scored nor pooled.

    Raises:
        DataConfigError: the prefix cannot be encoded.
    """

    def __init__(self, opened: OpenedModel, prefix: str | bytes = b"") -> None:
        self._encode = LetterEncoder(opened.letters, opened.tokenizer)
        self._opening = opening_tokens(opened.tokenizer)
        try:
            data = prefix.encode(errors="surrogateescape") if isinstance(prefix, str) else prefix
            self._prefix = self._encode([data]).encoded.ids[self._opening : -1]
        except TokenizeError as error:
            raise DataConfigError(f"prefix, byte {error.offset or 0}: {error.problem}") from None

    def __call__(self, sequence: NamedSequence) -> Document:
        """Return the document of a sequence. Raises TokenizeError where it cannot be one, or has no residue."""
        (ids, _, mapped), weights, _ = self._encode([sequence.data])
        opening, prefix = self._opening, self._prefix
        if len(ids) <= opening + 1:
            raise TokenizeError("an empty sequence: there is nothing to ask the model about", None, 0)
        targets = None if weights is None else weights > 0
        if len(prefix):
            ids = np.concatenate([ids[:opening], prefix, ids[opening:]])
            targets = None if targets is None else np.concatenate([np.zeros(len(prefix), dtype=np.bool_), targets])
        begin = opening + len(prefix)
        return Document(sequence.name, ids, sequence.stored, sum(mapped or ()), begin, targets, sequence.record)


def read_documents(
    opened: OpenedModel,
    files: SequenceFiles,
    pass_over: BadRecords,
    *,
    begin: int = 0,
    max_length: int | None = None,
    prefix: str = "",
    both_strands: bool = False,
) -> Iterator[Document]:
    """Encode sequences of files; stderr tells of the first one longer than rows of training, and of mapped letters.

    Args:
        opened: whose tokenizer encodes.
        files: where the sequences are.
        pass_over: what becomes of a record that is bad, empty or too long, or cannot be encoded.
        begin: the first record to be read.
        max_length: tokens, prefix and eos included, that none may exceed; None: as many as there are.
        prefix: see `SequenceEncoder`.
        both_strands: whether the reverse complement of each sequence follows it as a document of the same record.

    Raises:
        DataError: such a record is not passed over, or there is no other.
        DataConfigError: the prefix cannot be encoded.
    """
    encode = SequenceEncoder(opened, prefix)
    told = False
    mapped, read = 0, begin
    for sequence in files.records(pass_over, begin):
        try:
            documents = [encode(strand) for strand in (strands_of(sequence) if both_strands else (sequence,))]
            length = len(documents[0].ids)
            if max_length is not None and length > max_length:
                raise TokenizeError(f"has {length} tokens with its eos, and --max-length is {max_length}", None, 0)
        except TokenizeError as error:
            problem = error.problem.replace(MAP, "--on-unknown map")
            pass_over(partial(files.located, sequence, problem, error.offset or 0))
            continue
        if opened.seq_len is not None and length > opened.seq_len and not told:
            print(
                f"{sequence.name} has {length} tokens, and the model was trained on rows of {opened.seq_len}: longer sequences "
                "run whole, at positions that it has not seen; --max-length refuses them",
                file=sys.stderr,
            )
            told = True
        mapped += documents[0].mapped
        read += 1
        yield from documents
    if not read:
        raise DataError("none of its records can be used", file=files.files[0].path)
    if mapped:
        what = "letters are none of the vocabulary and were read as others: on_unknown is map"
        if opened.tokenizer.alphabet is None:
            what = "unknown tokens stand for what the vocabulary lacks"
        print(f"{mapped:,} {what}", file=sys.stderr)


def strands_of(sequence: NamedSequence) -> tuple[NamedSequence, NamedSequence]:
    """Return a sequence and its reverse complement. Raises TokenizeError where there is none."""
    try:
        return sequence, sequence._replace(data=reverse_complement(sequence.data))
    except ValueError as error:
        wrong = len(sequence.data) - len(sequence.data.lstrip(CODES + CODES.lower()))
        raise TokenizeError(str(error), wrong, 0) from None


def encoded(opened: OpenedModel, sequences: Texts, prefix: str | bytes = b"") -> Iterator[Document]:
    """Yield the documents of sequences that a caller has at hand.

    Raises:
        DataConfigError: one, or the prefix, cannot be encoded, or one is empty; or a text was given in place of a list.
    """
    if isinstance(sequences, str | bytes):
        raise DataConfigError("sequences: is one text; give a list of them")
    encode = SequenceEncoder(opened, prefix)
    for number, sequence in enumerate(sequences):
        data = sequence.encode(errors="surrogateescape") if isinstance(sequence, str) else sequence
        try:
            yield encode(NamedSequence(str(number), data, record=number))
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


def batches_of_records(documents: Iterable[Document], budget: int) -> Iterator[list[Document]]:
    """Consecutive documents, like `batches`, those of a record together: a batch ends where a record does."""
    records = (list(documents) for _, documents in groupby(documents, lambda document: document.record))
    for batch in batches(records, lambda record: sum(len(document.ids) for document in record), budget):
        yield [document for record in batch for document in record]


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
