"""The eos contract: every party that knows special ids states them, and nothing expensive starts until they agree.

`datasets` and `models` never import each other, so the tokenizer and packer on one side and the attention mask on the
other are independent witnesses; this file is the third party that compares them, first by what they say, then by what
they do to the first real rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch

from ...datasets.loading import Batch, Source
from ...datasets.rows import Objective, Packer, row_violations
from ...datasets.tokenizers import Tokenizer
from ...models.attention import DocumentMask
from ...models.config import DecoderConfig
from ..checkpoints import Found, SavedContract
from ..config import JobConfig
from ..errors import EosMismatchError

OTHERS = ("bos", "mask", "unk")
ROLES = ("eos", "pad", *OTHERS)


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What one party says about special ids. None: it does not say. `eos` holds every id that the party accepts as an
    end.

    `bos` opens every document, `mask` hides tokens of the masked objective, `unk` stands for what the vocabulary lacks.
    `tokenizer` is the fingerprint of the tokenizer that the party is, or whose ids it holds.
    """

    party: str
    where: str
    eos: tuple[int, ...] | None = None
    pad: int | None = None
    vocab: int | None = None
    tokenizer: str | None = None
    bos: int | None = None
    mask: int | None = None
    unk: int | None = None


def gather_statements(
    config: JobConfig,
    tokenizer: Tokenizer,
    packer: Packer,
    mask: DocumentMask,
    vocab_size: int,
    sources: Sequence[Source] = (),
    checkpoint: Found | None = None,
) -> list[Statement]:
    """Ask every party. `checkpoint` holds the weights to start from."""
    statements = [
        tokenizer_statement(tokenizer),
        Statement(party="packer", where="datasets.packing.Packer", eos=(packer.eos_id,), pad=packer.pad_id),
        Statement(party="attention mask", where="models.masks.DocumentMask", eos=(mask.eos_id,), pad=mask.pad_id),
        Statement(party="model", where="model.vocab_size (embedding rows)", vocab=vocab_size),
    ]
    if config.model.eos_id is not None:
        statements.append(Statement(party="TOML", where="model.eos_id", eos=(config.model.eos_id,)))
    if tokenizer.hf_config is not None:
        stated = tokenizer.hf_config
        eos = stated.get("eos_token_id")
        statements.append(
            Statement(
                party="Hugging Face config",
                where=stated["where"],
                eos=None if eos is None else tuple(eos) if isinstance(eos, list) else (eos,),
                pad=stated.get("pad_token_id"),
                vocab=stated.get("vocab_size"),
                mask=stated.get("mask_token_id"),
            )
        )
    for source in sources:
        statements += shard_statements(source)
    if checkpoint is not None:
        statements.append(checkpoint_statement(checkpoint))
    return statements


def tokenizer_statement(tokenizer: Tokenizer) -> Statement:
    """What the tokenizer says."""
    return Statement(
        party="tokenizer",
        where=tokenizer.where,
        eos=(tokenizer.eos_id,),
        pad=tokenizer.pad_id,
        vocab=tokenizer.vocab_size,
        tokenizer=tokenizer.fingerprint,
        **other_roles(tokenizer),
    )


def contract_of(tokenizer: Tokenizer, decoder: DecoderConfig) -> SavedContract:
    """Return the contract of a model of this shape that reads documents with this tokenizer."""
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    return SavedContract(vocab=decoder.vocab_size, tokenizer=tokenizer.fingerprint, **ids)


def other_roles(tokenizer: Tokenizer) -> dict[str, int | None]:
    """The tokenizer's `OTHERS`, as a checkpoint keeps them in its contract."""
    return {role: getattr(tokenizer, f"{role}_id") for role in OTHERS}


def checkpoint_statement(found: Found) -> Statement:
    """Return what a checkpoint says by the contract in its `state.json`."""
    contract = found.state.contract
    return Statement(party="checkpoint", where=found.where, **contract.model_dump(exclude={"eos"}), eos=(contract.eos,))


def shard_statements(source: Source) -> list[Statement]:
    """What the manifests of a source's token shards say: one statement for all shards that say the same, with the first."""
    said: dict[tuple[Any, ...], Statement] = {}
    for shard in source.corpus.shards if source.corpus else ():
        m = shard.manifest
        statement = Statement(
            party=f"token shards {source.config.name}",
            where=shard.path,
            eos=(m.eos_id,),
            pad=m.pad_id,
            vocab=m.vocab_size,
            tokenizer=m.tokenizer.fingerprint,
            bos=m.bos_id,
            mask=m.mask_id,
        )
        said.setdefault((m.eos_id, m.pad_id, m.vocab_size, m.tokenizer.fingerprint, m.bos_id, m.mask_id), statement)
    return list(said.values())


def check_statements(statements: Sequence[Statement]) -> None:
    """Compare what the parties say.

    Raises:
        EosMismatchError: with the whole table, when two parties disagree on a role, when one gives two roles to an id
        (the
            pad may be the eos, as labels go by position; no others may), when an id lies outside the embedding, when
            the tokenizer or the checkpoint needs more (another number of) ids than the embedding has, or when token
            shards hold the ids of another tokenizer.
    """
    complaints: list[str] = []
    for role in ROLES:
        said = [(s.party, ids(getattr(s, role))) for s in statements if getattr(s, role) is not None]
        for index, (party, values) in enumerate(said):
            complaints += [
                f"{party} says {role} is {show(values)}, {other} says {show(others)}"
                for other, others in said[index + 1 :]
                if not values & others
            ]
    for s in statements:
        complaints += [
            f"{s.party}'s {role} and {other} are both {show(both)}: a model cannot tell them apart; give each an id of its own"
            for role, other in combinations(ROLES, 2)
            if (role, other) != ("eos", "pad") and (both := ids(getattr(s, role)) & ids(getattr(s, other)))
        ]
    made = [s for s in statements if s.tokenizer is not None]
    complaints += [
        f"{s.party}: the ids are of a tokenizer with fingerprint {s.tokenizer}, that of [tokenizer] is {made[0].tokenizer}: "
        "name the one that made them"
        for s in made[1:]
        if s.tokenizer != made[0].tokenizer
    ]
    rows = next(s.vocab for s in statements if s.party == "model")
    assert rows is not None
    for s in statements:
        complaints += [
            f"{s.party}'s {role} {id_} is outside the embedding, which has {rows} rows"
            for role in ROLES
            for id_ in sorted(ids(getattr(s, role)))
            if not 0 <= id_ < rows
        ]
        if s.party == "checkpoint" and s.vocab != rows:
            complaints.append(f"the checkpoint's embedding has {s.vocab} rows, model.vocab_size is {rows}")
        elif s.vocab is not None and s.vocab > rows:
            complaints.append(f"{s.party} has {s.vocab} ids, model.vocab_size only {rows}: raise it to at least {s.vocab}")
    if complaints:
        raise EosMismatchError("\n  ".join(["the eos contract is broken:", *complaints]) + "\n\n" + table(statements))


def check_rows(batch: Batch, objective: Objective, mask: DocumentMask, statements: Sequence[Statement]) -> None:
    """Hold real rows against both sides: the packer's documents must be the ones that the mask's eos implies.

    Raises:
        EosMismatchError: naming the first row and position at which the two differ, or the row invariant that is
        broken.
    """
    implied = mask.sequence_ids(batch.tokens)
    # a document may hold the pad id, or end in an eos that is one: only the packer can know where that is not padding
    ambiguous = (implied < 0) & (batch.tokens == mask.pad_id)
    different = (implied != batch.sequence_ids) & ~ambiguous
    if different.any():
        row, position = (int(i) for i in torch.nonzero(different)[0])
        raise EosMismatchError(
            f"row {batch.rows[row]}, position {position}: the packer says document {int(batch.sequence_ids[row, position])}, "
            f"the attention mask's eos {mask.eos_id} implies {int(implied[row, position])} (-1: padding)\n\n{table(statements)}"
        )
    tokens, labels, positions, ids = (t.numpy() for t in (batch.tokens, batch.labels, batch.positions, batch.sequence_ids))
    violations = row_violations(tokens, labels, positions, ids, mask.eos_id, objective)
    if violations:
        raise EosMismatchError("\n  ".join([f"rows {batch.rows[0]} and on:", *violations]) + "\n\n" + table(statements))


def ids(value: tuple[int, ...] | int | None) -> set[int]:
    """The ids of a statement's field as a set; empty when it says nothing."""
    return set() if value is None else {value} if isinstance(value, int) else set(value)


def show(values: set[int]) -> str:
    """`5`, or `5 or 7` where a party accepts several."""
    return " or ".join(map(str, sorted(values)))


def table(statements: Sequence[Statement]) -> str:
    """The statements as aligned text: party | where | eos | pad | vocab | others; `-` where a party does not say."""
    rows: list[tuple[str, ...]] = [("party", "where it is written", "eos", "pad", "vocab", "others")]
    for s in statements:
        others = ", ".join(f"{role} {getattr(s, role)}" for role in OTHERS if getattr(s, role) is not None)
        rows.append((s.party, s.where, *(show(ids(value)) or "-" for value in (s.eos, s.pad, s.vocab)), others or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
