"""A folder with a Hugging Face model: its config.json, its tensors and its tokenizer, read and compared in one place.

Only safetensors are read: a pickle can run code.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import ValidationError

from ...base import Json, problems, shown, text_of
from ...datasets.errors import DataConfigError
from ...datasets.tokenizers import Tokenizer, TokenizerConfig, build_tokenizer, stated_ids
from ...models.config import PRESETS, DecoderConfig
from ...models.decoder import Decoder
from ...models.huggingface import from_hf, hf_names
from ..build import Contract, Statement, contract_of
from ..checkpoints import MANIFEST, FileSet, Folder, Found, Index, RunState, SavedContract, file_index
from ..config import JobConfig
from ..errors import CheckpointError, ConfigError
from .tokenizer_files import TOKENIZER, json_if_there, own_kind, shows_uppercase

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, GENERATION = "config.json", "generation_config.json"


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
        uppercase: whether `tokenizer.json` puts texts in upper case, as an export of ours does.
    """

    path: Path
    decoder: DecoderConfig
    seq_len: int | None
    index: Index
    table: TokenizerConfig
    tokenizer: Tokenizer | None
    contract: SavedContract
    fingerprint: str
    uppercase: bool

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
            raise ConfigError(f"{path}: has no {CONFIG}: not a folder of a Hugging Face model")
        decoder = from_hf(dict(config))
        index = find_tensors(path, decoder)
        table, tokenizer = find_tokenizer(path, eos_token, pad_token)
        longest = decoder.rope.original_seq_len if decoder.rope.by_length else config.get("max_position_embeddings")
        weights = [file for file in sorted(path.glob("*.safetensors")) if file.is_file()]
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights]
        return cls(
            path=path,
            decoder=decoder,
            seq_len=longest if type(longest) is int and longest > 0 else None,
            index=index,
            table=table,
            tokenizer=tokenizer,
            contract=agreed_contract(path, config, decoder, tokenizer),
            fingerprint=xxhash.xxh3_128_hexdigest(json.dumps([config, stats]).encode()),
            uppercase=table.kind == "byte" and shows_uppercase(path / TOKENIZER),
        )

    def tables(self, table: TokenizerConfig) -> dict[str, dict[str, Any]]:
        """Return `[model]`, `[tokenizer]` and, where they say something, `[data]` and `[training]` of a job from it."""
        shape, rows = self.decoder.table(), self.decoder.vocab_size
        named = [name for name in PRESETS if PRESETS[name].replace(vocab_size=rows) == self.decoder]
        preset = {"preset": named[0]} if named else {}  # for people: all that it sets is set here too
        tables = {"model": {**preset, **shape}, "tokenizer": table.model_dump(exclude_none=True)}
        if self.uppercase:
            tables["data"] = {"uppercase": True}
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


def open_for_job(folder: Folder, table: TokenizerConfig) -> Found:
    """Return the weights of a Hugging Face folder that a job begins from.

    Args:
        folder: with `config.json` and safetensors.
        table: `[tokenizer]` of the job, which says what ends a document where the folder's own tokenizer says
            otherwise.

    Raises:
        ConfigError, ModelError, CheckpointError, EosMismatchError: as `HuggingFaceFolder.open`.
    """
    named = table if table.kind == "hf" and folder.size(TOKENIZER) is not None else TokenizerConfig()
    return HuggingFaceFolder.open(folder, named.eos_token, named.pad_token).found()


def stored_names(decoder: DecoderConfig) -> dict[str, str]:
    """Return Hugging Face's name by ours of every stored tensor: of a tied table only the embedding's."""
    names = hf_names(decoder)
    if decoder.tie_embeddings:
        del names["output.weight"]
    return names


def find_tensors(source: Path, decoder: DecoderConfig) -> Index:
    """Return where every tensor of the decoder is, by its name in a checkpoint.

    Tensors that the decoder has not are there too, under their own names: a file's first one is where its data begin.

    Raises:
        ConfigError: there are no safetensors.
        CheckpointError: listing every tensor that is missing, unexpected, or of another shape or type.
    """
    files = files_of_weights(source)
    missing = [name for name in files if not is_plain_file(source, name)]
    if missing:
        pickles = sorted(path.name for path in source.glob("*.bin"))
        hint = (
            f"; {pickles[0]} is a pickle, which can run code when it is read, and never is here: load it with transformers "
            "where you trust it, and save_pretrained writes safetensors"
            if pickles
            else ""
        )
        raise ConfigError(f"{source}: there is no {', '.join(missing)}{hint}")
    for file in files:
        refuse_pointer(source / file)
    index = {name: entry for file in files for name, entry in file_index(source / file).items()}
    found = {name: entry for name, entry in index.items() if not name.endswith(".rotary_emb.inv_freq")}
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in Decoder(decoder).state_dict().items()}
    names = stored_names(decoder)
    shapes = {theirs: expected[ours] for ours, theirs in names.items()}
    complaints = [f"{name}: missing, it should be {list(shapes[name])}" for name in shapes if name not in found]
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


def files_of_weights(source: Path) -> list[str]:
    """Return the names of the files that hold the tensors. Raises ConfigError for an index that names none."""
    index = json_if_there(source / INDEX)
    if index is None:
        return [WEIGHTS]
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        problem = f"weight_map is {shown(named)}; it must be an object with the file of each tensor by its name"
        raise ConfigError(f"{source / INDEX}: {problem}")
    return sorted(set(named.values()))


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


def agreed_contract(source: Path, config: Json, decoder: DecoderConfig, tokenizer: Tokenizer | None) -> SavedContract:
    """Return eos, pad and embedding rows, on which all files of the folder agree.

    Raises:
        EosMismatchError: they do not.
        ConfigError: there is no tokenizer, and the files do not name one id that ends a document.
    """
    statements = [Statement.of_tokenizer(tokenizer)] if tokenizer else []
    statements.append(Statement(party="model", where=f"{source / CONFIG} (vocab_size)", vocab=decoder.vocab_size))
    for file, content in ((CONFIG, config), (GENERATION, json_if_there(source / GENERATION) or {})):
        content = stated_ids(content, str(source / file), ConfigError)
        statements.append(Statement.of_hf_file(file.removesuffix(".json"), str(source / file), content))
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
    return SavedContract(eos=eos, pad=pad, vocab=decoder.vocab_size, tokenizer=None, mask=config.get("mask_token_id"))
