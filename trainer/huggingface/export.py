"""A checkpoint, whatever layout wrote it, as a folder that `AutoModelForCausalLM.from_pretrained` loads.

    model.safetensors                          or model-00001-of-0000N.safetensors and model.safetensors.index.json
    config.json, generation_config.json        the decoder in Hugging Face's words, eos and pad
    tokenizer.json, tokenizer_config.json, special_tokens_map.json, and what else lay beside the tokenizer

Adapters are merged into the weights beside them. One tensor is in memory at a time, with its adapter. Bytes depend on
weights, configuration and options alone.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...datasets.errors import DataConfigError
from ...datasets.tokenizers import TokenizerConfig, build_tokenizer
from ...models.config import DecoderConfig
from ...models.decoder import Decoder
from ...models.huggingface import architecture, to_hf
from ...models.lora import ADAPTERS, merge
from ..build import Contract
from ..checkpoints import Folder, Found, SavedContract, Spec, WholeTensors, atomic_folder, read, safetensors_bytes
from ..config import JobConfig, Lora
from ..errors import CheckpointError, ConfigError
from .folder import CONFIG, GENERATION, INDEX, WEIGHTS, stored_names
from .tokenizer_files import TOKENIZER, TOKENIZER_FILES, added_around, tokenizer_files

MAX_SHARD_SIZE = 5 * 10**9


def export(
    found: Found,
    out: Path,
    *,
    tokenizer: TokenizerConfig | None,
    dtype: torch.dtype | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    replace: bool = False,
) -> list[str]:
    """Write the folder; it appears whole or not at all.

    Args:
        found: the checkpoint.
        out: the folder.
        tokenizer: what training read documents with; None: no tokenizer files.
        dtype: of the weights; None: as they were saved.
        max_shard_size: bytes of tensors in one file; a larger tensor has a file of its own.
        replace: an earlier export at `out`, and nothing else, may be replaced.

    Returns:
        What a person should know of it, a line each.

    Raises:
        InUseError: another process writes `out`.
        ConfigError: `out` is taken, or the tokenizer is not there.
        EosMismatchError: the tokenizer is not the one that the checkpoint was trained with.
        ModelError: Hugging Face has no class for the decoder.
        CheckpointError: the checkpoint is of another version or lacks weights, or the folder cannot be written.
    """
    refuse_taken(out, replace)
    config, decoder = found.state.config, found.state.model
    architecture(decoder)  # refuses what no class holds before tensors are looked for
    weights = WholeTensors(found.path)
    ours = {theirs: name for name, theirs in stored_names(decoder).items()}
    if missing := sorted(set(ours.values()) - set(weights.names())):
        raise CheckpointError(f"{found.path}: lacks the weights {', '.join(missing)}")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Decoder(decoder).state_dict().items()}
    if wrong := [name for name in ours.values() if weights.spec(name).shape != expected[name]]:
        listing = [f"{name}: {list(weights.spec(name).shape)}, it should be {list(expected[name])}" for name in wrong]
        raise CheckpointError("\n  ".join([f"{found.path}: the tensors are not those of its model:", *listing]))
    specs: dict[str, Spec] = {}
    for theirs, name in ours.items():
        saved, shape = weights.spec(name)
        specs[theirs] = Spec(dtype or saved, shape)
    written_as = next(iter(specs.values())).dtype
    files = hf_configs(decoder, found.state.contract, config.training.seq_len, written_as)
    extra = read_tokenizer(found, tokenizer, decoder) if tokenizer else {}

    parts = divide_by_size(specs, max_shard_size)
    with atomic_folder(out, replace=replace) as folder:
        for file, names in parts.items():
            tensors = (read_merged(weights, ours[name], config.fine_tuning.lora).to(specs[name].dtype) for name in names)
            stream = safetensors_bytes({name: specs[name] for name in names}, tensors, {"format": "pt"})
            Folder(folder).write(file, stream)
        if len(parts) > 1:
            weight_map = {name: file for file, names in parts.items() for name in names}
            files[INDEX] = {"metadata": {"total_size": sum(spec.size for spec in specs.values())}, "weight_map": weight_map}
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content, indent=2) + "\n")
        for file, raw in extra.items():
            (folder / file).write_bytes(raw)

    told = f"{files[CONFIG]['architectures'][0]}, {decoder.parameter_count():,} parameters in {torch_name(written_as)}"
    messages = [f"exported {found.path} to {out}: {told}, {len(parts)} file(s) of weights"]
    if decoder.rope.by_length:
        what = f"training had those of {config.training.seq_len} tokens for all"
        messages.append(f"rotary angles there are those of the length of each text; {what}")
    letters, _ = found.state.trained_letters()
    if not tokenizer:
        messages.append("without a tokenizer" + ("; training had all letters in upper case" if letters.uppercase else ""))
    elif added := added_around(extra[TOKENIZER]):
        messages += added_token_notes(added, tokenizer, decoder)
    if letters.weighted:
        weighed = {key: value for key, value in letters.changed_letters.items() if key != "uppercase"}
        said = ", ".join(f"{key} = {str(value).lower()}" for key, value in weighed.items())
        messages.append(f"the folder does not say how training weighed letters: {said}")
    return messages


def added_token_notes(added: list[str], table: TokenizerConfig, decoder: DecoderConfig) -> list[str]:
    """Return what to know of the tokens that the tokenizer adds to every text, a line each."""
    if build_tokenizer(table).bos_id is None:
        what = "which training never saw: call it with add_special_tokens=False"
    elif decoder.causal:
        what = "as a document has them: to have a text continued, take the last one off"
    else:
        return []
    return [f"the tokenizer puts {' '.join(added)} around a text by itself, {what}"]


def export_step(config: JobConfig, path: Folder) -> list[str]:
    """Export a run's own checkpoint at `path` to its place in the run's folder, in place of a former one."""
    out = Path(config.job.dump_folder) / "huggingface" / path.name
    return export(read(path), out, tokenizer=config.tokenizer, replace=True)


def read_merged(weights: WholeTensors, name: str, lora: Lora) -> Tensor:
    """Return a weight with its adapter merged into it, if it has one: then float32, whatever was saved."""
    adapter = [name.removesuffix("weight") + part for part in ADAPTERS]
    weight = weights.read(name)
    if not all(part in weights.index for part in adapter):
        return weight
    a, b = map(weights.read, adapter)
    return merge(weight, a, b, lora.alpha / lora.rank)


def divide_by_size(specs: Mapping[str, Spec], max_shard_size: int) -> dict[str, list[str]]:
    """Return the names of the tensors of each file, by its name: in order, as many to a file as fit."""
    shards: list[list[str]] = [[]]
    room = max_shard_size
    for name, spec in specs.items():
        if spec.size > room and shards[-1]:
            shards.append([])
            room = max_shard_size
        shards[-1].append(name)
        room -= spec.size
    if len(shards) == 1:
        return {WEIGHTS: shards[0]}
    return {f"model-{number:05}-of-{len(shards):05}.safetensors": names for number, names in enumerate(shards, start=1)}


def hf_configs(decoder: DecoderConfig, contract: SavedContract, seq_len: int, dtype: torch.dtype) -> dict[str, dict[str, Any]]:
    """Return the content of `config.json` and, of a model that generates, `generation_config.json`."""
    eos, pad, bos = contract.eos, contract.pad, contract.bos
    config = to_hf(
        decoder, max_positions=seq_len, dtype=torch_name(dtype), eos_id=eos, pad_id=pad, bos_id=bos, mask_id=contract.mask
    )
    if not decoder.causal:
        return {CONFIG: config}
    return {CONFIG: config, GENERATION: {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}}


def torch_name(dtype: torch.dtype) -> str:
    """Return the name of a type without its module: `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def read_tokenizer(found: Found, table: TokenizerConfig, decoder: DecoderConfig) -> dict[str, bytes]:
    """Return the files of the tokenizer of training.

    Raises ConfigError, or EosMismatchError where it is another one.
    """
    try:
        tokenizer = build_tokenizer(table)
    except DataConfigError as error:
        raise ConfigError(f"{error}; --tokenizer PATH says where it is now, --no-tokenizer leaves it out") from None
    Contract.of_checkpoint(found, tokenizer).check()
    letters, _ = found.state.trained_letters()
    return tokenizer_files(table, tokenizer, uppercase=letters.uppercase)


def refuse_taken(out: Path, replace: bool) -> None:
    """Raise ConfigError where something is at `out`, unless it is an export that may be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not replace:
        raise ConfigError(f"{out}: exists already; name a new folder, or replace an earlier export with --overwrite")
    ours = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors")
    names = {path.name for path in out.iterdir()} if out.is_dir() else {out.name}
    known = {INDEX, CONFIG, GENERATION, *TOKENIZER_FILES}
    strange = sorted(name for name in names - known if not ours.fullmatch(name))
    if strange or CONFIG not in names:
        raise ConfigError(f"{out}: is no export, {strange[0] if strange else 'it has no ' + CONFIG}; name a new folder")
