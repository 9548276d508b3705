"""DOOR of huggingface: HuggingFaceFolder, import, export."""

import json
from pathlib import Path
from typing import Any

import torch

from ...datasets.errors import DataConfigError
from ...datasets.tokenizers import Tokenizer
from ...models.config import DecoderConfig
from ...models.decoder import Decoder
from ...models.huggingface import from_hf, hf_names
from ..build import Contract, Statement, contract_of, open_tokenizer
from ..checkpoints import MANIFEST, Folder, Found, Index, Piece, RunState, SafetensorsFile, SavedContract
from ..config import JobConfig, TokenizerTable
from ..errors import CheckpointError, ConfigError
from .tokenizer_files import TOKENIZER, own_kind

WEIGHTS, INDEX, CONFIG, GENERATION = (
    "model.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
)


def stored_names(decoder: DecoderConfig) -> dict[str, str]:
    """Our name to Hugging Face's of every tensor that a file holds: of a tied table once, under the embedding's name."""
    names = hf_names(decoder)
    if decoder.tie_embeddings:
        del names["output.weight"]
    return names


def row_length(stated: dict[str, Any], decoder: DecoderConfig) -> dict[str, int]:
    """The `seq_len` of the job that made a model, as far as its `config.json` tells.

    That is its longest text, except where transformers has other rotary angles for the texts beyond `original_seq_len`. A model
    has one set of them here, and it is that of all texts up to there.
    """
    longest = decoder.rope.original_seq_len if decoder.rope.by_length else stated.get("max_position_embeddings")
    return {"seq_len": longest} if type(longest) is int and longest > 0 else {}


def find_tensors(source: Path, decoder: DecoderConfig) -> dict[str, SafetensorsFile]:
    """Hugging Face's name to the file that holds it, for every tensor of the decoder.

    Raises:
        ConfigError: there are no safetensors.
        CheckpointError: listing every tensor that is missing, unexpected, or of another shape or kind.
    """
    index = read_json(source / INDEX)
    files = sorted(set(map(str, index.get("weight_map", {}).values()))) if index else [WEIGHTS]
    fresh_parameters = [name for name in files if Path(name).name != name or not (source / name).is_file()]
    if fresh_parameters:
        pickles = sorted(path.name for path in source.glob("*.bin"))
        hint = (
            f"; {pickles[0]} is a pickle, which can run code when it is read, and never is here: load it with transformers "
            "where you trust it, and save_pretrained writes safetensors"
            if pickles
            else ""
        )
        raise ConfigError(f"{source}: there is no {', '.join(fresh_parameters)}{hint}")
    opened = [SafetensorsFile(source / name) for name in files]
    found = {name: file for file in opened for name in file.specs if not name.endswith(".rotary_emb.inv_freq")}
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Decoder(decoder).state_dict().items()}
    shapes = {theirs: expected[ours] for ours, theirs in stored_names(decoder).items()}
    complaints = [f"{name}: missing, it should be {list(shapes[name])}" for name in shapes if name not in found]
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if decoder.tie_embeddings and {head, table} <= found.keys():
        # a file may hold the table of a tied model twice
        if not torch.equal(found[head].read(head), found[table].read(table)):
            complaints.append(f"{head}: differs from {table}, though tie_word_embeddings is true")
        del found[head]
    for name, file in found.items():
        dtype, shape = file.specs[name]
        if name not in shapes:
            complaints.append(f"{name}: unexpected, {list(shape)} in {file.path.name}")
        elif shape != shapes[name]:
            complaints.append(f"{name}: {list(shape)} in {file.path.name}, it should be {list(shapes[name])}")
        elif dtype not in (torch.float32, torch.bfloat16, torch.float16):
            complaints.append(f"{name}: {dtype} in {file.path.name}; supported: float32, bfloat16, float16")
    if complaints:
        raise CheckpointError("\n  ".join([f"{source}: the tensors are not those that {CONFIG} describes:", *complaints]))
    return found


def find_tokenizer(source: Path, eos_token: str | None, pad_token: str | None) -> tuple[TokenizerTable, Tokenizer | None]:
    """The `[tokenizer]` table that reads this folder's tokenizer, and the tokenizer, None where there is none.

    Raises:
        ConfigError: its special tokens cannot be known.
    """
    file = source / TOKENIZER
    if not file.is_file():
        if eos_token or pad_token:
            raise ConfigError(f"{source}: there is no {TOKENIZER} to look up --eos-token or --pad-token in")
        return TokenizerTable(kind="hf"), None
    table = TokenizerTable(kind="hf", path=str(source), eos_token=eos_token, pad_token=pad_token)
    if eos_token is None and pad_token is None and (kind := own_kind(file)):
        table = TokenizerTable.model_validate({"kind": kind})
    try:
        return table, open_tokenizer(table)
    except DataConfigError as error:
        raise ConfigError(f"{error}; `cistron import` takes them by --eos-token and --pad-token") from None


def agree(source: Path, stated: dict[str, Any], decoder: DecoderConfig, tokenizer: Tokenizer | None) -> SavedContract:
    """The contract of the checkpoint: eos, pad and embedding rows, on which all files of the folder agree.

    Raises:
        EosMismatchError: they do not.
        ConfigError: there is no tokenizer, and not one id alone is stated.
    """
    said = [(CONFIG, stated), (GENERATION, read_json(source / GENERATION) or {})]
    statements = [Statement.of_tokenizer(tokenizer)] if tokenizer else []
    statements.append(Statement(party="model", where=f"{source / CONFIG} (vocab_size)", vocab=decoder.vocab_size))
    for file, content in said:
        eos, pad = content.get("eos_token_id"), content.get("pad_token_id")
        several = tuple(eos) if isinstance(eos, list) else None if eos is None else (eos,)
        mask = content.get("mask_token_id")
        where = str(source / file)
        statements.append(Statement(party=file.removesuffix(".json"), where=where, eos=several, pad=pad, mask=mask))
    Contract(statements).check()
    if tokenizer:
        return contract_of(tokenizer, decoder)
    ends = [set(statement.eos) for statement in statements if statement.eos]
    common = set.intersection(*ends) if ends else set()
    if len(common) != 1:
        raise ConfigError(
            f"{source}: there is no {TOKENIZER}, and {CONFIG} and {GENERATION} say eos_token_id {sorted(common) or 'nowhere'}: "
            f"write the one id that ends a document into {CONFIG}"
        )
    (eos,) = common
    pad = next((statement.pad for statement in statements if statement.pad is not None), eos)
    return SavedContract(eos=eos, pad=pad, vocab=decoder.vocab_size, tokenizer=None, mask=stated.get("mask_token_id"))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is no file. Raises ConfigError for anything else."""
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds a {type(content).__name__}, not a JSON object")
    return content


def is_hugging_face(folder: Folder) -> bool:
    """Whether the folder holds a model of Hugging Face's rather than a checkpoint."""
    return folder.size(CONFIG) is not None and folder.size(MANIFEST) is None


def open_hugging_face(folder: Folder, table: TokenizerTable) -> Found:
    """The weights of a Hugging Face folder, as if they were those of a checkpoint.

    Args:
        folder: with config.json and safetensors.
        table: `[tokenizer]`, which says what ends a document where the folder's own tokenizer would say something else.

    Raises:
        ConfigError: a file is missing, the folder is not on a disk, or it cannot be known which id ends a document.
        ModelError: config.json describes what the decoder is not.
        CheckpointError: tensors are missing, unexpected, or of another shape or kind, each listed.
        EosMismatchError: tokenizer, config.json and generation_config.json disagree.
    """
    if not folder.is_local:
        raise ConfigError(f"checkpoint.initial_load_path = {str(folder)!r}: a Hugging Face folder must be on a disk")
    source = Path(folder)
    stated = read_json(source / CONFIG)
    assert stated is not None
    decoder = from_hf(stated)
    files = find_tensors(source, decoder)
    named = table if table.kind == "hf" and (source / TOKENIZER).is_file() else TokenizerTable()
    _, tokenizer = find_tokenizer(source, named.eos_token, named.pad_token)
    contract = agree(source, stated, decoder, tokenizer)

    ours = {theirs: f"model.{name}" for name, theirs in stored_names(decoder).items()}
    index: Index = {}
    for file in dict.fromkeys(files.values()):
        # those that the decoder has not are listed too: with them, a file's first tensor is where its data begin
        for theirs, spec in file.specs.items():
            piece = Piece(file.path.name, file.begins[theirs], (0,) * len(spec[1]), spec[1])
            index[ours.get(theirs, theirs)] = spec, [piece]
    rows = row_length(stated, decoder)
    training = {"objective": "causal" if decoder.causal else "mlm", **rows}
    job = JobConfig.model_validate({"training": training})
    state = RunState.of(config=job, model=decoder, contract=contract)
    return Found(folder, state, where=str(source / CONFIG), seq_len=rows.get("seq_len"), files={}, index=index)
