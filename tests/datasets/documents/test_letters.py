"""Letters of genomes: what each weighs, wherever its document is cut, from the file to the targets of a batch."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from cistron.datasets.documents import DocumentConfig, LetterEncoder, Letters, letter_complaints
from cistron.datasets.documents import letters as genome
from cistron.datasets.errors import DataConfigError, DataError, refuse
from cistron.datasets.files import FileStore
from cistron.datasets.lanes import Lane, LanePieces, LaneState, RawDocuments, blocks
from cistron.datasets.loading import Loader
from cistron.datasets.prepare import RawCorpus
from cistron.datasets.prepare.run import Task
from cistron.datasets.readers import PieceLine, SourceConfig
from cistron.datasets.readers.fasta import FastaReader
from cistron.datasets.rows import MaskedTokens, MaskingConfig, PackedRow, Packer
from cistron.datasets.tokenizers import TokenizeError, TokenizerConfig, build_tokenizer
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.tests.helpers.corpora import Settings, write_fasta
from cistron.tests.helpers.corpora import config as settings_of
from cistron.trainer.metrics import target_weights
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

EOS, TAG = 0, 6
ALL = Letters(lowercase_weight=0.1, exclude_tags=True, exclude_degenerate=True)
CHOICES = st.builds(
    Letters,
    lowercase_weight=st.sampled_from([0.0, 0.1, 1.0, 2.0]),
    exclude_tags=st.booleans(),
    exclude_degenerate=st.booleans(),
    uppercase=st.booleans(),
)
DNA = st.text(st.sampled_from("ACGTacgtuUNnRy-@#é"), max_size=20)
TAGGED = st.lists(DNA | DNA.map(lambda text: f"|{text[:2]}|"), max_size=6).map("".join)


def weigh_by_hand(text: bytes, letters: Letters, limit: int) -> list[float] | None:
    """One letter after another; None for a document with a tag that is not closed within `limit` letters."""
    weights: list[float] = []
    inside = 0
    tags = letters.exclude_tags or letters.exclude_degenerate
    for byte in text:
        letter = chr(byte)
        of_tag = tags and (inside > 0 or letter == "|")
        if of_tag:
            inside += 1
            if inside > limit:
                return None
            if letter == "|" and inside > 1:
                inside = 0
        weight = letters.lowercase_weight if letter.islower() and letter.isascii() else 1.0
        if letters.exclude_tags and (of_tag or letter in "@#"):
            weight = 0.0
        if letters.exclude_degenerate and not of_tag and letter not in "ACGTUacgtu@#|":
            weight = 0.0
        weights.append(weight)
    return None if inside else [*weights, 1.0]


@settings(max_examples=300, deadline=None)
@given(st.lists(TAGGED | st.text(st.sampled_from("Ac|"), max_size=9), min_size=1, max_size=4), CHOICES, st.data())
def test_weights_are_those_of_a_loop_over_letters_wherever_a_document_is_cut(
    texts: list[str], letters: Letters, data: st.DataObject
) -> None:
    documents = [text.encode() for text in texts]
    expected = [weigh_by_hand(document, letters, TAG) for document in documents]
    encode = LetterEncoder(letters, ByteTokenizer())
    with patch.object(genome, "TAG_LETTERS", TAG):
        bad = next((index for index, weights in enumerate(expected) if weights is None), None)
        if bad is not None:
            with pytest.raises(TokenizeError, match=r"a tag that begins with '\|' is not closed") as caught:
                encode(documents)
            assert caught.value.index == bad
            assert caught.value.offset is not None
            assert documents[bad][caught.value.offset :][:1] == b"|"
            return
        whole = encode(documents)
        cut = data.draw(st.integers(0, len(documents[-1])))
        head = encode([*documents[:-1], documents[-1][:cut]], goes_on=True)
        tail = encode([documents[-1][cut:]], head.tag)
    shown = [document.upper() if letters.uppercase else document for document in documents]
    assert bytes(whole.encoded.ids) == b"".join(document + b"\0" for document in shown)
    if not letters.weighted:
        assert whole.weights is None
        return
    assert whole.weights is not None
    assert head.weights is not None
    assert tail.weights is not None
    assert whole.weights.tolist() == pytest.approx([w for weights in expected if weights for w in weights])
    assert np.array_equal(np.concatenate([head.weights[:-1], tail.weights]), whole.weights)


def test_a_step_weighs_as_savanna_does() -> None:
    """Labels C g t <eos> G G <eos> <pad> <pad>; the reference is `mask.sum() * w / w.sum()` of its loss."""
    weighed = LetterEncoder(Letters(lowercase_weight=0.1), ByteTokenizer())([b"Cgt", b"GG"])
    assert weighed.weights is not None
    weights = torch.from_numpy(np.append(weighed.weights, np.ones(2, np.float32)))[None]
    labels = torch.tensor([[*weighed.encoded.ids.tolist(), 1, 1]])
    for targets, upper, lower in ((9, 1.25, 0.125), (7, 7 / 5.2, 0.7 / 5.2)):
        labels[:, targets:] = -100
        taken = torch.where(labels >= 0, weights, 0.0)
        losses = torch.zeros(1, 9, requires_grad=True)
        # the loss of a step, and so what it makes of each target's loss
        ((losses * taken).sum() / target_weights(labels, taken, normalize=True).sum()).backward()
        assert losses.grad is not None
        expected = [upper, lower, lower, *[upper] * (targets - 3), *[0.0] * (9 - targets)]
        assert (losses.grad[0] * targets).tolist() == pytest.approx(expected)
    assert target_weights(labels, taken, normalize=False).sum() == 7


RECORDS = ["ACGTacgtNNRY", "|d__Bacteria;p__X|ACGTACgtn@A#C", "nnnn", "acgt" * 20, "GGC|tag|" * 9]


def naive(letters: Letters) -> dict[bytes, list[float]]:
    """Weights of each record by its bytes as shown."""
    found = {}
    for text in RECORDS:
        weights = weigh_by_hand(text.encode(), letters, genome.TAG_LETTERS)
        assert weights is not None
        found[(text.upper() if letters.uppercase else text).encode()] = weights
    return found


def make_config(paths: list[str], documents: DocumentConfig, **changes: Any) -> Settings:
    """Rows of 32 bytes from FASTA files and folders of token shards."""
    formats = ["fasta" if path.endswith("fasta") else "tokens" for path in paths]
    sources = [SourceConfig(name=path[-9:], format=of, paths=[path]) for path, of in zip(paths, formats, strict=True)]
    return settings_of(*sources, documents=documents, **{"lanes": 1} | changes)


def loader(paths: list[str], documents: DocumentConfig) -> Loader:
    return make_config(paths, documents).loader()


@pytest.mark.parametrize(
    "letters",
    [Letters(lowercase_weight=0.1), Letters(exclude_tags=True), Letters(exclude_degenerate=True, uppercase=True), ALL],
)
@pytest.mark.parametrize("long", ["split", "window"])
def test_targets_weigh_what_their_letters_do_and_every_eos_is_one(tmp_path: Path, letters: Letters, long: str) -> None:
    config = DocumentConfig(**letters.model_dump(), long_documents=long, window_overlap=5 if long == "window" else 0)
    path = write_fasta(tmp_path / "genome.fasta", RECORDS)
    found: Counter[tuple[int, float]] = Counter()
    for batch in make_config([path], config).single_pass().batches():
        assert batch.weights is not None
        targets = batch.weights > 0
        found.update(zip(batch.labels[targets].tolist(), batch.weights[targets].tolist(), strict=True))
    expected: Counter[tuple[int, float]] = Counter()
    for shown, weights in naive(letters).items():
        pairs = zip([*shown, EOS], np.float32(weights).tolist(), strict=True)
        expected.update([pair for pair in pairs if pair[1]][weights[0] > 0 :])  # the first of a document is no target
    assert found == expected
    assert found[EOS, 1.0] == len(RECORDS), "documents end, whatever is left out of the loss"


def test_masks_fall_on_letters_that_weigh_something(tmp_path: Path) -> None:
    objective = MaskedTokens(MaskingConfig(mask_rate=0.5), build_tokenizer(TokenizerConfig(kind="dna")), 0)
    path = write_fasta(tmp_path / "g.fasta", ["ACGTNNNNacgtRRRR" * 3] * 20)
    config = make_config([path], DocumentConfig(**ALL.model_dump()), objective=objective, batch_size=8)
    tokenizer = build_tokenizer(TokenizerConfig(kind="dna"))
    with config.loader(tokenizer) as data:
        batch = data.next()
    assert batch is not None
    assert batch.weights is not None
    letters = tokenizer.decode(batch.labels[batch.labels >= 0].tolist())
    assert set(letters) == set("ACGT")
    assert sorted(set(batch.weights[batch.labels >= 0].tolist())) == pytest.approx([0.1, 1.0])


def test_shards_hold_the_weights_of_the_letters_they_were_made_of(tmp_path: Path) -> None:
    letters = Letters(lowercase_weight=0.25, exclude_tags=True, uppercase=True)
    path = write_fasta(tmp_path / "genome.fasta", RECORDS)
    storage = FileStore()
    for name, group_bytes, share in (("whole", 2**20, 0.5), ("parts", 32, 0.5)):
        corpus = RawCorpus(
            files=storage.expand([path]), reader=FastaReader(storage, group_bytes=group_bytes), tokenizer=ByteTokenizer(),
            format="fasta",
            field="", validation_share=share, deduplicate=False, seed=0, skip_bad=False, config=DocumentConfig(**dict(letters)),
        )  # fmt: skip
        result = corpus.convert(Task(0, tuple(corpus.split(10**6))), tmp_path / name, None, lambda _: None)
        assert result.documents == len(RECORDS)
    assert len(list(tmp_path.glob("whole/*/*.weights"))) == 2, "training and validation"
    for file in tmp_path.glob("whole/*/*.[iow]*"):
        assert file.read_bytes() == (tmp_path / "parts" / file.relative_to(tmp_path / "whole")).read_bytes()
    expected = naive(letters)
    for weights in tmp_path.glob("whole/*/*.weights"):
        ids = np.fromfile(weights.with_suffix(".ids"), np.uint8).tobytes()
        of_ids = [weight for document in ids.split(b"\0")[:-1] for weight in expected[document]]
        assert np.fromfile(weights, np.float32).tolist() == pytest.approx(of_ids)
    # a job that asks for other weights than those of its shards
    folder = str(tmp_path / "whole" / "train")
    with pytest.raises(DataConfigError, match=r"data\.lowercase_weight = 0\.1: .*000000\.json was prepared with 0\.25"):
        loader([folder], DocumentConfig(lowercase_weight=0.1))
    # weights as they are, beside a source that has none
    with loader([folder, path], DocumentConfig()) as data:
        batch = data.next()
        said = [source.remarks() for source in data.sources]
        assert [source.letters for source in data.sources] == [{letters}, {Letters()}]
    assert len(said[0]) == 1
    assert "prepared with lowercase_weight = 0.25, exclude_tags = true, uppercase = true" in said[0][0]
    assert "[data] has lowercase_weight = 1.0, exclude_tags = false, uppercase = false" in said[0][0]
    assert said[1] == []
    with loader([folder], DocumentConfig(**letters.model_dump())) as data:
        assert data.sources[0].remarks() == []
    assert batch is not None
    assert batch.weights is not None
    by_source = {source: batch.weights[row][batch.labels[row] >= 0] for row, source in enumerate(batch.sources)}
    assert (by_source[0] == 0.25).any()
    assert (by_source[1] == 1).all()


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Documents in many stretches of 48 bytes, with tags over their cuts."""
    random = np.random.default_rng(0)
    texts = []
    for length in (700, 5, 300, 40, 900):
        text = "".join(random.choice(list("ACGTacgtN"), length))
        for place in range(0, length, 37):
            text = f"{text[:place]}|d__{place}|{text[place:]}"
        texts.append(text)
    return write_fasta(tmp_path_factory.mktemp("tags") / "tagged.fasta", texts, width=60)


def lane(path: str, config: DocumentConfig, state: LaneState | None = None) -> Iterator[tuple[PackedRow, LaneState]]:
    storage = FileStore()
    reader = FastaReader(storage, group_bytes=48)
    packer = Packer(24, EOS, 1, "best_fit", overlap=config.window_overlap)
    pieces = reader.split(storage.expand([path])[0], 10**6)
    files = LanePieces(PieceLine(pieces, ["never"], 1, (0, 0)), reader)
    documents = RawDocuments(files, 0, ByteTokenizer(), packer, 0, False, config)
    return ((row.packed, row.state) for row in Lane(documents, packer, (0, 0, 0), state or LaneState()).rows())


@pytest.mark.parametrize("overlap", [0, 7, 20])
def test_a_lane_that_is_resumed_inside_of_a_tag_weighs_the_same(tagged: str, overlap: int) -> None:
    config = DocumentConfig(**ALL.model_dump(), long_documents="window" if overlap else "split", window_overlap=overlap)
    with patch.object(blocks, "block_tokens", lambda seq_len: 3 * seq_len):
        straight = list(islice(lane(tagged, config), 150))
        assert {state.tag > 0 for _, state in straight} == {True, False}, "blocks begin inside of tags and outside of them"
        seen = None
        for stop, (_, state) in enumerate(straight[:-4]):
            if state.block == seen:  # a resume opens the block that the state names
                continue
            seen = state.block
            for (row, after), (again, after_again) in zip(
                straight[stop + 1 :], islice(lane(tagged, config, state), 4), strict=False
            ):
                assert after == after_again
                assert row.following == again.following
                assert np.array_equal(np.concatenate(row.parts), np.concatenate(again.parts))
                assert row.weights is not None
                assert again.weights is not None
                assert np.array_equal(row.weights, again.weights)


def test_a_tag_without_an_end_is_a_bad_record(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "genome.fasta", ["ACGT", "AC|" + "A" * 3000], width=10000)
    with (
        loader([path], DocumentConfig(**ALL.model_dump())) as data,
        pytest.raises(DataError, match=r"record r1, byte 35: a tag that"),
    ):
        data.next()


@pytest.mark.parametrize(
    ("kind", "letters", "message"),
    [
        ("protein", Letters(lowercase_weight=0.1), r"data\.lowercase_weight = 0\.1: is for genomes"),
        ("protein", Letters(exclude_degenerate=True), r"data\.exclude_degenerate = true: is for genomes"),
        ("hf", Letters(exclude_tags=True), r"data\.exclude_tags = true: a token of the hf tokenizer has many letters"),
        ("dna", Letters(uppercase=True), r"data\.uppercase = true: the dna tokenizer has one id for both cases"),
    ],
)
def test_settings_that_mean_nothing_to_a_tokenizer_are_refused(kind: str, letters: Letters, message: str) -> None:
    tokenizer = build_tokenizer(TokenizerConfig(kind="byte" if kind == "hf" else kind))
    alphabet = None if kind == "hf" else tokenizer.alphabet
    with patch.multiple(tokenizer, kind=kind, alphabet=alphabet), pytest.raises(DataConfigError, match=message):
        refuse(letter_complaints(letters, tokenizer))


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_what_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValidationError, match="lowercase_weight"):
        Letters(lowercase_weight=weight)
