"""trainer/checkpoints."""

from .dcp import CheckpointReader
from .find import NEWEST, ask, find, good
from .folder import Folder, staged
from .format import MANIFEST, STATE, Found, Progress, differences, manifest_text, read, read_newest, saved_job, write_whole
from .load import load
from .saver import Saver, remember_going_back, set_aside_after
from .tensors import Index, Piece, SafetensorsFile, Spec, WholeTensors, as_bytes, data_bytes, header

__all__ = [
    "MANIFEST",
    "NEWEST",
    "STATE",
    "CheckpointReader",
    "Folder",
    "Found",
    "Index",
    "Piece",
    "Progress",
    "SafetensorsFile",
    "Saver",
    "Spec",
    "WholeTensors",
    "as_bytes",
    "ask",
    "data_bytes",
    "differences",
    "find",
    "good",
    "header",
    "load",
    "manifest_text",
    "read",
    "read_newest",
    "remember_going_back",
    "saved_job",
    "set_aside_after",
    "staged",
    "write_whole",
]
