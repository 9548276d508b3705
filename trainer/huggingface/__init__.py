"""Models from Hugging Face's folders and into them.

Read `folder` first: what is read of a folder, and where its files must agree. Then `import_` and `export`, the two
commands, and `tokenizer_files`: the tokenizer of a job as files that transformers reads.
"""

from .export import export, export_step
from .folder import HuggingFaceFolder, is_hugging_face, open_for_job
from .import_ import import_folder
from .tokenizer_files import TOKENIZER

__all__ = ["TOKENIZER", "HuggingFaceFolder", "export", "export_step", "import_folder", "is_hugging_face", "open_for_job"]
