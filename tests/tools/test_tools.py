"""The commands that look at a job: check, inspect, generate."""

import gzip
import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path
from runpy import run_module
from typing import Any, cast

import pytest
import torch
from cistron.datasets.tokenizers.bytes import ByteTokenizer
from cistron.models.attention import document_block_mask
from cistron.models.attention.masks import document_dense_mask
from cistron.tests.helpers.jobs import train_here, write_job, write_mixture
from cistron.tools import check, cli, generate, inspect
from cistron.tools.support import targets
from cistron.trainer.build import training_mask
from cistron.trainer.config import load_config
from cistron.trainer.processes import Layout
from cistron.trainer.start import open_data, verify
from tokenizers import Tokenizer, models, pre_tokenizers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job trained for 60 steps: enough to write a space between words."""
    config = write_job(tmp_path_factory.mktemp("trained"), steps=60)
    train_here(config, "--checkpoint.interval", "60")
    return config


def test_check_verifies_a_job_and_says_what_it_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.main([str(write_job(tmp_path)), "--training.steps", "77"])
    output = " ".join(capsys.readouterr().out.split())
    for part in (
        "steps = 77",
        "party | where it is written",
        "51,360 parameters",
        "AdamW",
        "8 rows = 512 positions",
        "all checks passed",
    ):
        assert part in output
    assert not (tmp_path / "run").exists(), "checking leaves nothing behind"


def test_check_compares_the_host_memory_of_a_process_with_that_of_the_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    job = [str(write_job(tmp_path)), "--world-size", "2", "--data.num_workers", "2"]
    check.main(job)
    output = " ".join(capsys.readouterr().out.split())
    table = output.split("host memory of one process")[1].split("all checks passed")[0]
    parts = ("programs", "model", "documents", "messages", "batches", "checkpoint", "sum,")
    held = {part: float(table.split(f" {part} ")[1].removeprefix("an estimate ").split()[0]) for part in parts}
    assert "pinned" not in table, "the device is the host"
    assert held["programs"] > 3 * 0.05, "this process and two workers"
    assert held["sum,"] == pytest.approx(sum(held.values()) - held["sum,"], abs=0.005)
    assert "warning" not in table
    assert "such process(es); the job has 2" in table

    monkeypatch.setattr(check, "host_memory", lambda: int(1.5 * held["sum,"] * 2**30))
    check.main(job)
    assert "room for 1 such process(es); the job has 2" in capsys.readouterr().out.split("warning: this machine")[1]


def test_check_counts_the_tokens_that_carry_loss_and_shows_them_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "genes.fasta").write_text("".join(f">g{n}\nACGTNacgt\n" for n in range(64)))
    source = [{"name": "genes", "format": "fasta", "paths": [str(tmp_path / "genes.fasta")]}]
    weighed = ["--data.lowercase_weight", "0.1", "--data.exclude_degenerate", "true", "--data.lanes", "1"]
    check.main([str(write_job(tmp_path)), "--data.sources", json.dumps(source), *weighed, "--training.seq_len", "10"])
    lines = [line.replace(",", "").split() for line in capsys.readouterr().out.splitlines()]
    rows = {tuple(words[:-3]): words[-3:] for words in lines if len(words) > 3}
    tokens, asked, weight = rows[("lowercase", "letters")]
    assert tokens == asked
    assert weight == "0.1"
    assert rows[("eos",)] == [str(int(tokens) // 4)] * 2 + ["1"]
    # of 5 others the first is never a target, and N weighs nothing
    assert rows[("all", "others")] == [str(int(tokens) // 4 * 5), str(int(tokens) // 4 * 3), "1"]
    names = {piece: index for index, piece in enumerate(("[/INST]", "[red]", "<end>"))}
    assert [targets.name(index, cast(Any, Words(names))) for index in names.values()] == ["'[/INST]'", "'[red]'", "eos (2)"]


class Words:
    """As much of a tokenizer as names of tokens take."""

    eos_id, bos_id, pad_id, mask_id, unk_id = 2, None, 2, None, None

    def __init__(self, names: dict[str, int]) -> None:
        self.names = list(names)

    def decode(self, ids: list[int]) -> str:
        return self.names[ids[0]]


def test_check_counts_what_a_vocabulary_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = Tokenizer(models.WordLevel({"<e>": 0, "[?]": 1, "lane": 2}, unk_token="[?]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(["<e>"])
    words.save(str(tmp_path / "words.json"))
    (tmp_path / "x.jsonl").write_text('{"text": "lane pack lane row"}\n' * 30 + '{"text": "lane"}\n' * 40)
    source = [{"name": "lanes", "format": "jsonl", "paths": [str(tmp_path / "x.jsonl")]}]
    tokenizer = ["--tokenizer.kind", "hf", "--tokenizer.path", str(tmp_path / "words.json"), "--tokenizer.eos_token", "<e>"]
    check.main([str(write_job(tmp_path)), "--data.sources", json.dumps(source), "--data.lanes", "1", *tokenizer])
    said = capsys.readouterr().out
    assert "60 letters mapped or unknown tokens in the sample" in said
    (line,) = [line.split() for line in said.splitlines() if line.strip().startswith("unknown ")]
    assert int(line[1].replace(",", "")) > 0


def test_check_refuses_what_training_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run("check", [str(write_job(tmp_path)), "--model.eos_id", "9"])
    assert caught.value.code == 2
    assert "tokenizer says eos is 0, attention mask says 9" in capsys.readouterr().err


def paragraphs(output: str, names: list[str]) -> dict[str, str]:
    """What was printed on each source, as one line each."""
    texts = output.split("all checks passed")[0].split("\n\n")
    return {name: " ".join(text.split()) for name in names for text in texts if text.strip().startswith(f"{name} (")}


def number(text: str, before: str) -> float:
    """The number that stands in front of some words."""
    return float(text.split(f" {before}")[0].split(" ")[-1].replace(",", ""))


@pytest.mark.parametrize("order", [("FILE", "--training.steps", "77"), ("--training.steps", "77", "FILE")])
def test_the_file_may_stand_behind_an_option_and_its_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], order: tuple[str, ...]
) -> None:
    config = str(write_job(tmp_path))
    check.main([config if word == "FILE" else word for word in order])
    assert "steps = 77" in capsys.readouterr().out


def test_check_is_exact_about_token_shards_and_estimates_raw_sources(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_mixture(tmp_path, steps=10)
    check.main([str(config)])
    of = paragraphs(capsys.readouterr().out, ["words", "genes", "shards"])

    manifests = [json.loads(file.read_text()) for file in (tmp_path / "shards").glob("*.json")]
    tokens = sum(manifest["tokens"] for manifest in manifests)
    assert f"400 documents, {tokens:,} tokens" in of["shards"]
    assert "2 documents are longer than a row and make 10 fragments" in of["shards"]
    assert "longest 300" in of["shards"]
    rows = number(of["shards"].split("an epoch of ")[1], "rows")
    assert tokens / 64 < rows < 1.05 * tokens / 64
    rows += number(of["shards"], "idle ones")  # lanes wait for the one that has most tokens
    # steps 5 to 10 draw 3 of 4 rows from the shards
    assert "0.0% of the rows, then 75.0% of the rows from step 5" in of["shards"]
    assert number(of["shards"], "epochs") == pytest.approx(6 * 8 * 0.75 / rows, abs=0.005)
    assert number(of["shards"].split(" takes ")[1], "steps;") == pytest.approx(rows / (8 * 0.75), abs=1)

    lines = [line for file in (tmp_path / "corpus").iterdir() for line in file.read_text().splitlines()]
    lengths = [len(json.loads(line)["text"]) + 1 for line in lines]
    assert f"600 documents, {sum(lengths):,} tokens" in of["words"], "nothing to estimate where the sample is all there is"
    assert f"longest {max(lengths)}" in of["words"]
    assert f"{sum(length > 64 for length in lengths)} documents are longer than a row" in of["words"]
    assert "2 files" in of["words"]
    assert "of 8 lanes" in of["genes"]


def test_letters_that_shards_keep_are_told_where_the_job_has_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_mixture(tmp_path, weighted=True)
    for manifest in (tmp_path / "shards").glob("*.json"):
        stated = json.loads(manifest.read_text())
        stated["letters"]["lowercase_weight"] = 0.25
        manifest.write_text(json.dumps(stated))
    told = "source 'shards': its shards were prepared with lowercase_weight = 0.25, and are read so; [data] has"
    for command in (lambda *more: check.main([str(config), *more]), lambda *more: train_here(config, *more)):
        for job, times in (("1.0", 1), ("0.25", 0)):
            command("--training.steps", "1", "--checkpoint.enable", "false", "--data.lowercase_weight", job)
            captured = capsys.readouterr()
            assert (captured.out + captured.err).count(told) == times


def test_a_sample_of_a_large_file_is_scaled_to_the_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path)
    draw = random.Random(0)
    file = tmp_path / "corpus" / "0.jsonl"
    lengths = [draw.randint(100, 3000) for _ in range(6000)]
    file.write_text("".join(json.dumps({"text": "x" * length}) + "\n" for length in lengths))
    (tmp_path / "corpus" / "1.jsonl").unlink()
    check.main([str(config)])
    text = paragraphs(capsys.readouterr().out, ["words"])["words"]
    assert number(text, "documents, about") == pytest.approx(6000, rel=0.05)
    assert number(text, "tokens, estimated") == pytest.approx(sum(lengths) + 6000, rel=0.05)
    assert number(text, "documents and") < 3000, "it is a sample"


def test_the_bars_of_the_histogram_count_every_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.main([str(write_mixture(tmp_path))])
    output = capsys.readouterr().out
    lines = [line.split() for line in output.split("shards (tokens)")[1].splitlines() if line.startswith("    ")]
    bars = [line for line in lines if line[0].isdecimal()]  # the others are letters
    assert sum(int(bar[-1].replace(",", "")) for bar in bars) == 400
    assert [int(bar[0]) for bar in bars] == [2**n for n in range(int(bars[0][0]).bit_length() - 1, 9)]


def test_check_does_not_guess_the_epoch_of_compressed_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_job(tmp_path)
    lines = b"".join(b'{"text": "%s"}\n' % random.Random(n).randbytes(2000).hex().encode() for n in range(200))
    for name in range(8):
        (tmp_path / "corpus" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines))
    config.write_text(config.read_text().replace("*.jsonl", "*.gz"))
    check.main([str(config)])
    assert "the whole is not estimated, since its files are compressed" in capsys.readouterr().out


def test_check_shows_the_layout_and_how_rows_are_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.main([str(write_job(tmp_path)), "--parallelism.context_parallel_degree", "2", "--world-size", "4"])
    output = capsys.readouterr().out
    assert "replicate 1 x shard 2 x context 2 x tensor 1 = 4 process(es), parameters over shard x context = 4" in output
    assert "a row's 64 tokens in 16 blocks of 4, dealt out by mask work: 8 to each of 2 ranks" in output


def test_inspect_draws_a_picture_and_marks_every_boundary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "rows.png"
    config, _ = load_config(["--config", str(write_job(tmp_path))])
    inspect.main([str(tmp_path / "job.toml"), "--output", str(picture), "--rows", "4", "--decode", "3"])
    assert picture.read_bytes().startswith(b"\x89PNG")
    output = capsys.readouterr().out
    assert "600 documents, " in output, "the sources"
    layout = Layout.resolve(config)
    tokenizer, shape = verify(config, layout)
    mask = training_mask(config, tokenizer, torch.device("cpu"))
    feed = open_data(config, layout, tokenizer, mask, shape.vocab_size, batch_size=3).begun(mask)
    feed.loader.close()
    assert feed.first is not None
    batch = feed.first
    first = batch.tokens[0][(batch.sequence_ids[0] == 0) & (batch.tokens[0] != 0)]
    assert f"\n{tokenizer.decode(first.tolist())} ⏹" in output, "the text of the rows"
    assert output.count("⏹") == int((batch.tokens == 0).sum())
    assert output.count("⏹") + output.count("⋯") == int((batch.sequence_ids.amax(1) + 1).sum())


def test_inspect_shows_the_escapes_of_a_document_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "a\x1b]0;title\x07b [red]c[/red] \x9b1m \r\u202e end"
    (tmp_path / "hostile.jsonl").write_text((json.dumps({"text": text}) + "\n") * 50)
    source = [{"name": "x\x1b[2J[red]", "format": "jsonl", "paths": [str(tmp_path / "hostile.jsonl")]}]
    options = ["--output", str(tmp_path / "x.png"), "--rows", "1", "--decode", "1"]
    cli.run("inspect", [str(write_job(tmp_path)), *options, "--data.sources", json.dumps(source), "--data.lanes", "1"])
    out = capsys.readouterr().out
    assert "a\\x1b]0;title\\x07b [red]c[/red] \\x9b1m \\r\\u202e end" in out
    assert "[red] (jsonl)" in out, "no markup in the name of a source"
    assert not set(out) & set("\x1b\x07\x9b\r\u202e")


def test_inspect_and_check_show_both_regions_of_a_position_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, job = tmp_path / "rows.png", str(write_job(tmp_path))
    rerope = ["--model.attention.position_map", "rerope", "--model.attention.map_window", "16"]
    rerope += ["--model.rope.original_seq_len", "32"]
    inspect.main([job, "--output", str(picture), "--decode", "0", *rerope])
    assert picture.read_bytes().startswith(b"\x89PNG")
    check.main([job, *rerope])
    assert 'position_map = "rerope": two passes, near and far; 100.0% of the pairs' in capsys.readouterr().out
    check.main([job, "--model.attention.mask", "sliding", "--model.attention.window", "16"])
    assert f'mask = "sliding": one pass; {(16 * 17 / 2 + 48 * 16) / (64 * 65 / 2):.1%} of the' in capsys.readouterr().out


def test_the_picture_shows_the_block_mask_as_the_dense_mask_has_it() -> None:
    sequence_ids = torch.tensor([[0] * 5 + [1] * 8 + [2] * 16 + [-1] * 3], dtype=torch.int32)
    states = inspect.block_states(document_block_mask(sequence_ids, causal=True, block_size=4))
    dense = document_dense_mask(sequence_ids, causal=True)[0, 0].view(8, 4, 8, 4).transpose(1, 2)
    assert torch.equal(states == inspect.FULL, dense.all(-1).all(-1))
    assert torch.equal(states == inspect.EMPTY, ~dense.any(-1).any(-1))


def test_generate_continues_a_prompt_the_same_way_for_the_same_seed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(trained.parent / "run" / "checkpoint" / "step-60")
    texts = []
    for seed in ("0", "0", "1"):
        capsys.readouterr()
        generate.main([path, "--prompt", "pack row", "--max-new-tokens", "40", "--seed", seed])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]
    assert texts[0].startswith("pack row")
    assert set(texts[0].strip()) <= set("packrowmskeoslanetokencistron "), "it has learnt the corpus's letters"


def test_generate_refuses_what_it_cannot_sample_from(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest = str(trained.parent / "run" / "checkpoint")
    for arguments, expected in (
        ([str(tmp_path), "--prompt", "x"], "not a complete checkpoint"),
        ([newest, "--prompt", ""], "prompt: has no tokens"),
        ([newest, "--prompt", "a\0b"], "NUL byte"),
        ([newest, "--prompt", "x", "--top-k", "0"], "top_k = 0: must be"),
        ([newest, "--prompt", "x", "--temperature", "nan"], "temperature = nan: must be"),
        ([newest, "--prompt", "x", "--max-new-tokens", "1000000000000"], "max_new_tokens = 1000000000000: must be"),
        ([newest, "--prompt", "x", "--seed", str(2**64)], f"seed = {2**64}: must be"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.run("generate", arguments)
        assert caught.value.code == 2
        assert expected in capsys.readouterr().err


def test_generate_refuses_a_checkpoint_of_another_tokenizer(
    trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByteTokenizer, "eos_id", 10)
    with pytest.raises(SystemExit) as caught:
        cli.run("generate", [str(trained.parent / "run" / "checkpoint"), "--prompt", "pack"])
    assert caught.value.code == 2
    assert "tokenizer says eos is 10, checkpoint says 0" in capsys.readouterr().err


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's commands have made the corpora of train_configs/mixture.toml."""
    folder = tmp_path_factory.mktemp("corpora")
    lines = (ROOT / "README.md").read_text().splitlines()
    commands = lines[lines.index("    mkdir -p outputs/data") : lines.index("    END") + 1]
    script = textwrap.dedent("\n".join(commands))
    done = subprocess.run(["bash", "-ec", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["debug", "llama3_1b", "mixture"])  # the others are for a given number: tests/test_configs.py
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_shipped_configurations_pass_their_check_for_any_number_of_processes(
    name: str, processes: int, corpora: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(corpora)
    check.main([str(ROOT / "train_configs" / f"{name}.toml"), "--world-size", str(processes)])
    output = capsys.readouterr().out
    assert "all checks passed" in output
    assert f"on {processes} process(es)" in output


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_runs_as_a_module_too(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--no-such-option"])
    with pytest.raises(SystemExit) as caught:
        run_module(f"cistron.tools.{name}", run_name="__main__", alter_sys=False)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"cistron {name}" in said or "--no-such-option" in said
