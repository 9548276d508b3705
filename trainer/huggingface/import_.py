"""A Hugging Face folder as a checkpoint to train from.

    OUT/step-0/         the weights, complete and without an optimizer: what `checkpoint.initial_load_path` takes
    OUT/tokenizer/      the tokenizer's files, and the config.json that is a party to the eos contract
    OUT/model.toml      [model], [tokenizer], the objective and [checkpoint] of a job that starts from it

Only safetensors are read: a pickled pytorch_model.bin could run code, and is refused. One tensor is in memory at a time.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import tomli_w
import torch

from ... import __version__
from ...models.config import PRESETS, DecoderConfig
from ...models.huggingface import architecture, from_hf
from ..checkpoints import Progress, staged, write_whole
from ..config import JobConfig
from ..errors import ConfigError
from .folder import CONFIG, GENERATION, agree, find_tensors, find_tokenizer, read_json, row_length, stored_names
from .tokenizer_files import TOKENIZER, TOKENIZER_FILES

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
    name = next((name for name in PRESETS if PRESETS[name].replace(vocab_size=decoder.vocab_size) == decoder), None)
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


def first_state(decoder: DecoderConfig, contract: dict[str, Any], tables: dict[str, Any]) -> dict[str, Any]:
    """What `state.json` of a checkpoint at step 0 holds."""
    return {
        "progress": asdict(Progress()),
        "data": None,
        "contract": contract,
        "model": decoder.model_dump(),
        "config": JobConfig.model_validate(tables).to_dict(),
        "versions": {"cistron": __version__, "torch": torch.__version__},
    }
