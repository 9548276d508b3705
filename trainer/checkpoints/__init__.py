"""Checkpoints of a run, on a disk or in an object store: written asynchronously, found, verified and loaded.

Read `format` first: the files of a step's folder, and `manifest`, which makes them count. Then `state`: what a
checkpoint states of its run. `saver` writes (with `dcp`, which plans who writes what), `find` chooses the one to resume
from, `load` fills a model. `tensors` and `folder` are the ground: safetensors files (with `tiling`: whether pieces make
up a tensor), and folders by path or URL. `foreign` knows folders of other programs.
"""

from .dcp import CheckpointReader, pinned_bytes, staging_bytes
from .find import find, on_rank_zero, verified
from .folder import Folder, atomic_folder
from .foreign import foreign
from .format import Found, difference_table, read, read_newest, write_whole
from .load import load
from .manifest import MANIFEST
from .saver import Saver, prepare_folders
from .state import GuardState, Progress, RunState, SavedContract, SpikeWindowState
from .tensors import FileSet, Index, Spec, WholeTensors, file_index, safetensors_bytes

__all__ = [
    "MANIFEST",
    "CheckpointReader",
    "FileSet",
    "Folder",
    "Found",
    "GuardState",
    "Index",
    "Progress",
    "RunState",
    "SavedContract",
    "Saver",
    "Spec",
    "SpikeWindowState",
    "WholeTensors",
    "atomic_folder",
    "difference_table",
    "file_index",
    "find",
    "foreign",
    "load",
    "on_rank_zero",
    "pinned_bytes",
    "prepare_folders",
    "read",
    "read_newest",
    "safetensors_bytes",
    "staging_bytes",
    "verified",
    "write_whole",
]
