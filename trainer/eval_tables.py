"""The TOML's `[eval]` tables: how a model is judged on documents longer than those of its training."""

import re
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from .tables import Fraction, Name, NonNegative, Positive, Table

Metric: TypeAlias = Literal["BLEU", "ROUGE"]
ONCE: Any = AfterValidator(lambda values: list(dict.fromkeys(values)))  # what is named twice is measured once
LENGTH = re.compile(r"([1-9]\d*)(x?)")  # the command line has numbers as text too


class Passkey(Table):
    """A number that a long document says once, and is asked for at its end."""

    samples: NonNegative = 10
    """Documents for each depth and length; 0: no pass keys."""
    digits: Positive = 5
    """Letters of a key."""
    depths: Annotated[list[Fraction], ONCE] = Field(default=[0.0, 0.25, 0.5, 0.75, 1.0], min_length=1)
    """Where the key is said: 0 at the document's beginning, 1 right before it is asked for."""
    alphabet: Name | None = None
    """Letters that keys are drawn from; unset: 0123456789, and letters of the sequences for dna and protein."""
    needle: Name | None = None
    """What is said, with {key} for the key; unset: a sentence, or for dna and protein a marker before the key."""
    query: Name | None = None
    """What stands at the end, before the key; unset: a question, or the marker."""

    @model_validator(mode="after")
    def fits_together(self) -> "Passkey":
        """Refuse a needle without a key, and one without its query."""
        wrong = []
        if self.needle is not None and "{key}" not in self.needle:
            wrong.append(f"eval.extrapolation.passkey.needle = {self.needle!r}: must contain {{key}}")
        if (self.needle is None) != (self.query is None):
            wrong.append("eval.extrapolation.passkey: needle and query belong together; set both or neither")
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Continuation(Table):
    """How near the most likely continuation of a long document comes to the real one."""

    samples: NonNegative = 0
    """Documents for each length; 0: none. Each token is a forward pass over the whole document."""
    tokens: Positive = 32
    """Tokens of a continuation; the prompt is as many shorter than the length."""
    metrics: Annotated[list[Metric], ONCE] = Field(default=["BLEU", "ROUGE"], min_length=1)
    """BLEU by sacrebleu, ROUGE (the F-measures of ROUGE-1, -2, -L) by rouge-score: pip install 'cistron[eval]'."""


class Extrapolation(Table):
    """Loss and retrieval on documents longer than those of training, by every method that needs no training."""

    enable: bool = False
    """Evaluate in training too, every `freq` steps and after the last one, on [[validation.sources]]."""
    freq: Positive = 5000
    """Steps between evaluations in training."""
    lengths: list[Positive | str] = Field(default=["1x", "2x", "4x", "8x"], min_length=1)
    """Tokens, or as "4x" multiples of model.rope.original_seq_len; unset there: of training.seq_len."""
    methods: Annotated[list[Name], ONCE] = Field(default_factory=list)
    """What to compare (docs/length_extrapolation.md); unset: all that the model allows."""
    score_last: Positive = 64
    """Last tokens of the longest length, whose loss is taken again with less and less before them."""
    documents: Positive = 32
    """Documents of each length that are used, the first that are long enough; how many there are is said."""
    passkey: Passkey = Passkey()
    """Retrieval of a pass key."""
    continuation: Continuation = Continuation()
    """Quality of continuations."""

    def tokens(self, trained: int) -> list[int]:
        """The lengths in ascending order, for a model that was trained on rows of `trained` tokens."""
        matches = (LENGTH.fullmatch(str(length)) for length in self.lengths)
        return sorted({int(match[1]) * (trained if match[2] else 1) for match in matches if match})

    @model_validator(mode="after")
    def fits_together(self) -> "Extrapolation":
        """Refuse what is no length."""
        wrong = [
            f'eval.extrapolation.lengths = {length!r}: must be a number of tokens, or a multiple such as "4x"'
            for length in self.lengths
            if not LENGTH.fullmatch(str(length))
        ]
        if wrong:
            raise ValueError("\n".join(wrong))
        return self


class Eval(Table):
    """Evaluations other than validation."""

    extrapolation: Extrapolation = Extrapolation()
    """Loss and retrieval on documents longer than those of training, by every method that needs no training."""
