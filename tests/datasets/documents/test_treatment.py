"""What `[data]` says about documents: refused where it fits nothing, and a part of the identity of the data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from cistron.datasets.documents import DocumentConfig, Letters, document_complaints
from cistron.datasets.errors import DataConfigError, DataError, DataOrderError, refuse
from cistron.datasets.lanes import raw_documents
from cistron.datasets.loading import transport
from cistron.datasets.readers import SourceConfig
from cistron.datasets.tokenizers import Encoded, TokenizerConfig, build_tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import (
    TakingTurns,
    byte_loader,
    config,
    numbered_rows,
    take,
    take_on_ranks,
    text_source,
    write_fasta,
    write_shard,
    write_text,
)
from pydantic import ValidationError


def check(config: DocumentConfig, kind: str, policy: str) -> None:
    """Refuse settings that do not fit each other, the tokenizer or the packing."""
    tokenizer = build_tokenizer(TokenizerConfig(kind=kind))
    refuse([*config.complaints(), *document_complaints(config, tokenizer, policy, 32)])


@pytest.mark.parametrize(
    ("settings", "policy", "kind", "message"),
    [
        ({"reverse_complement": 0.5}, "best_fit", "protein", r"data\.reverse_complement = 0\.5: the protein tokenizer"),
        (
            {"reverse_complement": 0.5, "exclude_tags": True}, "best_fit", "byte",
            r"data\.reverse_complement = 0\.5: tags \(data\.exclude_tags\) have no other strand",
        ),
        ({"long_documents": "truncate"}, "concat", "byte", r'long_documents = "truncate": data\.packing = "concat" cuts'),
        ({"long_documents": "window"}, "best_fit", "byte", r"data\.window_overlap = 0: .*shares from 1 to 31"),
        ({"long_documents": "window", "window_overlap": 32}, "best_fit", "byte", r"window_overlap = 32: .*from 1 to 31"),
        ({"window_overlap": 3}, "best_fit", "byte", r'data\.window_overlap = 3: is read with .* "window" alone'),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_its_key(settings: dict[str, Any], policy: str, kind: str, message: str) -> None:
    with pytest.raises(DataConfigError, match=message):
        check(DocumentConfig(**settings), kind, policy)


def test_all_that_does_not_fit_is_told_at_once() -> None:
    settings = DocumentConfig(reverse_complement=0.5, exclude_tags=True, long_documents="truncate", window_overlap=3)
    with pytest.raises(DataConfigError) as caught:
        check(settings, "protein", "concat")
    keys = [line.split(" = ")[0] for line in str(caught.value).splitlines()]
    assert keys == [
        *("data.reverse_complement", "data.window_overlap", "data.exclude_tags"),
        *("data.reverse_complement", "data.long_documents"),
    ]


@pytest.mark.parametrize("settings", [{"reverse_complement": 1.5}, {"long_documents": "cut"}, {"window_overlap": -1}])
def test_what_no_key_may_be_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(settings))):
        DocumentConfig(**settings)


def test_a_resume_under_other_settings_is_refused_by_key(tmp_path: Path) -> None:
    source = text_source(write_text(tmp_path, ["acgt" * 30] * 8))
    with byte_loader(config(source)) as loader:
        take(loader, 1)
        state = loader.state()
    changed = DocumentConfig(lowercase_weight=0.1, long_documents="window", window_overlap=3)
    with pytest.raises(DataOrderError) as refusal, byte_loader(config(source, documents=changed), state=state):
        pass
    differences = (("lowercase_weight", 1.0, 0.1), ("long_documents", "'split'", "'window'"), ("window_overlap", 0, 3))
    for key, before, now in differences:
        assert f"data.{key}: checkpoint {before}, now {now}" in str(refusal.value)
    assert "reverse_complement" not in str(refusal.value)


def test_any_ranks_and_workers_read_the_same_strands_windows_and_weights(tmp_path: Path) -> None:
    texts = ["ACGTacgtN" * (1 + number * 5 % 17) for number in range(160)]
    sources = [
        SourceConfig(name="genome", format="fasta", paths=[write_fasta(tmp_path / "g.fasta", texts)]),
        SourceConfig(name="shards", format="tokens", paths=[str(tmp_path / "shards")]),
    ]
    for number in range(2):
        write_shard(tmp_path / "shards" / f"{number}", [[*text.encode(), 0] for text in texts], weighted=number == 0)
    settings = DocumentConfig(reverse_complement=0.5, long_documents="window", window_overlap=7)
    data = config(*sources, documents=settings)
    with byte_loader(data) as loader:
        expected = numbered_rows(take(loader, 12))
        later = numbered_rows(take(loader, 4))
    for workers in (0, 2):
        with patch.object(transport, "StatefulDataLoader", TakingTurns):
            taken, state = take_on_ranks(data.but(num_workers=workers, batch_size=2), 2, 12)
        assert numbered_rows(taken) == expected
    with byte_loader(data, state=state) as loader:
        assert numbered_rows(take(loader, 4)) == later


def test_validation_reads_documents_on_their_own_strand(tmp_path: Path) -> None:
    source = text_source(write_text(tmp_path, ["aaaac"] * 20))
    data = config(source, documents=DocumentConfig(reverse_complement=1.0))
    (batch,) = data.but(batch_size=8).single_pass().batches()
    text = bytes(batch.tokens[batch.sequence_ids >= 0].tolist())
    assert text == b"aaaac\0" * 20
    with byte_loader(data) as loader:
        text = bytes(take(loader, 1)[0].tokens.flatten().tolist())
    assert set(text.split(b"\0")) & {b"gtttt", b"aaaac"} == {b"gtttt"}


@pytest.mark.parametrize(
    ("letters", "longest"), [(Letters(), 34), (Letters(exclude_degenerate=True), 3 * 2**20)], ids=["plain", "tags"]
)
def test_only_the_head_of_a_document_that_is_cut_is_encoded(tmp_path: Path, letters: Letters, longest: int) -> None:
    lengths = [*range(29, 36), 3 * 2**20]  # the last in several stretches; rows have 32 tokens
    texts = [("acgt"[number % 4 :] + "GATTACAN" * (length // 8 + 1))[:length] for number, length in enumerate(lengths)]
    source = text_source(write_text(tmp_path, texts))
    seen: list[int] = []
    encode = ByteTokenizer.encode_batch

    def measured(self: ByteTokenizer, documents: Sequence[bytes]) -> Encoded:
        seen.extend(map(len, documents))
        return encode(self, documents)

    def rows(long: str) -> tuple[dict[int, Any], str]:
        data = config(source, documents=DocumentConfig(**letters.model_dump(), long_documents=long), lanes=1)
        with byte_loader(data) as loader:
            return numbered_rows(take(loader, 5)), loader.state().left_out()

    with patch.object(ByteTokenizer, "encode_batch", measured):
        found = rows("truncate")
    assert max(seen) == longest
    with patch.object(raw_documents, "has_bases", lambda tokenizer: False):
        assert rows("truncate") == found
    (tmp_path / "0000.txt").write_text("A" * 40)
    counted = "41" if letters.weighted else "at least 35"
    source = text_source(str(tmp_path / "0000.txt"))
    with pytest.raises(DataError, match=f"the document has {counted} tokens, its eos included"):
        rows("error")


def test_what_was_truncated_and_mapped_is_said(tmp_path: Path) -> None:
    source = text_source(write_text(tmp_path, ["acgu" * 30] * 4))
    with byte_loader(config(source, documents=DocumentConfig(long_documents="truncate"), lanes=1)) as loader:
        take(loader, 3)
        assert loader.state().left_out() == "12 document(s) truncated"
