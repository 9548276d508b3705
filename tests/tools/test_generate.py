"""`cistron generate` as its command line has it: records of FASTA, and what they cannot hold."""

from __future__ import annotations

from pathlib import Path

import pytest
from cistron.datasets.readers import SequenceFiles
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.tests.helpers.models import CAUSAL, ENCODER, PROTEIN, write_checkpoint
from cistron.tools import cli, generate
from cistron.trainer.errors import ConfigError
from cistron.trainer.inference import NewText, open_model, sample

DNA = build_tokenizer(TokenizerConfig(kind="dna"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("dna") / "step-1", CAUSAL.replace(vocab_size=24), DNA)


def test_samples_are_records_that_the_reader_of_fasta_reads(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "ACGTTGCA" * 8
    arguments = [str(checkpoint), "--prompt", long, "--prompt", "NN", "--samples", "3", "--seed", "4", "--device", "cpu"]
    arguments += ["--max-new-tokens", "60", "--top-p", "0.9", "--temperature", "2"]
    generate.main([*arguments, "--format", "fasta"])
    captured = capsys.readouterr()
    (tmp_path / "x.fasta").write_text(captured.out)
    read = [(record.name, record.data.decode()) for record in SequenceFiles([str(tmp_path / "x.fasta")])]
    generate.main(arguments)
    assert [text for _, text in read] == capsys.readouterr().out.split()
    assert [name for name, _ in read] == [f"sample-{number}" for number in range(6)]
    model = open_model(checkpoint, "cpu")
    for number, (_, text) in enumerate(read):
        prompt, seed = (long, "NN")[number // 3], 4 + number % 3
        new = sample(model, prompt, max_new_tokens=60, top_p=0.9, temperature=2, seed=seed)
        assert text == prompt + new
        ended = "length" if len(new) == 60 else "eos"
        header = f">sample-{number} prompt={number // 3} seed={seed} prompt_letters={len(prompt)} new_letters={len(new)} "
        assert f"{header}ended={ended}\n" in captured.out
    assert max(len(line) for line in captured.out.split("\n") if not line.startswith(">")) == 60
    assert "prompt 0: its records begin with it\nprompt 1: its records begin with it\n" in captured.err
    assert "up to 124 tokens, and the model was trained on rows of 64" in captured.err
    generate.main([*arguments[:3], "--dtype", "bfloat16", "--max-new-tokens", "3"])
    assert capsys.readouterr().out.startswith(long)


def test_what_is_no_sequence_is_left_out_of_fasta_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["|d__Bacteria;s__a|", "AC", "<cls>"]
    found = [
        NewText(0, "ACGT", True, 0),
        NewText(0, "", True, 1),
        NewText(1, "G T", False, 0),
        NewText(1, "A" * 119, False, 1),
        NewText(2, "\x1b", False, 0),
    ]
    with pytest.raises(ConfigError, match=r"3 of 5 samples are no sequences and were left out; sample-1: it is empty; "):
        generate.write_fasta(found, prompts)
    captured = capsys.readouterr()
    assert captured.out == (
        ">sample-0 prompt=0 seed=0 prompt_letters=0 new_letters=4 ended=eos\nACGT\n"
        ">sample-3 prompt=1 seed=1 prompt_letters=2 new_letters=119 ended=length\n"
        f"AC{'A' * 58}\n{'A' * 60}\nA\n"
    )
    assert captured.err == (
        "prompt 0: '|' is no letter, so its records are without it\n"
        "prompt 1: its records begin with it\n"
        "prompt 2: '<' is no letter, so its records are without it\n"
    )


def test_what_cannot_be_generated_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = write_checkpoint(tmp_path / "step-1", ENCODER, PROTEIN)
    for model, options, expected in (
        (checkpoint, ("--device", "cuda:99"), "device = 'cuda:99'"),
        (checkpoint, ("--dtype", "int8"), "invalid choice: 'int8'"),
        (checkpoint, ("--format", "fastq"), "invalid choice: 'fastq'"),
        (checkpoint, ("--top-p", "0"), "top_p = 0.0: must be"),
        (checkpoint, ("--samples", "0"), "is not a whole number from 1"),
        (checkpoint, ("--prompt", "AXC"), "prompt: 'X' is no letter of the dna vocabulary"),
        (encoder, (), "a bidirectional model, trained by mlm, cannot generate"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.run("generate", [str(model), "--prompt", "AC", *options])
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err
