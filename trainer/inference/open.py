"""From a path to a model that is ready to be used: a checkpoint of any layout, or a Hugging Face folder."""

import os
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch

from ...datasets.tokenizers import Tokenizer, build_tokenizer
from ...models.attention import DocumentMask
from ...models.config import DecoderConfig, Executor
from ...models.decoder import Decoder
from ...models.errors import ModelError
from ..build import Contract, fine_tune
from ..checkpoints import Folder, load, read_newest
from ..config import JobConfig
from ..errors import ConfigError
from ..huggingface import TOKENIZER, HuggingFaceFolder, is_hugging_face
from ..processes import pick_device

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A model that is ready to be used.

    Attributes:
        model: plain, whole, and with gradients enabled.
        tokenizer: of its training.
        mask: the document mask, causal or not, for this device.
        seq_len: tokens of the longest rows that it was trained on, None: unknown; see `HuggingFaceFolder`.
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
        """The device of the weights."""
        return self.model.tok_embeddings.weight.device

    def refuse_head(self, command: str) -> None:
        """Raise ModelError where a head for labels stands in place of the token probabilities."""
        if self.model.config.head_outputs:
            raise ModelError(f"{self.where}: a model with a head for labels predicts no tokens, so it cannot {command}")

    def refuse_encoder(self, command: str) -> None:
        """Raise ModelError where the model is bidirectional and so has no next token, or predicts none."""
        self.refuse_head(command)
        if not self.mask.causal:
            raise ModelError(f"{self.where}: a bidirectional model, trained by mlm, cannot {command}")


ModelOrPath: TypeAlias = OpenedModel | str | os.PathLike[str]


def open_model(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | str = torch.float32,
    on_unknown: str | None = None,
) -> OpenedModel:
    """Load a model as a whole.

        >>> opened = open_model("outputs/dna/checkpoint", device="cpu")
        >>> opened.model.config.n_layers, opened.tokenizer.kind, opened.seq_len
        (2, 'dna', 64)

    Args:
        path: a Cistron checkpoint of any layout, the folder around such ones, of which the newest good one is taken, or
            a Hugging Face folder; of the last nothing is converted on disk.
        device: None: a GPU where there is one.
        dtype: of the weights and of all that is computed: `float32`, `bfloat16` or `float16`; values are rounded to
            nearest.
        on_unknown: of the protein and dna tokenizers: `error` or `map`; None: as the job says, `error` for a HF folder.

    Raises:
        CheckpointError: there is no good checkpoint, or it lacks tensors.
        ModelError: a Hugging Face model that the decoder is not.
        ConfigError: the tokenizer or the device is not there, or there is no such type.
        DataConfigError: the tokenizer lacks no letter, so that `on_unknown` means nothing to it.
        EosMismatchError: the tokenizer is not that of the model.
    """
    try:
        device = torch.empty(0, device=device).device if device is not None else pick_device()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device = {str(device)!r}: {str(error).splitlines()[0]}") from None
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ConfigError(f"dtype = {dtype!r}: must be one of {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    folder = Folder(path)
    hugging_face = is_hugging_face(folder)
    if hugging_face:
        theirs = HuggingFaceFolder.open(folder)
        if theirs.tokenizer is None:
            raise ConfigError(f"{folder}: there is no {TOKENIZER} to read sequences with")
        found, messages, tokenizer = theirs.found(), [theirs.said], theirs.tokenizer
    else:
        found, messages = read_newest(folder)
        tokenizer = build_tokenizer(found.state.config.tokenizer)
    config, decoder = found.state.config, found.state.model
    if on_unknown is not None:
        tokenizer = build_tokenizer(config.tokenizer.model_copy(update={"on_unknown": on_unknown}))
    Contract.of_checkpoint(found, tokenizer).check()
    with torch.device("meta"):
        model = Decoder(decoder, found.seq_len or 0)
        fine_tune(model, config.fine_tuning)
    model.to(dtype).to_empty(device=device)
    model.tie_weights()
    load(found, found.reader(), model, optimizer=None)
    model.requires_grad_(True)  # what training had frozen too
    return OpenedModel(
        model=model,
        tokenizer=tokenizer,
        mask=inference_mask(tokenizer, decoder, device, dtype),
        seq_len=found.seq_len,
        trained=decoder,
        where=str(found.path),
        fingerprint=found.fingerprint,
        config=None if hugging_face else config,
        messages=(*messages, *length_dependent_rope_note(model)),
    )


def opened_model(model: ModelOrPath) -> OpenedModel:
    """Return the model itself, or the one at a path, opened in float32. Raises what `open_model` does."""
    return model if isinstance(model, OpenedModel) else open_model(model)


def length_dependent_rope_note(model: Decoder) -> list[str]:
    """Return what to know of a model whose rotary angles depend on a length."""
    rope = model.config.rope
    if not rope.by_length:
        return []
    length = max(model.max_document_length, rope.trained_length)
    return [
        f'model.rope.scaling is "{rope.scaling}": texts of every length have the rotary angles of {length:,} tokens here '
        "(longer ones their own with --extrapolate), where transformers has those of the length of each text"
    ]


def inference_mask(
    tokenizer: Tokenizer, decoder: DecoderConfig, device: torch.device, dtype: torch.dtype, executor: str = "auto"
) -> DocumentMask:
    """Return the mask of the model's objective, for a kernel without compilation where there is one.

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
