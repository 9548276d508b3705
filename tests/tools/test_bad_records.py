"""`embed` and `evaluate` with bad records, or killed at any place: what is finished stays, and is not done twice."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cistron.tests.helpers.models import CAUSAL, ENCODER, PROTEIN, random_sequences, write_checkpoint, write_fasta
from cistron.tools import cli, embed, evaluate
from cistron.tools.support import embedding_files, partial_output, score_files
from safetensors.torch import load_file

BATCHES = ["--batch-tokens", "24"]


class Killed(BaseException):
    """Where a signal would have ended the process."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model") / "step-1", CAUSAL, data={"exclude_degenerate": True}))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("encoder") / "step-1", ENCODER, PROTEIN))


def refused(capsys: pytest.CaptureFixture[str], command: str, *arguments: object) -> str:
    """The message of a command that ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.run(command, [str(argument) for argument in arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


def rows(output: Path) -> list[dict[str, Any]]:
    """The lines of a file of scores."""
    if output.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(output).to_pylist()
        return found
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_text().splitlines()]
    return list(csv.DictReader(output.open(), delimiter="\t"))


def test_a_bad_record_at_any_place_is_left_out_and_counted(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, nul, good = ">e of nothing\n", ">z\nAC\0G\n", [f">{name}\nACGTACGT\n" for name in "abc"]
    for place in (0, 1, 3):
        records = [*good[:place], empty, nul, *good[place:]]
        source = tmp_path / f"{place}.fa"
        source.write_text("".join(records))
        said = refused(capsys, "evaluate", model, "--score", source)
        assert f"{place}.fa, record e" in said
        assert "the record has no residue" in said
        evaluate.main([model, "--score", str(source), "--on-bad-record", "skip"])
        captured = capsys.readouterr()
        assert [line.split("\t")[0] for line in captured.out.splitlines()] == ["name", "a", "b", "c"]
        assert captured.err.count("skipped: ") == 2
        assert captured.err.endswith("2 bad records were left out\n")
        output = tmp_path / f"{place}.safetensors"
        options = ["--layer", "norm", "--output", str(output)]
        assert "has no residue" in refused(capsys, "embed", model, "--input", source, *options)
        embed.main([model, "--input", str(source), "--on-bad-record", "skip", *options])
        assert "3 sequences, 2 bad records left out" in capsys.readouterr().out
        assert load_file(output)["norm"].shape == (3, 32)
        assert Path(f"{output}.names.txt").read_text().split() == ["a", "b", "c"]
    (tmp_path / "all.fa").write_text(empty + nul)
    for command, option in (("evaluate", "--score"), ("embed", "--input")):
        more = () if option == "--score" else ("--layer", "norm", "--output", tmp_path / "all.parquet")
        said = refused(capsys, command, model, option, tmp_path / "all.fa", "--on-bad-record", "skip", *more)
        assert "all.fa: none of its records can be used" in said
    assert not (tmp_path / "all.parquet.partial").exists()


def test_records_of_every_format_keep_their_names_where_others_are_bad(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = [{"text": "ACGT", "id": "a"}, {"text": None, "id": "b"}, {"text": "", "id": "c"}, {"text": "GG", "id": None}]
    table += [{"text": "A" * 50, "id": "e"}, {"text": "TTT", "id": "f"}]
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in table) + "{broken\n" + '{"text": "CC", "id": "g"}\n'
    )
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "x.parquet", row_group_size=4)
    for name, named, numbered in (
        ("x.jsonl", ["a", "f", "g"], ["0", "3", "5", "7"]),
        ("x.parquet", ["a", "f"], ["0", "3", "5"]),
    ):
        common = [model, "--score", str(tmp_path / name), "--on-bad-record", "skip", "--max-length", "20"]
        for options, expected in ((["--id-field", "id"], named), ([], numbered)):
            evaluate.main([*common, *options])
            captured = capsys.readouterr()
            assert [line.split("\t")[0] for line in captured.out.splitlines()[1:]] == expected
            assert "has 51 tokens with its eos, and --max-length is 20" in captured.err
    texts = [tmp_path / f"{name}.txt" for name in "abc"]
    for path, text in zip(texts, ("ACG", "", "GT"), strict=True):
        path.write_text(text)
    pattern = str(tmp_path / "?.txt")
    assert "b.txt: the file is empty" in refused(capsys, "evaluate", model, "--score", pattern)
    evaluate.main([model, "--score", pattern, "--on-bad-record", "skip"])
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert "1 bad records were left out" in captured.err


def test_letters_without_a_complement_or_an_id_are_bad_records(
    tmp_path: Path, model: str, encoder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_fasta(tmp_path / "x.fa", ["NACG", "AC|k|GT", "MKV", "ACGTN", "N"])
    evaluate.main([model, "--score", str(source), "--reverse-complement", "--on-bad-record", "skip", *BATCHES])
    captured = capsys.readouterr()
    lines = list(csv.DictReader(captured.out.splitlines(), delimiter="\t"))
    assert [line["name"] for line in lines] == ["s0", "s2", "s3", "s4"], "MKV is of IUPAC codes"
    assert "byte b'|' at 2 is no IUPAC code" in captured.err
    assert [(line["tokens"], line["excluded"]) for line in lines] == [("3", "1"), ("0", "3"), ("3", "1"), ("0", "1")]
    assert [line["mean"] for line in lines][1::2] == ["nan", "nan"]
    assert "6 letters that training took no loss on are not scored" in captured.err
    assert "2 sequences have no token that is scored: their mean is nan" in captured.err
    one, other = (score(tmp_path, model, text, capsys) for text in ("NACG", "CGTN"))
    both = (float(one["log_likelihood"]) + float(other["log_likelihood"])) / 2
    assert float(lines[0]["log_likelihood"]) == pytest.approx(both, abs=1e-5)
    assert float(lines[0]["mean"]) == pytest.approx(2 * both / (3 + 2), abs=1e-5), "of the tokens of both strands"
    star = write_fasta(tmp_path / "star.fa", ["MKV", "MKV*", "kv"])
    evaluate.main([encoder, "--score", str(star), "--on-bad-record", "skip"])
    captured = capsys.readouterr()
    assert [line[:2] for line in captured.out.splitlines()[1:]] == ["s0"]
    assert captured.err.endswith("2 bad records were left out\n")


def score(folder: Path, model: str, text: str, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The line of one sequence."""
    evaluate.main([model, "--score", str(write_fasta(folder / "one.fa", [text]))])
    return next(csv.DictReader(capsys.readouterr().out.splitlines(), delimiter="\t"))


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet"])
def test_a_late_bad_record_costs_no_finished_score(
    tmp_path: Path, model: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_fasta(tmp_path / "x.fa", random_sequences(3, [9, 30, 1, 22] * 5))
    source.write_text(f"{source.read_text()}>late\n\n>last\nACGTA\n")
    output, whole = tmp_path / f"s{suffix}", tmp_path / f"whole{suffix}"
    command = [model, "--score", str(source), *BATCHES]
    assert "record late" in refused(capsys, "evaluate", *command, "--output", output)
    journal = Path(f"{output}.partial") / "scores.jsonl"
    kept = journal.read_bytes()
    assert kept.count(b"\n") > 5
    said = refused(capsys, "evaluate", *command, "--output", output, "--with-eos", "--prefix", "AC", "--no-exclude-degenerate")
    assert "half an output of another command" in said
    for line in ("with_eos was False, is True", "prefix was '', is 'AC'", "letters was {"):
        assert line in said
    assert journal.read_bytes() == kept
    evaluate.main([*command, "--output", str(output), "--on-bad-record", "skip"])
    captured = capsys.readouterr()
    assert "going on behind them" in captured.err
    assert "1 bad records were left out" in captured.err
    evaluate.main([*command, "--output", str(whole), "--on-bad-record", "skip"])
    assert [row["name"] for row in rows(output)] == [*(f"s{number}" for number in range(20)), "last"]
    assert not Path(f"{output}.partial").exists()
    if suffix == ".parquet":
        settings = json.loads(pq.read_schema(output).metadata[b"settings"])
    else:
        settings = json.loads(Path(f"{output}.settings.json").read_text())
    assert (settings["letters"]["exclude_degenerate"], settings["on_bad_record"]) == (True, "skip")
    assert output.read_bytes() == whole.read_bytes()
    assert "exists already" in refused(capsys, "evaluate", *command, "--output", output)
    assert output.read_bytes() == whole.read_bytes()


def at_call(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, *, after: bool) -> None:
    """Kill before or after a call of a function."""
    before: Callable[..., Any] = getattr(owner, name)
    calls: list[int] = []

    def killing(*arguments: Any, **options: Any) -> Any:
        calls.append(0)
        if len(calls) == call and not after:
            raise Killed
        result = before(*arguments, **options)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, killing)


PLACES = [
    *((score_files.ScoreFile, "add", call, after) for call in (1, 4) for after in (False, True)),
    *((score_files.ScoreFile, name, 1, after) for name in ("finish", "publish", "tidy") for after in (False, True)),
    *((Path, "replace", call, after) for call in (-1, -2, -3) for after in (False, True)),
]


@pytest.mark.parametrize("of_encoder", [False, True], ids=["causal", "masked"])
def test_killed_at_any_place_the_scores_come_out_the_same(
    tmp_path: Path, model: str, encoder: str, of_encoder: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [4, 12, 1, 9] * 2 if of_encoder else [8, 25, 2, 40, 13] * 3  # as many passes as there are residues
    source = write_fasta(tmp_path / "x.fa", random_sequences(5, lengths))
    command = [encoder if of_encoder else model, "--score", str(source), *BATCHES]
    whole = tmp_path / "whole.tsv"
    with pytest.MonkeyPatch.context() as patched:
        replaced: list[Path] = []
        move = Path.replace
        patched.setattr(Path, "replace", lambda path, to: (replaced.append(path), move(path, to))[1])
        evaluate.main([*command, "--output", str(whole)])
    for number, (owner, name, call, after) in enumerate(PLACES[:3] if of_encoder else PLACES):
        output = tmp_path / f"{number}.tsv"
        with pytest.MonkeyPatch.context() as patched:
            at_call(patched, owner, name, call if call > 0 else len(replaced) + 1 + call, after=after)
            with pytest.raises(Killed):
                evaluate.main([*command, "--output", str(output)])
        journal = Path(f"{output}.partial") / "scores.jsonl"
        if name == "add" and journal.exists():  # half a line more, as a kill leaves it
            journal.write_bytes(journal.read_bytes() + b'[7, [["s')
        if not output.exists() or Path(f"{output}.partial").exists():
            evaluate.main([*command, "--output", str(output)])
        assert output.read_bytes() == whole.read_bytes(), (name, call, after)
        assert not Path(f"{output}.partial").exists(), (name, call, after)
        assert Path(f"{output}.settings.json").read_bytes() == Path(f"{whole}.settings.json").read_bytes()


def test_embeddings_go_on_behind_records_that_were_left_out(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedding_files, "PART_SEQUENCES", 4)
    texts = ["ACGT", "", "GG", "T", "ACCA", "GATTA", "", "CC", "TTTT", "G", "AC"]
    source = write_fasta(tmp_path / "x.fa", texts)
    command = [model, "--input", str(source), "--layer", "norm", "--on-bad-record", "skip", "--batch-tokens", "12"]
    embed.main([*command, "--output", str(tmp_path / "whole.parquet")])
    output = tmp_path / "e.parquet"
    with pytest.MonkeyPatch.context() as patched:
        at_call(patched, embedding_files.EmbeddingFile, "add", 4, after=False)
        with pytest.raises(Killed):
            embed.main([*command, "--output", str(output)])
    capsys.readouterr()
    said = refused(capsys, "embed", *[word for word in command if word not in ("--on-bad-record", "skip")], "--output", output)
    assert "on_bad_record was 'skip', is 'error'" in said
    with pytest.MonkeyPatch.context() as patched:
        at_call(patched, partial_output.PartialOutput, "tidy", 1, after=False)
        with pytest.raises(Killed):
            embed.main([*command, "--output", str(output)])
    embed.main([*command, "--output", str(output)])
    assert "was whole already" in capsys.readouterr().err
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert pq.read_table(output)["name"].to_pylist() == [f"s{number}" for number, text in enumerate(texts) if text]
    assert not (tmp_path / "e.parquet.partial").exists()
