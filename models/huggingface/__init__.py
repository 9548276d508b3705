"""models/huggingface."""

from .model import architecture, from_hf, hf_names, to_hf

__all__ = ["architecture", "from_hf", "hf_names", "to_hf"]
