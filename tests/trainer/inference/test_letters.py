"""A model is asked with the letters of its training: their case, those that were no targets, and what stands before."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from cistron.datasets.documents import Letters
from cistron.datasets.errors import DataConfigError
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.tests.helpers.jobs import forge
from cistron.tests.helpers.models import BYTE, CAUSAL, ENCODER, PROTEIN, write_checkpoint
from cistron.trainer import checkpoints as checkpoint
from cistron.trainer.errors import ConfigError
from cistron.trainer.huggingface import export, import_folder
from cistron.trainer.huggingface.tokenizer_files import tokenizer_files
from cistron.trainer.inference import OpenedModel, embed, open_model, sample, score
from tokenizers import Tokenizer, normalizers

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GENOME = {"uppercase": True, "lowercase_weight": 0.25, "exclude_tags": True, "exclude_degenerate": True}
DNA = build_tokenizer(TokenizerConfig(kind="dna"))
TAG = "|k__Fungi;|"


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("genome") / "step-4", CAUSAL, data=GENOME)


@pytest.fixture(scope="module")
def opened(genome: Path) -> OpenedModel:
    return open_model(genome, device="cpu")


def log_probabilities(opened: OpenedModel, text: str) -> torch.Tensor:
    """What a dense mask gives for a text and its eos: float32 [letters + 1, vocabulary]."""
    ids = [*text.encode(), 0]
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        logits = opened.model(torch.tensor([ids]), torch.arange(len(ids), dtype=torch.int32)[None], mask)
    return logits[0].log_softmax(-1)


def nats(opened: OpenedModel, text: str, places: list[int]) -> float:
    """The log-probabilities of some letters of a text, summed."""
    found = log_probabilities(opened, text)
    return sum(float(found[place - 1, ord(text[place])]) for place in places)


def test_case_and_targets_are_those_of_training_and_are_said(opened: OpenedModel) -> None:
    (line,) = opened.messages
    assert line == "letters: lowercase_weight = 0.25, exclude_tags = true, exclude_degenerate = true, uppercase = true"
    mixed, bare, nothing, one = score(opened, ["gaRtNNca|x|T", "GAtc", "NNRn", "T"])
    places = [1, 3, 6, 7, 11]  # neither the first letter, nor codes of several bases, nor a tag
    assert (mixed.residues, mixed.tokens, mixed.excluded) == (12, 5, 6)
    assert mixed.log_likelihood == pytest.approx(nats(opened, "GARTNNCA|X|T", places), abs=1e-4)
    assert (bare.tokens, bare.excluded) == (3, 0)
    assert bare.log_likelihood == pytest.approx(nats(opened, "GATC", [1, 2, 3]), abs=1e-4), "each letter weighs 1"
    assert (nothing.tokens, nothing.excluded, nothing.log_likelihood) == (0, 4, 0.0)
    assert math.isnan(nothing.mean)
    assert (one.tokens, one.excluded) == (0, 0)
    rows = embed(opened, ["gattaca", "GATTACA"], layer="norm")
    assert torch.equal(rows[0], rows[1])
    assert sample(opened, "gat", max_new_tokens=9) == sample(opened, "GAT", max_new_tokens=9)


def test_options_replace_single_keys_and_that_is_said_too(genome: Path) -> None:
    asked = open_model(genome, device="cpu", letters=Letters(uppercase=False, exclude_degenerate=False))
    assert asked.messages == (
        "letters: lowercase_weight = 0.25, exclude_tags = true, exclude_degenerate = false (training: true), "
        "uppercase = false (training: true)",
    )
    (found,) = score(asked, ["gaNt|x|"])
    assert (found.tokens, found.excluded) == (3, 3)
    assert found.log_likelihood == pytest.approx(nats(asked, "gaNt|x|", [1, 2, 3]), abs=1e-4)
    (found,) = score(open_model(genome, device="cpu", letters=Letters(lowercase_weight=0.0)), ["GAtcA"])
    assert (found.tokens, found.excluded) == (2, 2), "what weighs nothing is no target"


def test_a_prefix_conditions_and_is_neither_scored_nor_pooled(opened: OpenedModel) -> None:
    sequences = ["gNttaca", "T"]
    for text, found in zip(("GNTTACA", "T"), score(opened, sequences, prefix=TAG), strict=True):
        whole = TAG.upper() + text
        places = [len(TAG) + place for place, letter in enumerate(text) if letter != "N"]
        assert (found.residues, found.tokens) == (len(text), len(places)), "its first letter has something before it"
        assert found.log_likelihood == pytest.approx(nats(opened, whole, places), abs=1e-4)
    rows = embed(opened, sequences, layer="output", pool="none", prefix=TAG.encode())
    assert [len(row) for row in rows] == [7, 1]
    expected = log_probabilities(opened, f"{TAG.upper()}GNTTACA")[len(TAG) : -1]
    torch.testing.assert_close(rows[0].log_softmax(-1), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(DataConfigError, match=r"prefix, byte 2: a tag that begins with '\|' is not closed"):
        score(opened, sequences, prefix="AC|k__Fungi;")


def test_of_a_masked_model_only_targets_are_hidden(tmp_path: Path) -> None:
    encoder = ENCODER.replace(vocab_size=DNA.vocab_size)
    data = {"exclude_degenerate": True}
    step = write_checkpoint(tmp_path / "step-1", encoder, DNA, data=data, training={"seq_len": 64, "objective": "mlm"})
    opened = open_model(step, device="cpu")
    sequences = ["NNA", "AYCGN", "NN", "T"]
    found = score(opened, sequences, batch_tokens=7)
    assert [(one.tokens, one.excluded) for one in found] == [(1, 2), (3, 2), (0, 2), (1, 0)]
    everything = score(open_model(step, device="cpu", letters=Letters(exclude_degenerate=False)), sequences)
    assert [one.tokens for one in everything] == [3, 5, 2, 1]
    ids = torch.tensor([[*(int(index) for index in DNA.encode(b"NN")), DNA.mask_id, DNA.eos_id]])
    mask = torch.ones(4, 4, dtype=torch.bool)[None, None]
    with torch.no_grad():
        likely = opened.model(ids, torch.arange(4, dtype=torch.int32)[None], mask)[0, 2].log_softmax(-1)
    assert found[0].log_likelihood == pytest.approx(float(likely[int(DNA.encode(b"A")[0])]), abs=1e-4)


def test_token_shards_that_were_prepared_otherwise_tell_their_letters(tmp_path: Path) -> None:
    sources = [{"name": name, "format": "tokens", "paths": [name]} for name in ("euk", "prok")]
    step = write_checkpoint(tmp_path / "step-2", CAUSAL, data={"sources": sources})
    assert "the checkpoint does not say how its token shards were prepared" in open_model(step, device="cpu").messages[0]
    for prok, expected in (
        ({"uppercase": True}, "letters: uppercase = true"),
        ({}, "letters: as they stand; its sources had uppercase = false and true"),
    ):
        state = json.loads((step / "state.json").read_text())
        state["letters"] = {"euk": [{"uppercase": True}], "prok": [prok]}
        forge(step, "state.json", json.dumps(state).encode())
        opened = open_model(step, device="cpu")
        assert opened.messages == (expected,)
        assert opened.letters.uppercase == bool(prok)
    protein = write_checkpoint(tmp_path / "step-3", ENCODER, PROTEIN)
    with pytest.raises(DataConfigError, match=r"data.lowercase_weight = 0.5: is for genomes"):
        open_model(protein, device="cpu", letters=Letters(lowercase_weight=0.5))


def test_upper_case_goes_to_hugging_face_and_comes_back(tmp_path: Path, genome: Path, opened: OpenedModel) -> None:
    folder = tmp_path / "hf"
    told = export(checkpoint.read(genome), folder, tokenizer=TokenizerConfig(kind="byte"))
    assert told[-1] == (
        "the folder does not say how training weighed letters: lowercase_weight = 0.25, exclude_tags = true, "
        "exclude_degenerate = true"
    )
    theirs = Tokenizer.from_file(str(folder / "tokenizer.json"))
    text = "gaTTaca|k__é|\n"
    assert theirs.encode(text).ids == list(text.encode().upper())
    back = open_model(folder, device="cpu")
    assert "letters: uppercase = true; no job says what else its training did with them" in back.messages
    sequences = ["gatTACa", "GGcc"]
    assert [one.log_likelihood for one in score(back, sequences)] == [one.log_likelihood for one in score(opened, sequences)]
    import_folder(folder, tmp_path / "imported")
    assert tomllib.loads((tmp_path / "imported" / "model.toml").read_text())["data"] == {"uppercase": True}
    assert open_model(tmp_path / "imported" / "step-0", device="cpu").letters.uppercase
    told = export(checkpoint.read(genome), tmp_path / "bare", tokenizer=None)
    assert "without a tokenizer; training had all letters in upper case" in told
    with pytest.raises(ConfigError, match="of kind 'hf' cannot say it; --no-tokenizer leaves it out"):
        tokenizer_files(TokenizerConfig(kind="hf", path="x"), BYTE, uppercase=True)
    # another normaliser is not ours: the file is read as it is
    theirs.normalizer = normalizers.Lowercase()
    theirs.save(str(folder / "tokenizer.json"))
    assert open_model(folder, device="cpu").tokenizer.kind == "hf"


def test_a_folder_without_a_job_is_read_as_letters_stand(tmp_path: Path) -> None:
    step = write_checkpoint(tmp_path / "step-1", CAUSAL)
    assert open_model(step, device="cpu").messages == (), "a job that did nothing to letters"
    export(checkpoint.read(step), tmp_path / "hf", tokenizer=TokenizerConfig(kind="byte"))
    told = "letters: as they stand; no job says what else its training did with them"
    assert told in open_model(tmp_path / "hf", device="cpu").messages
