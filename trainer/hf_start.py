"""A Hugging Face folder as where training starts: its weights go straight into the model, and nothing is written.

It is held to what `cistron import` holds it to. Each rank reads, tensor by tensor, what it has of them.
"""

from dataclasses import asdict
from pathlib import Path

from ..models.huggingface import from_hf
from .checkpoint import MANIFEST, Found
from .config import ConfigError
from .hf_export import CONFIG, stored_names
from .hf_import import agree, find_tensors, find_tokenizer, read_json, row_length
from .hf_tokenizer import TOKENIZER
from .storage import Folder
from .tables import TokenizerTable
from .tensor_files import Index, Piece


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
    state = {
        "contract": {"where": str(source / CONFIG), **contract},
        "model": asdict(decoder),
        "config": {"training": row_length(stated, decoder)},
    }
    return Found(folder, state, files={}, index=index)
