"""A trained model on one device, and documents through it: what embedding, scoring and sampling have in common.

Documents are read as in training, each with the tokenizer's opening token, if it has one, and its eos. They run packed, one
after another in a single row as long as a budget of tokens, under the document mask: no document sees another or any padding,
so nothing depends on what it shares a row with, and nothing has to be sorted by length to save padding.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
import xxhash
from torch import Tensor

from ..datasets.packing import PAD_MULTIPLE
from ..datasets.sequences import NamedSequence, SequenceFiles
from ..datasets.tokenizers import Ids, TokenizeError, Tokenizer, build_tokenizer
from ..datasets.vocabularies import MAP
from ..models.config import DecoderConfig, ModelError
from ..models.decoder import Decoder
from ..models.huggingface import from_hf
from ..models.masks import AttentionMask, DocumentMask, Executor
from ..models.position_config import AttentionConfig, RopeConfig, untrained
from . import checkpoint
from .components import make_model, make_tokenizer, saved_job
from .config import ConfigError, JobConfig
from .contract import Statement, check_statements, checkpoint_statement, tokenizer_statement
from .distributed import pick_device
from .hf_export import CONFIG
from .hf_import import find_tokenizer, read_json, row_length
from .hf_start import is_hugging_face, open_hugging_face
from .hf_tokenizer import TOKENIZER
from .storage import Folder
from .tables import TokenizerTable

BATCH_TOKENS = 16_384
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model that is ready to be used.

    Attributes:
        model: plain, whole, and with gradients for whoever wants them.
        tokenizer: of its training.
        mask: the document mask, causal or not, for this device.
        seq_len: tokens of the longest rows that it was trained on, None where nobody says; see `hf_import.row_length`.
        trained: the shape, with the rotary scaling, window and position map of its training.
        where: the folder that it came from.
        fingerprint: changes with the weights.
        config: the job of its training; None of a Hugging Face folder.
        messages: what a person should know of it, a line each.
    """

    model: Decoder
    tokenizer: Tokenizer
    mask: DocumentMask
    seq_len: int | None
    trained: DecoderConfig
    where: str
    fingerprint: str
    config: JobConfig | None = None
    messages: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.model.tok_embeddings.weight.device


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


class Row(NamedTuple):
    """Documents in one row, on the model's device.

    Attributes:
        tokens: int64 [1, n].
        positions: int32 [1, n], restarting at 0 with every document.
        mask: which of them see each other.
        starts: of each document, and after the last one.
    """

    tokens: Tensor
    positions: Tensor
    mask: AttentionMask
    starts: list[int]


def open_model(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    on_unknown: str | None = None,
) -> OpenedModel:
    """Load a model as a whole.

    Args:
        path: a Cistron checkpoint of any layout, the folder around such ones, of which the newest good one is taken, or a
            Hugging Face folder; of the last nothing is converted on disk.
        device: None: a GPU where there is one.
        dtype: of the weights and of all that is computed; values are rounded to nearest.
        on_unknown: of the protein and dna tokenizers: `error` or `map`; None: as the job says, `error` for a HF folder.

    Raises:
        CheckpointError: there is no good checkpoint, or it lacks tensors.
        ModelError: a Hugging Face model that the decoder is not.
        ConfigError: the tokenizer is not there.
        DataConfigError: the tokenizer lacks no letter, so that `on_unknown` means nothing to it.
        EosMismatchError: the tokenizer is not that of the model.
    """
    device = torch.device(device) if device is not None else pick_device()
    folder = Folder(path)
    return (open_huggingface if is_hugging_face(folder) else open_checkpoint)(folder, device, dtype, on_unknown)


def open_checkpoint(folder: Folder, device: torch.device, dtype: torch.dtype, on_unknown: str | None) -> OpenedModel:
    """See `open_model`."""
    found, skipped = checkpoint.read_newest(folder)
    config, decoder = saved_job(found)
    tokenizer = choose_policy(config.tokenizer, make_tokenizer(config), on_unknown)
    where = f"{found.path}/{checkpoint.STATE}"
    check_statements(
        [
            tokenizer_statement(tokenizer),
            checkpoint_statement(found.state["contract"], where),
            Statement(party="model", where=where, vocab=decoder.vocab_size),
        ]
    )
    with torch.device("meta"):
        model = make_model(config, decoder)
    fill(model, found, device, dtype)
    return OpenedModel(
        model=model,
        tokenizer=tokenizer,
        mask=make_mask(tokenizer, decoder, device, dtype),
        seq_len=config.training.seq_len,
        trained=decoder,
        where=str(found.path),
        fingerprint=xxhash.xxh3_128_hexdigest(checkpoint.manifest_text(found.files).encode()),
        config=config,
        messages=(*skipped, *one_table(model)),
    )


def open_huggingface(folder: Folder, device: torch.device, dtype: torch.dtype, on_unknown: str | None) -> OpenedModel:
    """See `open_model`."""
    if not folder.is_local:
        raise ConfigError(f"{folder}: a Hugging Face folder must be on a disk")
    path = Path(folder)
    found = open_hugging_face(folder, TokenizerTable())
    table, tokenizer = find_tokenizer(path, None, None)
    if tokenizer is None:
        raise ConfigError(f"{path}: there is no {TOKENIZER} to read sequences with")
    tokenizer = choose_policy(table, tokenizer, on_unknown)
    stated = read_json(path / CONFIG) or {}
    decoder = from_hf(stated)
    with torch.device("meta"):
        rows = row_length(stated, decoder).get("seq_len")
        model = Decoder(decoder, rows or 0)
    fill(model, found, device, dtype)
    return OpenedModel(
        model=model,
        tokenizer=tokenizer,
        mask=make_mask(tokenizer, decoder, device, dtype),
        seq_len=rows,
        trained=decoder,
        where=str(path),
        fingerprint=fingerprint(stated, sorted(path.glob("*.safetensors"))),
        messages=one_table(model),
    )


def one_table(model: Decoder) -> tuple[str, ...]:
    """What to know of a model whose rotary angles depend on a length."""
    rope = model.config.rope
    if not rope.by_length:
        return ()
    length = max(model.length, rope.trained_length)
    return (
        f'model.rope.scaling is "{rope.scaling}": texts of every length have the rotary angles of {length:,} tokens here '
        "(longer ones their own with --extrapolate), where transformers has those of the length of each text",
    )


def choose_policy(table: TokenizerTable, tokenizer: Tokenizer, on_unknown: str | None) -> Tokenizer:
    """The tokenizer of a table, or where a policy is given the same with it. Raises DataConfigError where it knows none."""
    if on_unknown is None:
        return tokenizer
    return build_tokenizer(**{**table.model_dump(), "on_unknown": on_unknown})


def fingerprint(stated: dict[str, Any], files: Sequence[Path]) -> str:
    """Of a Hugging Face folder: what its config says, and sizes and times of the files of its weights."""
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return xxhash.xxh3_128_hexdigest(json.dumps([stated, stats]).encode())


def fill(model: Decoder, found: checkpoint.Found, device: torch.device, dtype: torch.dtype) -> None:
    """Move a decoder from the meta device, with its values; what training had frozen is free."""
    model.to(dtype).to_empty(device=device)
    model.tie_weights()
    checkpoint.load(found, found.reader(), model, optimizer=None)
    model.requires_grad_(True)


def make_mask(
    tokenizer: Tokenizer, decoder: DecoderConfig, device: torch.device, dtype: torch.dtype, executor: str = "auto"
) -> DocumentMask:
    """The mask of the objective that the model was trained by, for the kernel that needs no compilation where there is one.

    Args:
        tokenizer: has the special ids.
        decoder: says which pairs attend.
        device: where the model is.
        dtype: that attention computes in.
        executor: as `model.attention.executor` has it; varlen is taken for "auto" where it knows no such pairs.
    """
    plain, cuda = decoder.attention.plain, device.type == "cuda"
    if executor == "auto" or (executor == "varlen" and not plain):
        executor = "flex" if cuda and (dtype == torch.float32 or not plain) else "varlen" if plain else "sdpa"
    return DocumentMask(
        eos_id=tokenizer.eos_id,
        pad_id=tokenizer.pad_id,
        causal=decoder.causal,
        executor=cast(Executor, executor),
        attention=decoder.attention,
    )


def asked_otherwise(opened: OpenedModel, rope: RopeConfig, attention: AttentionConfig, length: int) -> OpenedModel:
    """A model with another rotary scaling, window or position map than it was trained with, and a message that says so.

    Args:
        opened: its model is changed in place; `opened.trained.rope`, `opened.trained.attention` and the length that it had give
            it back.
        rope: see `Decoder.extrapolate`.
        attention: likewise.
        length: likewise.

    Raises:
        ModelError: what does not fit together, or `length`.
    """
    model = opened.model
    model.extrapolate(rope, attention, length)
    mask = make_mask(opened.tokenizer, model.config, opened.device, model.tok_embeddings.weight.dtype)
    return replace(opened, mask=mask, messages=(*opened.messages, *untrained(opened.trained.attention, attention)))


def read_documents(
    opened: OpenedModel, files: SequenceFiles, sequences: Iterable[NamedSequence], max_length: int | None = None
) -> Iterator[Document]:
    """Encode sequences of some files; stderr tells of the first that is longer than rows of training, and of mapped letters.

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
            document = encode(opened.tokenizer, sequence)
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
        print(f"{mapped:,} letters are none of the vocabulary and were read as others: on_unknown is map", file=sys.stderr)


def encode(tokenizer: Tokenizer, sequence: NamedSequence) -> Document:
    """The document of a sequence. Raises TokenizeError where it cannot be one, or has no residue."""
    encoded = tokenizer.encode_batch([sequence.data])
    if len(encoded.ids) <= opening_tokens(tokenizer) + 1:
        raise TokenizeError("an empty sequence: there is nothing to ask the model about", None, 0)
    return Document(sequence.name, encoded.ids, sequence.stored, sum(encoded.mapped or ()))


def opening_tokens(tokenizer: Tokenizer) -> int:
    """How many tokens of a document come before its first residue: 1 where documents open with a token, else 0."""
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


def make_row(opened: OpenedModel, documents: Sequence[Ids]) -> Row:
    """Documents one after another, filled up with padding to a multiple of 128: few shapes for kernels that are compiled."""
    lengths = np.array([len(ids) for ids in documents])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    padding = -starts[-1] % PAD_MULTIPLE
    spans = np.append(lengths, padding)
    tokens = np.concatenate([*documents, np.full(padding, opened.tokenizer.pad_id)]).astype(np.int64)
    positions = np.arange(len(tokens)) - np.repeat(np.append(starts[:-1], starts[-1]), spans)
    sequence_ids = np.repeat(np.append(np.arange(len(lengths)), -1), spans)
    device = opened.device
    return Row(
        torch.from_numpy(tokens)[None].to(device),
        torch.from_numpy(positions.astype(np.int32))[None].to(device),
        opened.mask.build(torch.from_numpy(sequence_ids.astype(np.int32))[None], device),
        starts.tolist(),
    )


def refuse_head(opened: OpenedModel, command: str) -> None:
    """Raise ModelError where a head for labels stands in place of the token probabilities."""
    if opened.model.config.head_outputs:
        raise ModelError(f"{opened.where}: a model with a head for labels predicts no tokens, so it cannot {command}")


def refuse_encoder(opened: OpenedModel, command: str) -> None:
    """Raise ModelError where the model sees both ways and so has no next token, or predicts none."""
    refuse_head(opened, command)
    if not opened.mask.causal:
        raise ModelError(f"{opened.where}: a bidirectional model, trained by mlm, cannot {command}")
