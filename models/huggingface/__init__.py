"""The decoder as Hugging Face describes it: names of parameters and `config.json`, in both directions.

Read `model.py` first (classes, names, sizes), then `rope.py` (rotary scaling). Reading and writing files is the
trainer's.
"""

from .model import architecture, from_hf, hf_names, to_hf

__all__ = ["architecture", "from_hf", "hf_names", "to_hf"]
