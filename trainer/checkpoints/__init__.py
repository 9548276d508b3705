"""Checkpoints of a run, on a disk or in an object store: written asynchronously, found, verified and loaded.

Read `format` first: the files of a step's folder, and the manifest that makes them count. Then `state`: what a
checkpoint states of its run. `saver` writes (with `dcp`, which plans who writes what), `find` chooses the one to resume
from, `load` fills a model. `tensors` and `folder` are the ground: safetensors files, and folders by path or URL.
"""

from .dcp import CheckpointReader
from .find import NEWEST, find, on_rank_zero, verified
from .folder import Folder, atomic_folder
from .format import MANIFEST, Found, difference_table, manifest_text, read, read_newest, write_whole
from .load import load
from .saver import Saver, remember_going_back, set_aside_after
from .state import GuardState, Progress, RunState, SavedContract, SpikeWindowState
from .tensors import Index, SafetensorsFile, Spec, TensorPiece, WholeTensors, as_bytes, data_bytes, header

__all__ = [
    "MANIFEST",
    "NEWEST",
    "CheckpointReader",
    "Folder",
    "Found",
    "GuardState",
    "Index",
    "Progress",
    "RunState",
    "SafetensorsFile",
    "SavedContract",
    "Saver",
    "Spec",
    "SpikeWindowState",
    "TensorPiece",
    "WholeTensors",
    "as_bytes",
    "atomic_folder",
    "data_bytes",
    "difference_table",
    "find",
    "header",
    "load",
    "manifest_text",
    "on_rank_zero",
    "read",
    "read_newest",
    "remember_going_back",
    "set_aside_after",
    "verified",
    "write_whole",
]
