"""What is done with documents between their files and the rows: letters weighed, strands chosen, long ones cut."""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import Self, override

from ...base import TOKENS, Fraction, Name, changed
from ..tokenizers import Tokenizer
from .letters import Letters, letter_complaints
from .strands import strand_complaints


class DocumentConfig(Letters):
    """The keys of `[data]` about what is done with documents."""

    reverse_complement: Fraction = 0.0
    """Probability that a document is read on its other strand, drawn per document and epoch; byte, dna; in training."""
    long_documents: Literal["split", "window", "truncate", "error"] = "split"
    """Longer than a row. split: rows and a rest. window: overlapping rows. truncate: first row. error: a bad record."""
    window_overlap: Annotated[int, Field(ge=0, lt=TOKENS)] = 0
    """long_documents window: tokens that a row repeats from the one before, as context without loss."""
    interior_eos: Literal["refuse", "keep"] = "refuse"
    """An eos inside of a document of ids or messages. refuse: a bad record. keep: a token like any, no end."""

    trained_roles: list[Name] = Field(default_factory=lambda: ["assistant"], min_length=1)
    """jsonl_messages: the roles whose messages are targets; all other tokens are context without loss."""

    @override
    def complaints(self) -> list[str]:
        wrong = []
        if self.reverse_complement and self.exclude_tags:
            wrong.append(
                f"data.reverse_complement = {self.reverse_complement}: tags (data.exclude_tags) have no other strand; "
                "leave one of them out"
            )
        if self.long_documents != "window" and self.window_overlap:
            wrong.append(
                f'data.window_overlap = {self.window_overlap}: is read with data.long_documents = "window" alone; leave it out'
            )
        return wrong

    def identity(self) -> dict[str, Any]:
        """Return what determines the rows, by the keys of `[data]`."""
        # Left out at their defaults: a run that was begun before there were these keys goes on.
        added = {key for key in ("interior_eos", "trained_roles") if not changed(self, key)}
        return {key: getattr(self, key) for key in DocumentConfig.model_fields if key not in added}

    @property
    def as_read(self) -> Self:
        """The same without augmentation, for validation."""
        return self.model_copy(update={"reverse_complement": 0.0})

    @property
    def keeps_eos(self) -> bool:
        """Whether a document may hold eos ids inside."""
        return self.interior_eos == "keep"

    @property
    def whole(self) -> bool:
        """Whether a document must be seen whole to be treated."""
        return self.reverse_complement > 0 or self.long_documents in ("truncate", "error")


def document_complaints(config: DocumentConfig, tokenizer: Tokenizer, policy: str, seq_len: int) -> list[str]:
    """Name the keys that do not fit the tokenizer, the packing `policy` or rows of `seq_len`, a line for each."""
    wrong = [*letter_complaints(config, tokenizer), *strand_complaints(config.reverse_complement, tokenizer)]
    if config.long_documents != "split" and policy == "concat":
        wrong.append(
            f'data.long_documents = "{config.long_documents}": data.packing = "concat" cuts documents of any length; '
            'use packing = "best_fit"'
        )
    if config.long_documents == "window" and not 0 < config.window_overlap < seq_len:
        wrong.append(
            f"data.window_overlap = {config.window_overlap}: a window of training.seq_len = {seq_len} tokens shares from "
            f"1 to {seq_len - 1} of them with the one before"
        )
    return wrong


def too_long(length: int, seq_len: int, at_least: bool = False) -> str:
    """Return what is wrong with a long document; `at_least`: no more of it was counted."""
    counted = f"{'at least ' if at_least else ''}{length:,} tokens, its eos included, and training.seq_len = {seq_len:,}"
    return (
        f'the document has {counted} with data.long_documents = "error"; raise it, or, unless labels are of whole documents, '
        'let "split", "window" or "truncate" take it'
    )
