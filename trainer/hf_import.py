"""A Hugging Face folder as a checkpoint to train from.

    OUT/step-0/         the weights, complete and without an optimizer: what `checkpoint.initial_load_path` takes
    OUT/tokenizer/      the tokenizer's files, and the config.json that is a party to the eos contract
    OUT/model.toml      [model], [tokenizer], the objective and [checkpoint] of a job that starts from it

Only safetensors are read: a pickled pytorch_model.bin could run code, and is refused. One tensor is in memory at a time.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from .. import __version__
from ..datasets.errors import DataConfigError
from ..datasets.tokenizers import Tokenizer
from ..models.config import PRESETS, DecoderConfig
from ..models.decoder import Decoder
from ..models.huggingface import architecture, from_hf
from .checkpoint import write_whole
from .components import open_tokenizer
from .config import ConfigError, JobConfig
from .contract import Statement, check_statements, ids, other_roles, tokenizer_statement
from .hf_export import CONFIG, GENERATION, INDEX, WEIGHTS, stored_names
from .hf_tokenizer import TOKENIZER, TOKENIZER_FILES, own_kind
from .safetensors_files import SafetensorsFile
from .staging import staged
from .storage import CheckpointError
from .tables import TokenizerTable
from .totals import Progress

STEP, TOML, TOKENIZER_FOLDER = "step-0", "model.toml", "tokenizer"
HEAD = """\
# {source}
# {told}
#
#   extends = "{toml}"
#
# in a TOML with [[data.sources]] and [training] of its own trains from these weights.

"""


def import_folder(source: Path, out: Path, *, eos_token: str | None = None, pad_token: str | None = None) -> list[str]:
    """Write `out`; it appears whole or not at all.

    Args:
        source: folder with config.json and safetensors.
        out: the folder, which must not exist or be empty.
        eos_token: text of the token that ends a document, where the tokenizer's own is another.
        pad_token: likewise of padding.

    Returns:
        What a person should know of it, a line each.

    Raises:
        ConfigError: a file is missing, `out` is taken, or it cannot be known which id ends a document.
        ModelError: config.json describes what the decoder is not.
        CheckpointError: tensors are missing, unexpected, or of another shape or kind, each listed; or `out` cannot be written.
        EosMismatchError: tokenizer, config.json and generation_config.json disagree.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: exists already; name a new folder")
    stated = read_json(source / CONFIG)
    if stated is None:
        raise ConfigError(f"{source}: has no {CONFIG}: not a folder of a Hugging Face model")
    decoder = from_hf(stated)
    files = find_tensors(source, decoder)
    table, tokenizer = find_tokenizer(source, eos_token, pad_token)
    contract = agree(source, stated, decoder, tokenizer)

    home = out.absolute()
    if table.path:
        table = table.model_copy(update={"path": str(home / TOKENIZER_FOLDER)})
    shape = decoder.table()
    name = next((name for name, preset in PRESETS.items() if replace(preset, vocab_size=decoder.vocab_size) == decoder), None)
    tables = {
        "model": {"preset": name, **shape} if name else shape,  # for people: all that it sets is set here too
        "tokenizer": table.model_dump(exclude_none=True),
        "training": {} if decoder.causal else {"objective": "mlm"},
    }
    filled = {name: content for name, content in tables.items() if content}
    names = stored_names(decoder)
    specs = {ours: files[theirs].specs[theirs] for ours, theirs in names.items()}
    told = f"{architecture(decoder)}, {decoder.parameter_count():,} parameters"
    with staged(out) as folder:
        training = {**tables["training"], **row_length(stated, decoder)}
        state = first_state(decoder, contract, {**tables, "training": training})
        write_whole(folder / STEP, specs, lambda name: files[names[name]].read(names[name]), state)
        if table.path:
            (folder / TOKENIZER_FOLDER).mkdir()
            for file in sorted({CONFIG, GENERATION, *TOKENIZER_FILES}):
                if (source / file).is_file():
                    (folder / TOKENIZER_FOLDER / file).write_bytes((source / file).read_bytes())
        body = tomli_w.dumps({**filled, "checkpoint": {"initial_load_path": str(home / STEP)}})
        (folder / TOML).write_text(HEAD.format(source=source.absolute(), told=told, toml=home / TOML) + body)
    messages = [f"imported {source} to {out / STEP}: {told}, eos {contract['eos']}, pad {contract['pad']}"]
    if tokenizer is None:
        messages.append(f"there is no {TOKENIZER} in {source}: name one in tokenizer.path of {out / TOML}")
    if not decoder.causal and contract["mask"] is None:
        messages.append(f"no file states a mask token: name one in tokenizer.mask_token of {out / TOML}")
    messages.append(f'to train from it, begin a TOML with extends = "{home / TOML}" and add [[data.sources]] and [training]')
    return messages


def row_length(stated: dict[str, Any], decoder: DecoderConfig) -> dict[str, int]:
    """The `seq_len` of the job that made a model, as far as its `config.json` tells.

    That is its longest text, except where transformers has other rotary angles for the texts beyond `original_seq_len`. A model
    has one set of them here, and it is that of all texts up to there.
    """
    longest = decoder.rope.original_seq_len if decoder.rope.by_length else stated.get("max_position_embeddings")
    return {"seq_len": longest} if type(longest) is int and longest > 0 else {}


def first_state(decoder: DecoderConfig, contract: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    """What `state.json` of a checkpoint at step 0 holds."""
    return {
        "progress": asdict(Progress()),
        "data": None,
        "contract": contract,
        "model": asdict(decoder),
        "config": JobConfig.model_validate(tables).to_dict(),
        "versions": {"cistron": __version__, "torch": torch.__version__},
    }


def find_tensors(source: Path, decoder: DecoderConfig) -> dict[str, SafetensorsFile]:
    """Hugging Face's name to the file that holds it, for every tensor of the decoder.

    Raises:
        ConfigError: there are no safetensors.
        CheckpointError: listing every tensor that is missing, unexpected, or of another shape or kind.
    """
    index = read_json(source / INDEX)
    files = sorted(set(map(str, index.get("weight_map", {}).values()))) if index else [WEIGHTS]
    lacking = [name for name in files if Path(name).name != name or not (source / name).is_file()]
    if lacking:
        pickles = sorted(path.name for path in source.glob("*.bin"))
        hint = (
            f"; {pickles[0]} is a pickle, which can run code when it is read, and never is here: load it with transformers "
            "where you trust it, and save_pretrained writes safetensors"
            if pickles
            else ""
        )
        raise ConfigError(f"{source}: there is no {', '.join(lacking)}{hint}")
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


def agree(source: Path, stated: dict[str, Any], decoder: DecoderConfig, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The contract of the checkpoint: eos, pad and embedding rows, on which all files of the folder agree.

    Raises:
        EosMismatchError: they do not.
        ConfigError: there is no tokenizer, and not one id alone is stated.
    """
    said = [(CONFIG, stated), (GENERATION, read_json(source / GENERATION) or {})]
    statements = [tokenizer_statement(tokenizer)] if tokenizer else []
    statements.append(Statement(party="model", where=f"{source / CONFIG} (vocab_size)", vocab=decoder.vocab_size))
    for file, content in said:
        eos, pad = content.get("eos_token_id"), content.get("pad_token_id")
        several = tuple(eos) if isinstance(eos, list) else None if eos is None else (eos,)
        mask = content.get("mask_token_id")
        where = str(source / file)
        statements.append(Statement(party=file.removesuffix(".json"), where=where, eos=several, pad=pad, mask=mask))
    check_statements(statements)
    rows = decoder.vocab_size
    if tokenizer:
        told = {"eos": tokenizer.eos_id, "pad": tokenizer.pad_id, "vocab": rows, "tokenizer": tokenizer.fingerprint}
        return {**told, **other_roles(tokenizer)}
    ends = [ids(statement.eos) for statement in statements if statement.eos]
    common = set.intersection(*ends) if ends else set()
    if len(common) != 1:
        raise ConfigError(
            f"{source}: there is no {TOKENIZER}, and {CONFIG} and {GENERATION} say eos_token_id {sorted(common) or 'nowhere'}: "
            f"write the one id that ends a document into {CONFIG}"
        )
    (eos,) = common
    pad = next((statement.pad for statement in statements if statement.pad is not None), eos)
    return {"eos": eos, "pad": pad, "vocab": rows, "tokenizer": None, "mask": stated.get("mask_token_id")}


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
