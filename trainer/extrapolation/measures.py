"""Train short, test long: what a model makes of documents longer than those of its training, by each method.

| measure | of which documents | falls or rises because |
|---|---|---|
| `loss` | the first T tokens of all that are at least so long | of everything that length changes |
| `last_loss` | the *same* last tokens of those as long as the longest T, seen T tokens | the context alone differs |
| `positions` | the first T tokens of these, T the longest, by position | of where a method breaks |
| `passkey` | the first tokens of those at least T long, a key hidden among them | far tokens can be found |
| `continuation` | the same, their last tokens left out | of what it can write |

A shorter document never stands in for a longer one: how many are long enough is counted, and said.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from ...datasets.config import DataConfig
from ...datasets.loading import RowSettings, SinglePass
from ...datasets.tokenizers import Ids, Tokenizer
from ...models.config import DecoderConfig
from ..config import Extrapolation, JobConfig
from ..errors import ConfigError
from ..metrics import finite
from .continuation import check_packages, quality
from .long_rows import Array, LongRowModel
from .methods import WINDOWED, MethodSettings, Trained, choose, settings_of, settings_text
from .passkey import prompts, retrieved

BUCKETS = 32  # of positions


@dataclass(frozen=True, kw_only=True)
class LengthResult:
    """What a method came to at a length; losses are means in nats.

    Attributes:
        method: see `methods`.
        length: T, tokens.
        settings: in what it differs from training.
        loss: of all tokens.
        last_loss: of the same last tokens at every length.
        positions: of the longest length alone: first position, last position, loss of the tokens there.
        passkey: share of keys retrieved, by depth.
        continuation: scores from 0 to 100 by name.
    """

    method: str
    length: int
    settings: str
    loss: float
    last_loss: float
    positions: list[tuple[int, int, float]] = field(default_factory=list)
    passkey: dict[float, float] = field(default_factory=dict)
    continuation: dict[str, float] = field(default_factory=dict)

    def curves(self) -> dict[str, float]:
        """Its numbers by names such as `yarn/loss/1024`."""
        keys = sum(self.passkey.values()) / len(self.passkey) if self.passkey else None
        found = {"loss": self.loss, "last_loss": self.last_loss, "passkey": keys, **self.continuation}
        return {f"{self.method}/{name}/{self.length}": value for name, value in found.items() if value is not None}


@dataclass(frozen=True)
class LongDocuments:
    """Documents that are long enough, cut to the longest length.

    Attributes:
        ids: those kept, in order; none has more tokens than the longest length.
        read: how many there were.
        qualified: how many of them are at least so long, by length.
        limit: how many are used of each length.
    """

    ids: list[Ids]
    read: int
    qualified: dict[int, int]
    limit: int

    def at_least(self, length: int) -> list[Ids]:
        """Return the first documents of so many tokens or more."""
        return [ids for ids in self.ids if len(ids) >= length][: self.limit]

    @classmethod
    def of(cls, stream: Iterable[Ids], lengths: Sequence[int], limit: int) -> "LongDocuments":
        """Count all documents and keep those that are needed.

        Raises:
            ConfigError: none is as long as the longest length.
        """
        kept, read, qualified = [], 0, dict.fromkeys(lengths, 0)
        for ids in stream:
            read += 1
            fitting = [length for length in lengths if len(ids) >= length]
            if any(qualified[length] < limit for length in fitting):
                kept.append(ids[: max(lengths)])
            for length in fitting:
                qualified[length] += 1
        found = cls(kept, read, qualified, limit)
        if not qualified[max(lengths)]:
            raise ConfigError(f"eval.extrapolation.lengths: {found}; the longest length needs some: leave it out")
        return found

    def __str__(self) -> str:
        """Return in words how many qualified."""
        counts = (
            f"{count:,} of at least {length:,} tokens" + (f" ({self.limit} used)" if count > self.limit else "")
            for length, count in self.qualified.items()
        )
        return f"of {self.read:,} documents there are {', '.join(counts)}"


def read_sources(config: JobConfig, tokenizer: Tokenizer, longest: int) -> Iterator[Ids]:
    """Yield the documents of `[[validation.sources]]`, each cut to `longest` tokens, as validation would read them.

    Raises:
        DataConfigError, DataError: a source cannot be used.
    """
    kept = {key: getattr(config.data, key) for key in ("on_bad_record", "interior_eos", "trained_roles")}
    data = DataConfig(**config.data.letters.model_dump(), **kept, long_documents="truncate")
    rows = RowSettings(seq_len=longest, seed=config.training.seed, batch_size=1)
    for batch in SinglePass(config.validation.sources, data, tokenizer, rows).batches():
        tokens, ids = batch.tokens[0].numpy(), batch.sequence_ids[0].numpy()
        for document in range(int(ids.max(initial=-1)) + 1):
            yield tokens[ids == document]


def trained_as(decoder: DecoderConfig, rows: int, key: str) -> tuple[Trained, str]:
    """Return what is known of a model's training, and that in words.

    Args:
        decoder: the model's shape, as it was trained.
        rows: tokens of the rows that it was last trained on.
        key: what says so.
    """
    original = decoder.rope.original_seq_len
    if original is None:
        return Trained(decoder, rows, rows), f"trained length {rows:,} ({key})"
    if decoder.rope.scaling == "none" or rows < original:
        beside = f", in rows of {rows:,}" if rows != original else ""
        return Trained(decoder, original, rows), f"trained length {original:,} (model.rope.original_seq_len{beside})"
    scaling = f"with {decoder.rope.scaling} scaling, from {original:,}"
    return Trained(decoder, rows, rows), f"trained length {rows:,} ({key}; {scaling})"


class Plan(NamedTuple):
    """What an evaluation asks.

    Attributes:
        trained: the model.
        methods: names of `methods`.
        documents: to ask about.
        messages: what a person should know of it, a line each.
    """

    trained: Trained
    methods: list[str]
    documents: LongDocuments
    messages: list[str]


def plan(table: Extrapolation, trained: Trained, tokenizer: Tokenizer, read: Callable[[int], Iterable[Ids]]) -> Plan:
    """Everything that can go wrong, before anything runs.

    Args:
        table: what to measure.
        trained: the model.
        tokenizer: of its training.
        read: documents, given how many tokens of each are needed.

    Raises:
        ConfigError, ModelError: what is asked for cannot be measured.
        DataConfigError, DataError: documents cannot be read.
    """
    lengths = table.tokens(trained.length)
    for key, tokens in (
        ("score_last", table.score_last),
        ("continuation.tokens", table.continuation.tokens if table.continuation.samples else 0),
    ):
        if tokens >= lengths[0]:
            raise ConfigError(
                f"eval.extrapolation.{key} = {tokens}: must be below the shortest length, {lengths[0]} tokens: the first token "
                "of a document is never predicted"
            )
    check_packages(table.continuation)
    methods, left_out = choose(table.methods, trained, lengths)
    documents = LongDocuments.of(read(lengths[-1]), lengths, table.documents)
    prompts(table.passkey, tokenizer, documents.at_least(lengths[0]), lengths[0], 0.0)
    otherwise = [method for method in methods if method in WINDOWED]
    warned = [f"warning: {', '.join(otherwise)}: model.attention is not that of its training, on purpose"] if otherwise else []
    return Plan(trained, methods, documents, [str(documents), *left_out, *warned])


def total_tokens(table: Extrapolation, asked: Plan) -> int:
    """Tokens that an evaluation runs, at most: methods that are the same at some length run once."""
    documents, longest = asked.documents, max(asked.documents.qualified)
    total = 0
    for length in documents.qualified:
        here, there = len(documents.at_least(length)), len(documents.at_least(longest))
        rows = here + (there if length < longest else 0) + table.passkey.samples * len(table.passkey.depths)
        total += length * (rows + min(table.continuation.samples, here) * table.continuation.tokens)
    return total * len(asked.methods)


def evaluate(long_model: LongRowModel, table: Extrapolation, asked: Plan) -> list[LengthResult]:
    """Ask a model by each method at each length; afterwards it is as before.

    Args:
        long_model: the model.
        table: what to measure.
        asked: of which documents, and by which methods.
    """
    model, decoder, length_before = long_model.model, asked.trained.decoder, long_model.model.max_document_length
    known: dict[tuple[MethodSettings, int], LengthResult] = {}
    results = []
    try:
        for method in asked.methods:
            for length in asked.documents.qualified:
                found = settings_of(method, asked.trained, length)
                if (found, length) not in known:
                    model.set_positions(*found)
                    told = settings_text(found, asked.trained)
                    known[found, length] = measure_length(long_model, table, asked.documents, method, length, told)
                results.append(replace(known[found, length], method=method))
        return results
    finally:
        model.set_positions(decoder.rope, decoder.attention, length_before)


def measure_length(
    long_model: LongRowModel, table: Extrapolation, documents: LongDocuments, method: str, length: int, told: str
) -> LengthResult:
    """Return all measures of a model as it is now, at one length."""
    longest = max(documents.qualified)
    here, there = documents.at_least(length), documents.at_least(longest)
    losses = long_model.losses([ids[:length] for ids in here])
    tails = losses if length == longest else long_model.losses([tail(ids, length, long_model.tokenizer) for ids in there])
    continued = here[: table.continuation.samples]
    return LengthResult(
        method=method,
        length=length,
        settings=told,
        loss=float(losses.mean()),
        last_loss=float(tails[:, -table.score_last :].mean()),
        positions=by_position(losses) if length == longest else [],
        passkey={
            depth: retrieved(long_model, prompts(table.passkey, long_model.tokenizer, here, length, depth))
            for depth in (table.passkey.depths if table.passkey.samples else ())
        },
        continuation=quality(long_model, table.continuation, [ids[:length] for ids in continued]) if continued else {},
    )


def tail(ids: Ids, length: int, tokenizer: Tokenizer) -> Ids:
    """Return the last `length` tokens of a document, the first of them what opens a document, where anything does."""
    cut = ids[-length:].copy()
    if tokenizer.bos_id is not None:
        cut[0] = tokenizer.bos_id
    return cut


def by_position(losses: Array) -> list[tuple[int, int, float]]:
    """Return first position, last position and mean loss of up to 32 ranges of positions, by the predicted token.

    Args:
        losses: float64 [documents, length - 1], of positions 1, 2, ...
    """
    stretches = np.array_split(np.arange(1, losses.shape[1] + 1), min(BUCKETS, losses.shape[1]))
    return [(int(at[0]), int(at[-1]), float(losses[:, at - 1].mean())) for at in stretches]


def results_json(results: Sequence[LengthResult], table: Extrapolation, asked: Plan) -> dict[str, Any]:
    """Return all results and what was measured as JSON values; numbers that are not finite are null."""
    documents = asked.documents
    return {
        "trained_length": asked.trained.length,
        "lengths": list(documents.qualified),
        "score_last": table.score_last,
        "documents_read": documents.read,
        "documents_qualified": {str(length): count for length, count in documents.qualified.items()},
        "documents_used": {str(length): len(documents.at_least(length)) for length in documents.qualified},
        "results": finite([asdict(result) for result in results]),
    }
