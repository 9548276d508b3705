"""The commands that use a model: embed, and evaluate --score."""

from __future__ import annotations

import csv
import gzip
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from cistron.datasets.files import Lock
from cistron.datasets.nucleotides import reverse_complement
from cistron.tests.helpers.models import CAUSAL, ENCODER, PROTEIN, random_sequences, write_checkpoint, write_fasta
from cistron.tools import cli, embed, evaluate
from cistron.tools.support import ScoreFile, embedding_files
from cistron.trainer.inference import OpenedModel, open_model
from cistron.trainer.inference import embed as cistron_embed
from safetensors.torch import load_file
from torch.testing import assert_close

LENGTHS = [3, 40, 1, 17, 64, 2] * 10
SLOWLY = """
import os, signal, sys
from cistron.tools import embed
from cistron.tools.support import embedding_files
embedding_files.PART_SEQUENCES = 7
add, calls = embedding_files.EmbeddingFile.add, []
def killing(self, *args):
    add(self, *args)
    calls.append(args)
    if len(calls) == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
embedding_files.EmbeddingFile.add = killing
embed.main(sys.argv[2:])
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("causal") / "step-1", CAUSAL).parent


@pytest.fixture(scope="module")
def opened(checkpoint: Path) -> OpenedModel:
    return open_model(checkpoint)


@pytest.fixture(scope="module")
def sequences() -> list[str]:
    return random_sequences(0, LENGTHS)


def refused(capsys: pytest.CaptureFixture[str], command: str, *arguments: object) -> str:
    """The one message of a command that ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.run(command, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert caught.value.code == 2
    assert "Traceback" not in captured.err
    return captured.err


def test_every_output_holds_what_the_call_returns(
    tmp_path: Path, checkpoint: Path, opened: OpenedModel, sequences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "PART_SEQUENCES", 7)
    source = write_fasta(tmp_path / "x.fasta", sequences)
    layers = ["layers.*", "norm"]
    names = [f"s{number}" for number in range(len(sequences))]

    def run(output: str, *options: str) -> Path:
        arguments = [str(checkpoint), "--input", str(source), "--output", str(tmp_path / output), "--batch-tokens", "100"]
        embed.main([*arguments, *options])
        return tmp_path / output

    def close(found: Any, expected: torch.Tensor) -> None:
        assert_close(torch.as_tensor(found, dtype=expected.dtype), expected, rtol=1e-5, atol=1e-5)

    pooled = cistron_embed(opened, sequences, layer=layers)
    whole = cistron_embed(opened, sequences, layer=layers, pool="none")
    last = cistron_embed(opened, sequences, layer="layers.1.feed_forward", pool="last")

    found = load_file(run("e.safetensors", "--layer", *layers))
    assert list(found) == list(pooled) == ["layers.0", "layers.1", "norm"]
    for name in found:
        close(found[name], pooled[name])
    assert (tmp_path / "e.safetensors.names.txt").read_text().split() == names
    found = load_file(run("f.safetensors", "--layer", *layers, "--pool", "none"))
    for name, rows in whole.items():
        for number, expected in enumerate(rows):
            close(found[f"{name}/{number}"], expected)

    found = load_file(run("g.safetensors", "--layer", "layers.1.feed_forward", "--pool", "last"))
    close(found["layers.1.feed_forward"], last)

    table = pq.read_table(run("e.parquet", "--layer", *layers))
    assert table["name"].to_pylist() == names
    assert table["length"].to_pylist() == LENGTHS
    assert b"before the final norm" in table.schema.metadata[b"layers.1"]
    assert b"after the final norm" in table.schema.metadata[b"norm"]
    close(table["layers.1"].to_pylist(), pooled["layers.1"].float())
    rows = pq.read_table(run("f.parquet", "--layer", *layers, "--pool", "none"))["norm"].to_pylist()
    for row, expected in zip(rows, whole["norm"], strict=True):
        close(row, expected.float())
    assert not list(tmp_path.glob("*.partial"))


def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    tmp_path: Path, checkpoint: Path, sequences: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_fasta(tmp_path / "x.fasta", sequences)
    common = ["--layer", "layers.0", "norm", "--batch-tokens", "100"]
    embed.main([str(checkpoint), "--input", str(source), "--output", str(tmp_path / "whole.safetensors"), *common])
    output = tmp_path / "e.safetensors"
    command = [str(checkpoint), "--input", str(source), "--output", str(output), *common]
    killed = subprocess.run(
        [sys.executable, "-c", SLOWLY, "7", *command], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert killed.returncode == -signal.SIGKILL
    partial = tmp_path / "e.safetensors.partial"
    assert len(list(partial.glob("part-*"))) >= 2
    assert not output.exists()

    with Lock(partial):
        assert f"{partial}: in use: host " in refused(capfd, "embed", *command)
    said = refused(capfd, "embed", *command, "--pool", "last")
    assert "half an output of another command" in said
    assert "pool was 'mean', is 'last'" in said
    text = source.read_bytes()
    source.write_bytes(text.swapcase())
    assert "input was" in refused(capfd, "embed", *command)
    source.write_bytes(text)  # at another time

    embed.main(command)
    assert "going on behind them" in capfd.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert not partial.exists()


def resident() -> float:
    """MB of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_memory_does_not_grow_with_the_number_of_sequences(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding_files, "PART_BYTES", 2**20)
    options = ["--layer", "tok_embeddings", "--pool", "none"]
    read = embedding_files.Part.tensor
    seen: list[float] = []
    peaks = []

    def add(self: embedding_files.EmbeddingFile, *batch: Any) -> None:
        taken(self, *batch)
        seen.append(resident())

    def tensor(self: embedding_files.Part, name: str) -> torch.Tensor:
        seen.append(resident())
        return read(self, name)

    taken = embedding_files.EmbeddingFile.add
    monkeypatch.setattr(embedding_files.EmbeddingFile, "add", add)
    monkeypatch.setattr(embedding_files.Part, "tensor", tensor)
    for number in (500, 10_000):  # the first brings what the libraries take once
        source = write_fasta(tmp_path / "x.fasta", random_sequences(1, [40]) * number)
        output = tmp_path / f"{number}.parquet"
        embed.main([str(checkpoint), "--input", str(source), "--output", str(output), *options])
        peaks.append(max(seen))
        seen.clear()
    assert pq.read_metadata(output).num_rows == 10_000
    assert peaks[1] - peaks[0] < 10_000 * 40 * 32 * 4 / 1e6 / 3


def test_what_cannot_be_embedded_is_refused(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_fasta(tmp_path / "x.fasta", ["ACGT", "A" * 100])
    (tmp_path / "empty.fasta").write_text(">a\nAC\n>b\n>c\nA\n")
    (tmp_path / "nul.fasta").write_bytes(b">a\nAC\n>b\nA\0\n")
    (tmp_path / "blank.fasta").write_text("\n\n")
    (tmp_path / "blank.fasta.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "there.parquet").write_text("x")
    output = tmp_path / "e.parquet"
    for path, layer, out, more, expected in (
        (source, "layer.1", output, (), "layer 'layer.1': the model has no such layer, did you mean 'layers.1'"),
        (source, "norm", tmp_path / "e.npy", (), "its name must end in one of .safetensors, .parquet"),
        (source, "norm", tmp_path / "there.parquet", (), "exists already"),
        (source, "norm", output, ("--device", "cuda:99"), "device = 'cuda:99'"),
        (source, "norm", output, ("--max-length", "50"), "x.fasta, record s1, byte 35: has 101 tokens with its eos"),
        (tmp_path / "empty.fasta", "norm", output, (), "empty.fasta, record b, byte 6: the record has no residue"),
        (tmp_path / "nul.fasta", "norm", output, (), "nul.fasta, record b, byte 10: a NUL byte"),
        (tmp_path / "blank.fasta", "norm", output, (), "the input holds no sequence"),
        (tmp_path / "blank.fasta.gz", "norm", output, (), "blank.fasta.gz: the input holds no sequence"),
        (source, "norm", output, ("--on-unknown", "map"), "'map' means nothing to the byte tokenizer"),
        (tmp_path / "gone.fasta", "norm", output, (), "gone.fasta: there is no such file"),
    ):
        said = refused(capsys, "embed", checkpoint, "--input", path, "--layer", layer, "--output", out, *more)
        assert expected in said
    assert "not a complete checkpoint" in refused(
        capsys, "embed", tmp_path, "--input", tmp_path / "empty.fasta", "--layer", "norm", "--output", output
    )


def test_layers_are_listed_with_their_widths_and_meanings(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embed.main([str(checkpoint), "--list-layers"])
    lines = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert lines["layers.1"] == "32 residual stream after this block, before the final norm"
    assert lines["layers.0.feed_forward"] == "32 what feed_forward adds to the residual stream"
    assert lines["output"] == "512 logits"


def test_scores_come_as_tsv_jsonl_or_parquet_and_of_both_strands(
    tmp_path: Path, checkpoint: Path, sequences: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    others = [reverse_complement(text.encode()).decode() for text in sequences]
    source, other = (write_fasta(tmp_path / f"{name}.fa", texts) for name, texts in (("x", sequences), ("y", others)))

    def run(path: Path, *options: str) -> list[dict[str, str]]:
        capsys.readouterr()
        evaluate.main([str(checkpoint), "--score", str(path), *options])
        return list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))

    forward, backward, both = run(source), run(other), run(source, "--reverse-complement", "--batch-tokens", "50")
    assert list(forward[0]) == ["name", "residues", "tokens", "log_likelihood", "mean", "excluded"]
    for number, (one, two, mean) in enumerate(zip(forward, backward, both, strict=True)):
        assert one["name"] == mean["name"] == f"s{number}"
        length = LENGTHS[number]
        assert (int(one["residues"]), int(one["tokens"])) == (length, length - 1)
        expected = (float(one["log_likelihood"]) + float(two["log_likelihood"])) / 2
        assert float(mean["log_likelihood"]) == pytest.approx(expected, abs=1e-4)
        if length > 1:
            assert float(one["mean"]) == float(one["log_likelihood"]) / (length - 1)
        else:
            assert math.isnan(float(one["mean"]))
    assert [int(row["tokens"]) for row in run(source, "--with-eos")] == LENGTHS

    for name in ("s.jsonl", "s.parquet", "s.tsv"):
        evaluate.main([str(checkpoint), "--score", str(source), "--output", str(tmp_path / name)])
    values = [float(row["log_likelihood"]) for row in forward]
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "s.parquet")
    assert [line["log_likelihood"] for line in lines] == table["log_likelihood"].to_pylist() == values
    assert lines[2]["mean"] is table["mean"].to_pylist()[2] is None
    assert list(csv.DictReader((tmp_path / "s.tsv").open(), delimiter="\t")) == forward


def test_what_cannot_be_scored_is_refused(tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = write_checkpoint(tmp_path / "step-1", ENCODER)
    protein = write_checkpoint(tmp_path / "step-2", ENCODER, PROTEIN)
    source = write_fasta(tmp_path / "x.fa", ["ACGT", "ACEGT"])
    for model, options, expected in (
        (checkpoint, ("--reverse-complement",), "x.fa, record s1, byte 37: byte b'E' at 2 is no IUPAC code"),
        (checkpoint, ("--output", tmp_path / "s.npy"), "its name must end in one of .tsv, .jsonl, .parquet"),
        (checkpoint, ("--output", tmp_path / "no" / "s.tsv"), "cannot be written"),
        (protein, ("--reverse-complement",), "sequences of the protein tokenizer have no other strand"),
        (protein, ("--with-eos",), "with_eos: a bidirectional model"),
        (encoder, (), "a pseudo-likelihood needs a mask token"),
    ):
        assert expected in refused(capsys, "evaluate", model, "--score", source, *options)
    (tmp_path / "nothing.fa.gz").write_bytes(gzip.compress(b""))
    assert "holds no sequence" in refused(capsys, "evaluate", checkpoint, "--score", tmp_path / "nothing.fa.gz")
    with pytest.raises(OSError, match="of the input"), ScoreFile(tmp_path / "s.tsv", {}, {}):
        raise OSError("of the input")  # what goes wrong between writing is not the output's
    assert not list(tmp_path.glob("s.*"))
    capsys.readouterr()
    evaluate.main([str(protein), "--score", str(source)])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))
    assert [(row["residues"], row["tokens"]) for row in rows] == [("4", "4"), ("5", "5")], "what can be"
    star = write_fasta(tmp_path / "star.fa", ["MKV*"])
    said = refused(capsys, "evaluate", protein, "--score", star)
    assert "star.fa, record s0, byte 18: '*' is no letter" in said
    assert "; --on-unknown map reads it as <unk>" in said
    evaluate.main([str(protein), "--score", str(star), "--on-unknown", "map"])
    captured = capsys.readouterr()
    assert "1 letters are none of the vocabulary" in captured.err
    assert captured.out.splitlines()[1].startswith("s0\t4\t")
    output = tmp_path / "e.safetensors"
    embed.main([str(protein), "--input", str(star), "--layer", "norm", "--on-unknown", "map", "--output", str(output)])
    assert load_file(output)["norm"].shape == (1, 32)
    assert "cannot generate" in refused(capsys, "generate", encoder, "--prompt", "ACGT")
