"""`cistron prepare` from the command line: the same bytes however it is run, whatever ends it, and clear refusals."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.datasets.files import FileStore, Lock
from cistron.datasets.shards import open_shards
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.tests.helpers.corpora import write_fasta, write_jsonl, write_shard
from cistron.tools import cli, prepare
from cistron.trainer.config import load_config

WORDS = ["pack", "row", "mask", "eos", "lane", "token"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of 1,500 documents, some of them equal."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    for name in "ab":
        texts = [" ".join(draw.choices(WORDS, k=draw.randint(0, 500))) for _ in range(1500)]
        write_jsonl(folder / f"{name}.jsonl", texts + texts[:100])
    return folder


def arguments(corpus: Path, output: Path, *more: str) -> list[str]:
    flags = ["--format", "jsonl", "--tokenizer", "byte", "--shard-mb", "1", "--processes", "1"]
    flags += ["--validation-share", "0.2", "--deduplicate"]
    return [*flags, str(corpus / "*.jsonl"), "--output", str(output), *more]


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, by a hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must end with status 2 and return its one message."""
    with pytest.raises(SystemExit) as caught:
        cli.run("prepare", argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def prepared(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus prepared by one process."""
    folder = tmp_path_factory.mktemp("prepared") / "words"
    prepare.main(arguments(corpus, folder))
    return folder


def test_all_documents_are_there_once(corpus: Path, prepared: Path) -> None:
    found = []
    for side in ("train", "validation"):
        for shard in open_shards(FileStore().expand([str(prepared / side)], "*.json"), FileStore()):
            ids, bounds = shard.ids(), shard.offsets().astype(np.int64)
            found += [ids[a : b - 1].tobytes().decode() for a, b in pairwise(bounds)]
    texts = [json.loads(line)["text"] for path in sorted(corpus.iterdir()) for line in path.read_text().splitlines()]
    assert sorted(found) == sorted({text for text in texts if text})


@pytest.mark.parametrize("processes", ["2", "4"])
def test_any_number_of_processes_writes_the_same_bytes(corpus: Path, prepared: Path, tmp_path: Path, processes: str) -> None:
    prepare.main(arguments(corpus, tmp_path / "words", "--processes", processes))
    assert contents(tmp_path / "words") == contents(prepared)


def test_killed_at_any_moment_and_run_again_it_writes_the_same_bytes(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    draw = random.Random(1)
    output = tmp_path / "words"
    command = [sys.executable, "-m", "cistron.tools.cli", "prepare", *arguments(corpus, output, "--processes", "2")]
    results = 0
    for _ in range(3):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        # The plan is the first file in this folder, a file for each finished task the others.
        wanted = results + draw.randint(1, 2)
        while (results := len(list(output.glob("plan/*.json")))) < wanted and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    prepare.main(arguments(corpus, output))
    assert contents(output) == contents(prepared)


def test_what_is_finished_stays_and_what_is_not_is_done_again(corpus: Path, prepared: Path, tmp_path: Path) -> None:
    output = tmp_path / "words"
    prepare.main(arguments(corpus, output))
    kept = output / "train" / "000001.ids"
    inode = kept.stat().st_ino
    (output / "train" / "000000.json").unlink()
    (output / "validation" / "000002.ids").write_bytes(b"cut")
    (output / "plan" / "000003.json").unlink(missing_ok=True)
    (output / "train" / "000000.ids.77.part").write_bytes(b"orphan")
    prepare.main(arguments(corpus, output))
    assert contents(output) == contents(prepared)
    assert kept.stat().st_ino == inode, "not written again"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--validation-share", "0.1"], "validation_share was 0.2 and is 0.1"),
        (["--shard-mb", "2"], "shard_bytes was 1000000 and is 2000000"),
        (["--on-bad-record", "skip"], "skip_bad was False and is True"),
    ],
)
def test_another_plan_is_refused_with_the_difference(
    corpus: Path, prepared: Path, change: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(prepared)
    assert message in refused(capsys, *arguments(corpus, prepared, *change))
    assert contents(prepared) == before


def test_a_changed_file_is_refused_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    prepare.main(arguments(tmp_path, tmp_path / "out"))
    write_jsonl(tmp_path / "a.jsonl", ["one", "two", "three"])
    assert f"{path} changed its size" in refused(capsys, *arguments(tmp_path, tmp_path / "out"))


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / "train" / "000000.ids").write_bytes(b"x")
    assert "000000.ids is there already" in refused(capsys, *arguments(tmp_path, tmp_path / "out"))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    (tmp_path / "file").write_text("in the way")
    assert "file/out: cannot be written" in refused(capsys, *arguments(tmp_path, tmp_path / "file" / "out"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "validation").write_text("in the way")
    assert f"{tmp_path / 'out'}: cannot be written" in refused(capsys, *arguments(tmp_path, tmp_path / "out"))


def test_two_preparations_of_one_folder_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one"])
    with Lock(tmp_path / "out" / "plan"):
        assert "out/plan: in use: host " in refused(capsys, *arguments(tmp_path, tmp_path / "out"))
    prepare.main(arguments(tmp_path, tmp_path / "out"))


def test_verify_says_that_all_is_well_or_what_is_not(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "words"
    prepare.main(arguments(corpus, output))
    capsys.readouterr()
    prepare.main(["--verify", str(output), "--processes", "1"])
    assert "are as they were written" in capsys.readouterr().out
    path = output / "train" / "000000.ids"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    assert f"{path}: its bytes have changed" in refused(capsys, "--verify", str(output), "--processes", "1")


def test_shards_of_version_1_are_upgraded_in_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shard(tmp_path / "x", [[5, 0], [6, 0]])
    manifest = json.loads((tmp_path / "x.json").read_text())
    del manifest["checksums"]["sums"]
    (tmp_path / "x.json").write_text(json.dumps({**manifest, "version": 1}))
    (tmp_path / "x.sums").unlink()
    assert "--upgrade FOLDER" in refused(capsys, "--verify", str(tmp_path), "--processes", "1")
    prepare.main(["--upgrade", str(tmp_path), "--processes", "1"])
    prepare.main(["--verify", str(tmp_path), "--processes", "1"])
    assert "1 shards were given checksums of their blocks\n1 shards with 4 tokens are as they" in capsys.readouterr().out


def test_the_sources_of_a_job_each_get_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "", "three"], field="body")
    write_fasta(tmp_path / "b.fasta", ["ACGT", "TTT"])
    sources = [
        {"name": "words", "format": "jsonl", "field": "body", "paths": [str(tmp_path / "a.jsonl")]},
        {"name": "genes", "format": "fasta", "paths": [str(tmp_path / "b.fasta")]},
    ]
    tables = "".join(
        "[[data.sources]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in source.items()) for source in sources
    )
    (tmp_path / "job.toml").write_text(tables)
    output = tmp_path / "out"
    command = ["--config", str(tmp_path / "job.toml"), "--output", str(output), "--processes", "1"]
    prepare.main([*command, "--report", str(tmp_path / "report.html")])
    out = capsys.readouterr().out
    assert "words: 1 files, 2 documents, 10 tokens, 0.800 bytes a token" in out
    assert "1 documents without tokens dropped" in out
    assert f'"{output / "genes" / "train"}"' in out, "to be pasted into a job"
    report = (tmp_path / "report.html").read_text()
    assert report.count("data:image/png;base64,iVBOR") == 2
    assert str(tmp_path / "b.fasta") in report
    assert "no source 'other'; its sources are: 'words', 'genes'" in refused(capsys, *command, "--source", "other")

    (tmp_path / "next.toml").write_text(out[out.index("[[data.sources]]") :].partition("report:")[0])
    pasted, _ = load_config(["--config", str(tmp_path / "next.toml")])
    assert [(source.name, source.format) for source in pasted.data.sources] == [("words", "tokens"), ("genes", "tokens")]


@pytest.mark.parametrize(("kind", "record"), [("protein", "MKVk"), ("dna", "ACGU")])
def test_letters_are_prepared_and_their_policy_is_part_of_the_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, record: str
) -> None:
    path = write_fasta(tmp_path / "x.fasta", ["ACG", record], header="r{}")
    argv = ["--format", "fasta", "--tokenizer", kind, "--processes", "1", path, "--output", str(tmp_path / "out")]
    message = refused(capsys, *argv)
    assert f"{path}, record r1, byte {Path(path).read_text().index(record) + 3}: " in message
    prepare.main([*argv[:-1], str(tmp_path / "lenient"), "--on-unknown", "map"])
    (shard,) = open_shards(FileStore().expand([str(tmp_path / "lenient" / "train")], "*.json"), FileStore())
    tokenizer, manifest = build_tokenizer(TokenizerConfig(kind=kind, on_unknown="map")), shard.manifest
    assert shard.ids().tolist() == tokenizer.encode_batch([b"ACG", record.encode()]).ids.tolist()
    stated = ("eos_id", "bos_id", "pad_id", "mask_id", "vocab_size")
    assert [getattr(manifest, name) for name in stated] == [getattr(tokenizer, name) for name in stated]
    assert manifest.dtype == "uint8"
    assert "1 letters mapped" in capsys.readouterr().out
    message = refused(capsys, *argv[:-1], str(tmp_path / "lenient"))
    assert "on_unknown was 'map' and is 'error'" in message


def test_weights_are_prepared_by_flags_or_as_the_job_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_fasta(tmp_path / "x.fasta", ["ACgt|tag|N"])
    by_flags = ["--format", "fasta", "--tokenizer", "byte", "--processes", "1", path, "--output", str(tmp_path / "flags")]
    prepare.main([*by_flags, "--lowercase-weight", "0", "--exclude-tags", "--exclude-degenerate", "--uppercase"])
    (tmp_path / "job.toml").write_text(
        f"[data]\nlowercase_weight = 0.5\n[[data.sources]]\nname = 'x'\nformat = 'fasta'\npaths = ['{path}']\n"
    )
    by_job = ["--config", str(tmp_path / "job.toml"), "--processes", "1", "--output", str(tmp_path / "job")]
    prepare.main(by_job)
    (flags,), (job,) = (
        open_shards(FileStore().expand([str(tmp_path / name)], "*.json"), FileStore())
        for name in ("flags/train", "job/x/train")
    )
    assert bytes(flags.ids()) == b"ACGT|TAG|N\0"
    assert [None if shard.weights() is None else shard.weights().tolist() for shard in (flags, job)] == [
        [1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1], [1, 1, 0.5, 0.5, 1, 0.5, 0.5, 0.5, 1, 1, 1],
    ]  # fmt: skip
    assert "--lowercase-weight and --config exclude each other" in refused(capsys, *by_job, "--lowercase-weight", "0")
    message = refused(capsys, *by_flags, "--lowercase-weight", "0.5")
    assert "lowercase_weight" in message, "another plan"


def test_token_files_are_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.bin").write_bytes(np.array([5, 6, 0, 7, 0], "<u2").tobytes())
    flags = ["--import", "tokens", "--tokenizer", "byte", "--dtype", "uint16", str(tmp_path / "a.bin")]
    common = ["--processes", "1", "--output", str(tmp_path / "out")]
    assert "--eos-id is not set" in refused(capsys, *flags, *common)
    assert "--eos-id 3: the tokenizer's eos is 0" in refused(capsys, *flags, *common, "--eos-id", "3")
    prepare.main([*flags, *common, "--eos-id", "0"])
    (shard,) = open_shards(FileStore().expand([str(tmp_path / "out" / "train")], "*.json"), FileStore())
    assert shard.ids().tolist() == [5, 6, 0, 7, 0]


def test_the_advice_about_padded_rows_leads_to_shards_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [[*range(65, 65 + length), *[7] * (20 - length)] for length in range(1, 13)]
    pq.write_table(pa.table({"input_ids": rows}), tmp_path / "a.parquet")
    argv = ["--import", "parquet", "--tokenizer", "byte", str(tmp_path / "a.parquet"), "--processes", "1"]
    argv += ["--output", str(tmp_path / "out")]
    assert "do not end with eos 0" in refused(capsys, *argv, "--pad-id", "none")
    shutil.rmtree(tmp_path / "out")
    advised = re.search(r"--pad-id \d+", refused(capsys, *argv, "--append-eos"))
    assert advised
    shutil.rmtree(tmp_path / "out")
    prepare.main([*argv, "--append-eos", *advised[0].split()])
    assert f"{sum(20 - length for length in range(1, 13))} tokens of padding taken off" in capsys.readouterr().out
    (shard,) = open_shards(FileStore().expand([str(tmp_path / "out" / "train")], "*.json"), FileStore())
    assert shard.ids().tolist() == [token for length in range(1, 13) for token in [*range(65, 65 + length), 0]]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("a.jsonl --tokenizer byte --output out", "--format is not set"),
        ("a.jsonl --format jsonl --output out", "--tokenizer is not set"),
        ("--format jsonl --tokenizer byte --output out", "no files are named"),
        ("a.jsonl --format jsonl --tokenizer byte", "--output is not set"),
        ("a.jsonl --format jsonl --tokenizer byte --output out --validation-share 1", "--validation-share 1.0: must be"),
        ("a.jsonl --format jsonl --tokenizer byte --output out --processes 0", "--processes 0: must be at least 1"),
        ("a.jsonl --format jsonl --tokenizer byte --output out --source x", "--source names a source of --config"),
        ("a.jsonl --config job.toml --output out", "PATHS and --config exclude each other"),
        ("a.jsonl --format jsonl --tokenizer byte --output out --report no/r.html", "--report no/r.html: its folder"),
        ("none.jsonl --format jsonl --tokenizer byte --output out", "none.jsonl: there is no such file"),
        ("a --import megatron --tokenizer byte --output out --deduplicate", "--deduplicate is for raw files"),
        ("a --import megatron --tokenizer byte --output out --lowercase-weight 0", "--lowercase-weight is for raw files"),
        ("a --format fasta --tokenizer protein --output out --exclude-tags", "data.exclude_tags = true: is for genomes"),
        ("a --import megatron --tokenizer byte --output out --dtype uint16", "--dtype is for --import tokens"),
        ("a --import parquet --tokenizer byte --output out --pad-id x", "--pad-id x: must be an id, or none"),
        ("a --format jsonl --tokenizer byte --output out --append-eos", "--append-eos is for --import"),
        ("--verify nothing", "there is no shard"),
    ],
)
def test_a_mistake_is_one_message(
    argv: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(capsys, *argv.split())
    assert message in error
    assert error.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_a_bad_record_ends_it_with_file_and_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": 7}\n')
    common: list[Any] = arguments(tmp_path, tmp_path / "out")
    assert "a.jsonl, record 2, byte 14: field 'text' must be a string" in refused(capsys, *common)
    (tmp_path / "empty.jsonl").touch()
    prepare.main(arguments(tmp_path, tmp_path / "skipping", "--on-bad-record", "skip"))
    assert "1 files without a byte; 1 bad records skipped" in capsys.readouterr().out
