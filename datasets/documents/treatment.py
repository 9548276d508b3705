"""What is done with documents between their files and the rows: letters weighed, strands turned, long ones cut."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import DataConfigError
from ..tokenizers import Tokenizer
from .letters import Letters
from .strands import Strands

LONG = ("split", "window", "truncate", "error")


@dataclass(frozen=True, kw_only=True)
class DocumentConfig:
    """What `[data]` asks for.

    Attributes:
        letters: Weights and case of letters.
        reverse_complement: Probability that a document is read on its other strand.
        long_documents: What becomes of one that is longer than a row. `split`: full rows and a rest. `window`: rows that begin
            with the last `window_overlap` tokens of the one before, as context alone. `truncate`: its first row is used.
            `error`: it is a bad record.
        window_overlap: See there; 0 with all others.
    """

    letters: Letters = field(default_factory=Letters)
    reverse_complement: float = 0.0
    long_documents: str = "split"
    window_overlap: int = 0

    def check(self, tokenizer: Tokenizer, policy: str, seq_len: int) -> None:
        """Refuse settings that do not fit each other, the tokenizer or the packing. Raises DataConfigError."""
        self.letters.check(tokenizer)
        Strands(self.reverse_complement, 0, tokenizer)
        if self.reverse_complement and self.letters.exclude_tags:
            raise DataConfigError(
                f"data.reverse_complement = {self.reverse_complement}: tags (data.exclude_tags) have no other strand; "
                "leave one of them out"
            )
        if self.long_documents not in LONG:
            raise DataConfigError(f"data.long_documents = {self.long_documents!r}: is not one of {', '.join(map(repr, LONG))}")
        if self.long_documents != "split" and policy == "concat":
            raise DataConfigError(
                f'data.long_documents = "{self.long_documents}": data.packing = "concat" cuts documents of any length; '
                'use packing = "best_fit"'
            )
        if self.long_documents == "window" and not 0 < self.window_overlap < seq_len:
            raise DataConfigError(
                f"data.window_overlap = {self.window_overlap}: a window of training.seq_len = {seq_len} tokens shares from "
                f"1 to {seq_len - 1} of them with the one before"
            )
        if self.long_documents != "window" and self.window_overlap:
            raise DataConfigError(
                f'data.window_overlap = {self.window_overlap}: is read with data.long_documents = "window" alone; leave it out'
            )

    def identity(self) -> dict[str, Any]:
        """What determines the rows, by the keys of `[data]`."""
        settings = asdict(self)
        return {**settings.pop("letters"), **settings}

    @property
    def as_read(self) -> "DocumentConfig":
        """The same without augmentation, for validation."""
        return replace(self, reverse_complement=0.0)

    @property
    def whole(self) -> bool:
        """Whether a document must be seen whole to be treated."""
        return self.reverse_complement > 0 or self.long_documents in ("truncate", "error")


def too_long(length: int, seq_len: int, at_least: bool = False) -> str:
    """What is wrong with a document under `long_documents = "error"`; `at_least`: of which no more was counted."""
    counted = f"{'at least ' if at_least else ''}{length:,} tokens, its eos included, and training.seq_len = {seq_len:,}"
    return (
        f'the document has {counted} with data.long_documents = "error"; raise it, or, unless labels are of whole documents, '
        'let "split", "window" or "truncate" take it'
    )
