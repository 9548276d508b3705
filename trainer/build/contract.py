"""The eos contract: every party that knows special ids states them, and nothing expensive starts until they agree.

`datasets` and `models` never import each other, so the tokenizer and packer on one side and the attention mask on the
other are independent witnesses. This file compares them, first by what they state, then by what they do to real rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from ...base import aligned
from ...datasets.loading import Batch, Source
from ...datasets.rows import Objective, Packer, document_ends, row_violations
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
    """What one party says about special ids; None: it does not say.

    Attributes:
        party: who says it.
        where: it is written.
        eos: every id that the party accepts as the end of a document.
        pad: fills rows up.
        vocab: number of ids.
        tokenizer: fingerprint of the tokenizer that the party is, or whose ids it holds.
        bos: opens every document.
        mask: hides tokens of the masked objective.
        unk: stands for what the vocabulary lacks.
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

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer) -> "Statement":
        """Return what a tokenizer says."""
        return cls(
            party="tokenizer",
            where=tokenizer.where,
            eos=(tokenizer.eos_id,),
            pad=tokenizer.pad_id,
            vocab=tokenizer.vocab_size,
            tokenizer=tokenizer.fingerprint,
            **{role: getattr(tokenizer, f"{role}_id") for role in OTHERS},
        )

    @classmethod
    def of_hf_file(cls, party: str, where: str, said: Mapping[str, Any]) -> "Statement":
        """Return what `config.json`, or another file of Hugging Face's with its keys, says; `vocab_size` aside."""
        eos = said.get("eos_token_id")
        several = tuple(eos) if isinstance(eos, list) else None if eos is None else (eos,)
        return cls(party=party, where=where, eos=several, pad=said.get("pad_token_id"), mask=said.get("mask_token_id"))

    @classmethod
    def of_checkpoint(cls, found: Found) -> "Statement":
        """Return what a checkpoint says."""
        saved = found.state.contract
        return cls(party="checkpoint", where=found.where, **saved.model_dump(exclude={"eos"}), eos=(saved.eos,))

    def ids(self, role: str) -> set[int]:
        """Return the ids that the party gives a role; empty where it does not say."""
        value = getattr(self, role)
        return set() if value is None else {value} if isinstance(value, int) else set(value)


@dataclass(frozen=True)
class Contract:
    """What every party states. `str` is the table of it, which ends each message.

    Attributes:
        statements: of each party.
        keeps_eos: whether documents may hold eos ids inside: each document ends with one, but not each eos ends one.
    """

    statements: Sequence[Statement]
    keeps_eos: bool = False

    @classmethod
    def of_job(
        cls,
        config: JobConfig,
        tokenizer: Tokenizer,
        packer: Packer,
        mask: DocumentMask,
        vocab_size: int,
        sources: Sequence[Source] = (),
        checkpoint: Found | None = None,
    ) -> "Contract":
        """Collect the statements of a job that is about to train.

        Args:
            config: of the job; may state an eos id of its own.
            tokenizer: of the job, and what a Hugging Face configuration beside it says.
            packer: that ends documents in rows.
            mask: that finds their ends again.
            vocab_size: rows of the embedding.
            sources: token shards among them state the ids that they were made with.
            checkpoint: with the weights to start from.
        """
        statements = [
            Statement.of_tokenizer(tokenizer),
            Statement(party="packer", where="datasets.rows.Packer", eos=(packer.eos_id,), pad=packer.pad_id),
            Statement(party="attention mask", where="models.attention.DocumentMask", eos=(mask.eos_id,), pad=mask.pad_id),
            Statement(party="model", where="model.vocab_size (embedding rows)", vocab=vocab_size),
        ]
        if config.model.eos_id is not None:
            statements.append(Statement(party="TOML", where="model.eos_id", eos=(config.model.eos_id,)))
        if (said := tokenizer.hf_config) is not None:
            statement = Statement.of_hf_file("Hugging Face config", said["where"], said)
            statements.append(replace(statement, vocab=said.get("vocab_size")))
        for source in sources:
            statements += shard_statements(source)
        if checkpoint is not None:
            statements.append(Statement.of_checkpoint(checkpoint))
        return cls(statements, config.data.keeps_eos)

    @classmethod
    def of_checkpoint(cls, found: Found, tokenizer: Tokenizer) -> "Contract":
        """Collect the statements about a checkpoint that is to be used with a tokenizer."""
        rows = Statement(party="model", where=found.where, vocab=found.state.model.vocab_size)
        return cls([Statement.of_tokenizer(tokenizer), Statement.of_checkpoint(found), rows])

    def check(self) -> None:
        """Compare what the parties say.

        Raises:
            EosMismatchError: with the whole table, when two parties disagree on a role, when one gives two
                roles to an id (the pad may be the eos, as labels go by position; no others may), when an id lies
                outside the embedding, when the tokenizer or the checkpoint needs more (another number of) ids than the
                embedding has, or when token shards hold the ids of another tokenizer.
        """
        complaints: list[str] = []
        for role in ROLES:
            told = [(s.party, s.ids(role)) for s in self.statements if getattr(s, role) is not None]
            for index, (party, values) in enumerate(told):
                complaints += [
                    f"{party} says {role} is {show(values)}, {other} says {show(others)}"
                    for other, others in told[index + 1 :]
                    if not values & others
                ]
        for s in self.statements:
            complaints += [
                f"{s.party}'s {role} and {other} are both {show(both)}: a model cannot tell them apart; "
                "give each an id of its own"
                for role, other in combinations(ROLES, 2)
                if (role, other) != ("eos", "pad") and (both := s.ids(role) & s.ids(other))
            ]
        made = [s for s in self.statements if s.tokenizer is not None]
        complaints += [
            f"{s.party}: the ids are of a tokenizer with fingerprint {s.tokenizer}, that of [tokenizer] is "
            f"{made[0].tokenizer}: name the one that made them"
            for s in made[1:]
            if s.tokenizer != made[0].tokenizer
        ]
        rows = next(s.vocab for s in self.statements if s.party == "model")
        assert rows is not None
        for s in self.statements:
            complaints += [
                f"{s.party}'s {role} {id_} is outside the embedding, which has {rows} rows"
                for role in ROLES
                for id_ in sorted(s.ids(role))
                if not 0 <= id_ < rows
            ]
            if s.party == "checkpoint" and s.vocab != rows:
                complaints.append(f"the checkpoint's embedding has {s.vocab} rows, model.vocab_size is {rows}")
            elif s.vocab is not None and s.vocab > rows:
                complaints.append(f"{s.party} has {s.vocab} ids, model.vocab_size only {rows}: raise it to at least {s.vocab}")
        if complaints:
            raise EosMismatchError("\n  ".join(["the eos contract is broken:", *complaints]) + "\n\n" + str(self))

    def check_rows(self, batch: Batch, objective: Objective, mask: DocumentMask) -> None:
        """Hold real rows against both sides: the packer's documents must be the ones that the mask's eos implies.

        Where documents keep their eos, each of the packer's must end at the mask's eos.

        Raises:
            EosMismatchError: naming the first row and position at which the two differ, or the broken row invariant.
        """
        if self.keeps_eos:
            self._check_ends(batch, mask)
        else:
            self._check_implied(batch, mask)
        tokens, labels, positions, ids = (t.numpy() for t in (batch.tokens, batch.labels, batch.positions, batch.sequence_ids))
        goes_on = batch.goes_on if self.keeps_eos else None
        violations = row_violations(tokens, labels, positions, ids, mask.eos_id, objective, goes_on)
        if violations:
            raise EosMismatchError("\n  ".join([f"rows {batch.rows[0]} and on:", *violations]) + "\n\n" + str(self))

    def _check_ends(self, batch: Batch, mask: DocumentMask) -> None:
        ends = torch.from_numpy(document_ends(batch.sequence_ids.numpy(), batch.goes_on))
        wrong = ends & (batch.tokens != mask.eos_id)
        if wrong.any():
            row, position = (int(i) for i in torch.nonzero(wrong)[0])
            document, found = int(batch.sequence_ids[row, position]), int(batch.tokens[row, position])
            raise EosMismatchError(
                f"row {batch.rows[row]}, position {position}: the packer ends document {document} at id {found}, which is "
                f"not the attention mask's eos {mask.eos_id}\n\n{self}"
            )

    def _check_implied(self, batch: Batch, mask: DocumentMask) -> None:
        implied = mask.sequence_ids(batch.tokens)
        # a document may hold the pad id, or end in an eos that is one: only the packer knows where that is no padding
        ambiguous = (implied < 0) & (batch.tokens == mask.pad_id)
        different = (implied != batch.sequence_ids) & ~ambiguous
        if different.any():
            row, position = (int(i) for i in torch.nonzero(different)[0])
            packed, found = int(batch.sequence_ids[row, position]), int(implied[row, position])
            raise EosMismatchError(
                f"row {batch.rows[row]}, position {position}: the packer says document {packed}, "
                f"the attention mask's eos {mask.eos_id} implies {found} (-1: padding)\n\n{self}"
            )

    def __str__(self) -> str:
        """Return aligned text: party | where | eos | pad | vocab | others; `-` where a party does not say."""
        rows: list[tuple[str, ...]] = [("party", "where it is written", "eos", "pad", "vocab", "others")]
        for s in self.statements:
            others = ", ".join(f"{role} {getattr(s, role)}" for role in OTHERS if getattr(s, role) is not None)
            rows.append((s.party, s.where, *(show(s.ids(key)) or "-" for key in ("eos", "pad", "vocab")), others or "-"))
        return "\n".join(aligned(rows))


def contract_of(tokenizer: Tokenizer, decoder: DecoderConfig) -> SavedContract:
    """Return what a checkpoint states: the contract of a model of this shape that reads with this tokenizer."""
    ids = {role: getattr(tokenizer, f"{role}_id") for role in ROLES}
    return SavedContract(vocab=decoder.vocab_size, tokenizer=tokenizer.fingerprint, **ids)


def shard_statements(source: Source) -> list[Statement]:
    """Return what a source's token shards say: one statement for all that say the same, with the path of the first."""
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


def show(values: set[int]) -> str:
    """Return `5`, or `5 or 7` where a party accepts several."""
    return " or ".join(map(str, sorted(values)))
