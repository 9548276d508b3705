"""trainer/huggingface."""

from .export import export, export_step
from .folder import CONFIG, find_tokenizer, is_hugging_face, open_hugging_face, read_json, row_length
from .import_ import import_folder
from .tokenizer_files import TOKENIZER

__all__ = [
    "CONFIG",
    "TOKENIZER",
    "export",
    "export_step",
    "find_tokenizer",
    "import_folder",
    "is_hugging_face",
    "open_hugging_face",
    "read_json",
    "row_length",
]
