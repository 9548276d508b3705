"""A Hugging Face folder as a checkpoint to train from.

    OUT/step-0/         the weights, complete and without an optimizer: what `checkpoint.initial_load_path` takes
    OUT/tokenizer/      the tokenizer's files, and the config.json that is a party to the eos contract
    OUT/model.toml      [model], [tokenizer], the objective and [checkpoint] of a job that starts from it

Only safetensors are read: a pickled pytorch_model.bin could run code, and is refused. One tensor is in memory at a
time.
"""

from pathlib import Path

import tomli_w

from ...models.huggingface import architecture
from ..checkpoints import Folder, RunState, WholeTensors, atomic_folder, write_whole
from ..errors import ConfigError
from .folder import CONFIG, GENERATION, HuggingFaceFolder, stored_names
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
        InUseError: another process writes `out`.
        ConfigError: a file is missing, `out` is taken, or it cannot be known which id ends a document.
        ModelError: config.json describes what the decoder is not.
        CheckpointError: tensors are missing, unexpected, or of another shape or kind, each listed; or `out` cannot be
            written.
        EosMismatchError: tokenizer, config.json and generation_config.json disagree.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: exists already; name a new folder")
    opened = HuggingFaceFolder.open(Folder(source), eos_token, pad_token)
    decoder, table, contract = opened.decoder, opened.table, opened.contract

    home = out.absolute()
    if table.path:
        table = table.model_copy(update={"path": str(home / TOKENIZER_FOLDER)})
    weights = WholeTensors(source, opened.index)
    specs = {name: weights.spec(name) for name in stored_names(decoder)}
    told = f"{architecture(decoder)}, {decoder.parameter_count():,} parameters"
    with atomic_folder(out) as folder:
        state = RunState.of(config=opened.job(table), model=decoder, contract=contract)
        write_whole(folder / STEP, specs, weights.read, state)
        if table.path:
            (folder / TOKENIZER_FOLDER).mkdir()
            for file in sorted({CONFIG, GENERATION, *TOKENIZER_FILES}):
                if (source / file).is_file():
                    (folder / TOKENIZER_FOLDER / file).write_bytes((source / file).read_bytes())
        body = tomli_w.dumps({**opened.tables(table), "checkpoint": {"initial_load_path": str(home / STEP)}})
        (folder / TOML).write_text(HEAD.format(source=source.absolute(), told=told, toml=home / TOML) + body)
    messages = [f"imported {source} to {out / STEP}: {told}, eos {contract.eos}, pad {contract.pad}"]
    messages.append(opened.said)
    if opened.tokenizer is None:
        others = any((source / name).is_file() for name in ("tokenizer.model", "vocab.json", "vocab.txt"))
        made = f" (AutoTokenizer.from_pretrained({str(source)!r}).save_pretrained(FOLDER) makes one)" if others else ""
        messages.append(f"there is no {TOKENIZER} in {source}: name one in tokenizer.path of {out / TOML}{made}")
    if not decoder.causal and contract.mask is None:
        messages.append(f"no file states a mask token: name one in tokenizer.mask_token of {out / TOML}")
    messages.append(f'to train from it, begin a TOML with extends = "{home / TOML}" and add [[data.sources]] and [training]')
    return messages
