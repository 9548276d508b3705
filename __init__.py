"""Cistron: distributed pretraining on eos-delimited packed rows, for text, DNA and protein."""

__version__ = "0.1.0"
