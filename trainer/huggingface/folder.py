"""A folder with a Hugging Face model: its config.json, its tensors and its tokenizer, read and compared in one place.

Only safetensors are read: a pickle can run code. Of several that a folder holds, those are read that transformers
reads: what `config.json` names in `transformers_weights`, else `model.safetensors`, else what its index lists. A newer
file and an older index lie side by side where a model was saved twice.
"""

import json
import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import ValidationError

from ...base import Json, problems, read_json, shown, text_of
from ...datasets.errors import DataConfigError
from ...datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer, stated_ids
from ...models.config import PRESETS, DecoderConfig
from ...models.decoder import Decoder
from ...models.huggingface import from_hf, hf_names
from ..build import Contract, Statement, contract_of
from ..checkpoints import MANIFEST, FileSet, Folder, Found, Index, RunState, SavedContract, file_index, foreign
from ..config import JobConfig
from ..errors import CheckpointError, ConfigError, EosMismatchError
from .tokenizer_files import TOKENIZER, json_if_there, own_kind

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, GENERATION, NAMED = "config.json", "generation_config.json", "transformers_weights"
# Files of weights, or what lists or needs them; not those of a trainer (`optimizer.pt`, `training_args.bin`).
WEIGHT_FILES = re.compile(
    r".+\.(safetensors|gguf)|.+\.index(\.\w+)?\.json|(pytorch_model|consolidated|adapter_model).*\.(bin|pth)"
    r"|tf_model\.h5|flax_model.*\.msgpack|adapter_config\.json"
)


@dataclass(frozen=True, kw_only=True)
class HuggingFaceFolder:
    """A model of Hugging Face's that the decoder can be, with everything that the folder says of it.

    Attributes:
        path: of the folder.
        decoder: the shape that `config.json` describes.
        seq_len: tokens of the rows of its training; None: `config.json` does not say. Those of its longest text, but
            with a scaling that has other rotary angles beyond `original_seq_len`: there those up to that length.
        index: where its tensors are, by the names of a checkpoint's.
        table: the `[tokenizer]` table that reads the folder's tokenizer.
        tokenizer: what it gives; None: there is no `tokenizer.json`.
        contract: eos, pad and embedding rows, on which all files of the folder agree.
        fingerprint: changes with `config.json` and the files of the weights.
        said: which files of weights were read, and which lie beside them unread.
    """

    path: Path
    decoder: DecoderConfig
    seq_len: int | None
    index: Index
    table: TokenizerConfig
    tokenizer: Tokenizer | None
    contract: SavedContract
    fingerprint: str
    said: str

    @classmethod
    def open(cls, folder: Folder, eos_token: str | None = None, pad_token: str | None = None) -> "HuggingFaceFolder":
        """Read everything but the values of the tensors.

        Args:
            folder: with `config.json` and safetensors.
            eos_token: text of the token that ends a document, where the tokenizer's own is another.
            pad_token: likewise of padding.

        Raises:
            ConfigError: a file is missing or not readable, the folder is not on a disk, or it cannot be known which id
                ends a document.
            ModelError: `config.json` describes what the decoder is not.
            CheckpointError: tensors are missing, unexpected, or of another shape or type, each listed.
            EosMismatchError: tokenizer, `config.json` and `generation_config.json` disagree.
        """
        if not folder.is_local:
            raise ConfigError(f"{folder}: a Hugging Face folder must be on a disk")
        path = Path(folder)
        config = json_if_there(path / CONFIG)
        if config is None:
            raise ConfigError(f"{path}: has no {CONFIG}: {foreign_or_missing(path)}")
        decoder = from_hf(dict(config))
        files, listed = files_of_weights(path, config)
        index = find_tensors(path, decoder, files, listed)
        table, tokenizer = find_tokenizer(path, eos_token, pad_token)
        longest = decoder.rope.original_seq_len if decoder.rope.by_length else config.get("max_position_embeddings")
        stats = [(name, stat.st_size, stat.st_mtime_ns) for name in files for stat in [(path / name).stat()]]
        return cls(
            path=path,
            decoder=decoder,
            seq_len=longest if type(longest) is int and longest > 0 else None,
            index=index,
            table=table,
            tokenizer=tokenizer,
            contract=agreed_contract(path, config, decoder, tokenizer, pad_token),
            fingerprint=xxhash.xxh3_128_hexdigest(json.dumps([config, stats]).encode()),
            said=said_of(path, files, listed),
        )

    def tables(self, table: TokenizerConfig) -> dict[str, dict[str, Any]]:
        """Return `[model]`, `[tokenizer]` and, of a bidirectional model, `[training]` of a job that starts from it."""
        shape, rows = self.decoder.table(), self.decoder.vocab_size
        named = [name for name in PRESETS if PRESETS[name].replace(vocab_size=rows) == self.decoder]
        preset = {"preset": named[0]} if named else {}  # for people: all that it sets is set here too
        tables = {"model": {**preset, **shape}, "tokenizer": table.model_dump(exclude_none=True)}
        return tables if self.decoder.causal else {**tables, "training": {"objective": "mlm"}}

    def job(self, table: TokenizerConfig | None = None) -> JobConfig:
        """Return the job that starts from it, with the rows of its training where they are known.

        Args:
            table: `[tokenizer]`; None: the folder's own.
        """
        tables = self.tables(table or self.table)
        rows = {"seq_len": self.seq_len} if self.seq_len else {}
        try:
            return JobConfig.model_validate({**tables, "training": {**tables.get("training", {}), **rows}})
        except ValidationError as error:
            raise ConfigError("\n  ".join([f"{self.path}: no job can start from this model:", *problems(error)])) from None

    def found(self) -> Found:
        """Return the weights as if they were those of a checkpoint, to begin a run or to use a model."""
        state = RunState.of(config=self.job(), model=self.decoder, contract=self.contract)
        where = str(self.path / CONFIG)
        return Found(Folder(self.path), state, where, self.seq_len, self.fingerprint, files={}, index=self.index)


def is_hugging_face(folder: Folder) -> bool:
    """Return whether the folder holds a model of Hugging Face's rather than a checkpoint."""
    return folder.size(CONFIG) is not None and folder.size(MANIFEST) is None


def open_for_job(folder: Folder, table: TokenizerConfig) -> tuple[Found, str]:
    """Return the weights of a Hugging Face folder that a job begins from, and which files were read.

    Args:
        folder: with `config.json` and safetensors.
        table: `[tokenizer]` of the job, which says what ends a document where the folder's own tokenizer says
            otherwise.

    Raises:
        ConfigError, ModelError, CheckpointError, EosMismatchError: as `HuggingFaceFolder.open`.
    """
    named = table if table.kind == "hf" and folder.size(TOKENIZER) is not None else TokenizerConfig()
    opened = HuggingFaceFolder.open(folder, named.eos_token, named.pad_token)
    return opened.found(), opened.said


def stored_names(decoder: DecoderConfig) -> dict[str, str]:
    """Return Hugging Face's name by ours of every stored tensor: of a tied table only the embedding's."""
    names = hf_names(decoder)
    if decoder.tie_embeddings:
        del names["output.weight"]
    return names


def find_tensors(source: Path, decoder: DecoderConfig, files: list[str], listed: str | None) -> Index:
    """Return where every tensor of the decoder is, by its name in a checkpoint.

    Tensors that the decoder has not are there too, under their own names: a file's first one is where its data begin.

    Args:
        source: the folder.
        decoder: whose tensors they are.
        files: that hold them.
        listed: the index that names these files, if one does.

    Raises:
        ConfigError: there are no safetensors.
        CheckpointError: listing every tensor that is missing, unexpected, or of another shape or type, or in two files.
    """
    if missing := [name for name in files if not is_plain_file(source, name)]:
        hint = f"which {listed} names; copy it from where the others come from" if listed else foreign(Folder(source))
        if (source / missing[0][:255]).is_symlink():
            hint = "which is a link that leads nowhere"
        raise ConfigError(
            f"{source}: there is no {', '.join(missing)}"
            + (f"{',' if hint.startswith('which') else ';'} {hint}" if hint else "")
        )
    index: Index = {}
    complaints = []
    for file in files:
        refuse_pointer(source / file)
        held = file_index(source / file)
        complaints += [f"{name}: both in {index[name][1][0].file} and in {file}" for name in held if name in index]
        index |= held
    found = {name: entry for name, entry in index.items() if not name.endswith(".rotary_emb.inv_freq")}
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Decoder(decoder).state_dict().items()}
    names = stored_names(decoder)
    shapes = {theirs: expected[ours] for ours, theirs in names.items()}
    complaints += [f"{name}: missing, it should be {list(shapes[name])}" for name in shapes if name not in found]
    head, table = "lm_head.weight", "model.embed_tokens.weight"
    if decoder.tie_embeddings and {head, table} <= found.keys():
        # a file may hold the table of a tied model twice
        tensors = FileSet(Folder(source), index)
        if not torch.equal(tensors.whole(head), tensors.whole(table)):
            complaints.append(f"{head}: differs from {table}, though tie_word_embeddings is true")
        del found[head]
    for name, ((dtype, shape), (piece,)) in found.items():
        if name not in shapes:
            complaints.append(f"{name}: unexpected, {list(shape)} in {piece.file}")
        elif shape != shapes[name]:
            complaints.append(f"{name}: {list(shape)} in {piece.file}, it should be {list(shapes[name])}")
        elif dtype not in (torch.float32, torch.bfloat16, torch.float16):
            complaints.append(f"{name}: {dtype} in {piece.file}; supported: float32, bfloat16, float16")
    if complaints:
        raise CheckpointError("\n  ".join([f"{source}: the tensors are not those that {CONFIG} describes:", *complaints]))
    others = {name: entry for name, entry in index.items() if name not in shapes}
    return {**{f"model.{ours}": index[theirs] for ours, theirs in names.items()}, **others}


def files_of_weights(source: Path, config: Json) -> tuple[list[str], str | None]:
    """Return the names of the files that hold the tensors, and of the index that lists them, None where none does.

    In the order of transformers' `from_pretrained`.

    Raises:
        ConfigError: `config.json` names no file of safetensors or index of them, or an index names no files.
    """
    name = config.get(NAMED)
    if name is None:
        name = WEIGHTS if (source / WEIGHTS).is_file() or not (source / INDEX).is_file() else INDEX
    elif not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise ConfigError(f"{source / CONFIG}: {NAMED} is {shown(name)}; it must name a safetensors file, or an index of such")
    if not name.endswith(".json"):
        return [name], None
    if not is_plain_file(source, name):
        raise ConfigError(f"{source}: there is no {name}, which {CONFIG} names in {NAMED}")
    named = read_json(source / name, ConfigError).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(file, str) for file in named.values()):
        problem = f"weight_map is {shown(named)}; it must be an object with the file of each tensor by its name"
        raise ConfigError(f"{source / name}: {problem}")
    return sorted(set(named.values())), name


def said_of(source: Path, files: list[str], listed: str | None) -> str:
    """Return which files were read, and which files of weights were not."""
    read = files[0] if listed is None else f"the {len(files)} files that {listed} names"
    others = sorted(path.name for path in source.iterdir() if WEIGHT_FILES.fullmatch(path.name))
    unread = [name for name in others if name not in files and name != listed]
    return f"{source}: weights from {read}" + (f"; beside them, not read: {', '.join(unread)}" if unread else "")


def foreign_or_missing(path: Path) -> str:
    """Return what a path leads to that has no `config.json`, and what to do."""
    if not path.exists():
        return "there is no such folder; `hf download NAME --local-dir FOLDER` fetches a model from the hub"
    if path.is_file():
        return "it is a file; name the folder that holds it and config.json"
    return foreign(Folder(path)) or "not a folder of a Hugging Face model"


def refuse_pointer(path: Path) -> None:
    """Raise CheckpointError where git-lfs has left a pointer in place of the weights."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version "):  # as no safetensors file does: it would be of 10^18 bytes
        text_of(head, str(path), CheckpointError)


def is_plain_file(folder: Path, name: str) -> bool:
    """Return whether a name, which leads nowhere else, is that of a file in a folder."""
    try:
        return Path(name).name == name and (folder / name).is_file()
    except (OSError, ValueError):  # longer than names are, or with a NUL
        return False


def find_tokenizer(source: Path, eos_token: str | None, pad_token: str | None) -> tuple[TokenizerConfig, Tokenizer | None]:
    """Return the `[tokenizer]` table that reads this folder's tokenizer, and the tokenizer, None where there is none.

    Raises:
        ConfigError: its special tokens cannot be known.
    """
    file = source / TOKENIZER
    if not file.is_file():
        if eos_token or pad_token:
            raise ConfigError(f"{source}: there is no {TOKENIZER} to look up --eos-token or --pad-token in")
        return TokenizerConfig(kind="hf"), None
    table = TokenizerConfig(kind="hf", path=str(source), eos_token=eos_token, pad_token=pad_token)
    if eos_token is None and pad_token is None and (kind := own_kind(file)):
        table = TokenizerConfig.model_validate({"kind": kind})
    try:
        return table, build_tokenizer(table)
    except DataConfigError as error:
        raise ConfigError(f"{error}; `cistron import` takes them by --eos-token and --pad-token") from None


def agreed_contract(
    source: Path, config: Json, decoder: DecoderConfig, tokenizer: Tokenizer | None, pad_token: str | None
) -> SavedContract:
    """Return eos, pad and embedding rows, on which all files of the folder agree.

    Whoever names a pad overrules what `config.json` says of it: padding goes by its place, never by its id.

    Raises:
        EosMismatchError: they do not.
        ConfigError: there is no tokenizer, and the files do not name one id that ends a document.
    """
    statements = [Statement.of_tokenizer(tokenizer)] if tokenizer else []
    statements.append(Statement(party="model", where=f"{source / CONFIG} (vocab_size)", vocab=decoder.vocab_size))
    for file, content in ((CONFIG, config), (GENERATION, json_if_there(source / GENERATION) or {})):
        content = stated_ids(content, str(source / file), ConfigError)
        statements.append(Statement.of_hf_file(file.removesuffix(".json"), str(source / file), content))
    settled = [replace(statement, pad=None) for statement in statements]
    try:
        Contract([*statements[:1], *settled[1:]] if pad_token else statements).check()
    except EosMismatchError as error:
        if tokenizer is None or pad_token:
            raise
        Contract(settled).check()
        end = shlex.quote(tokenizer.decode([tokenizer.eos_id]))
        advice = (
            f"`cistron import {source} OUT --pad-token {end}` settles the pad: the eos may fill rows, as padding goes by place"
        )
        raise EosMismatchError(f"{error}\n\n{advice}") from None
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
    return SavedContract(eos=eos, pad=pad, vocab=decoder.vocab_size, tokenizer=None, mask=config.get("mask_token_id"))
