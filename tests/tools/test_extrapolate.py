"""cistron evaluate --extrapolate: what it writes, of a checkpoint and of a Hugging Face folder, and what it refuses."""

from __future__ import annotations

import json
import random
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from cistron.tests.helpers.models import CAUSAL, ENCODER, PROTEIN, write_checkpoint
from cistron.tools import cli, evaluate
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

METHODS = ["trained", "linear", "rerope"]
OPTIONS = ["--passkey-samples", "2", "--passkey-depths", "0", "1", "--documents", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a job that validates on documents of 40 to 700 bytes."""
    folder = tmp_path_factory.mktemp("extrapolate")
    draw = random.Random(0)
    lines = [json.dumps({"text": "".join(draw.choices("abc", k=length))}) for length in (40, 700, 300, 600, 520)]
    (folder / "long.jsonl").write_text("\n".join(lines) + "\n")
    source = {"name": "long", "format": "jsonl", "paths": [str(folder / "long.jsonl")]}
    table = {"lengths": ["1x", "2x"], "methods": METHODS, "score_last": 32}
    tables: dict[str, Any] = {"validation": {"sources": [source]}, "eval": {"extrapolation": table}}
    write_checkpoint(folder / "run" / "step-1", CAUSAL, training={"seq_len": 256}, **tables)
    return folder


@pytest.fixture(scope="module")
def output(folder: Path) -> Path:
    evaluate.main([str(folder / "run"), "--extrapolate", "--output", str(folder / "out"), *OPTIONS])
    return folder / "out"


def losses(output: Path) -> dict[tuple[str, int], tuple[float, float]]:
    found = json.loads((output / "extrapolation.json").read_text())
    return {(r["method"], r["length"]): (r["loss"], r["last_loss"]) for r in found["results"]}


def test_json_picture_and_curves_hold_every_method_at_every_length(output: Path) -> None:
    found = json.loads((output / "extrapolation.json").read_text())
    assert (found["trained_length"], found["lengths"], found["documents_read"]) == (256, [256, 512], 5)
    assert found["documents_qualified"] == {"256": 4, "512": 3}
    assert found["documents_used"] == {"256": 2, "512": 2}
    assert set(losses(output)) == {(method, length) for method in METHODS for length in (256, 512)}
    assert all(set(result["passkey"]) == {"0.0", "1.0"} for result in found["results"])
    assert (output / "extrapolation.png").read_bytes().startswith(b"\x89PNG")
    curves = EventAccumulator(str(output / "tensorboard"))
    curves.Reload()
    (_, last) = curves.Scalars("extrapolation/rerope/last_loss")
    assert (last.step, last.value) == (512, pytest.approx(losses(output)["rerope", 512][1]))


def test_a_second_evaluation_replaces_the_curves_of_the_first(folder: Path, output: Path) -> None:
    options = ["--methods", "trained", "trained", *OPTIONS]
    evaluate.main([str(folder / "run"), "--extrapolate", "--output", str(folder / "again"), *options])
    evaluate.main([str(folder / "run"), "--extrapolate", "--output", str(folder / "again"), *options])
    assert len(list((folder / "again" / "tensorboard").iterdir())) == 1
    assert losses(folder / "again") == {key: value for key, value in losses(output).items() if key[0] == "trained"}


def test_tables_and_what_qualified_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--lengths", "1x", "600", "--methods", "trained", "sliding", "--passkey-samples", "0"]
    evaluate.main([str(folder / "run"), "--extrapolate", "--output", str(folder / "out2"), *options])
    said = capsys.readouterr().out
    assert "trained length 256 (training.seq_len of its job)" in said
    assert "of 5 documents there are 4 of at least 256 tokens, 2 of at least 600 tokens" in said
    assert "warning: sliding: model.attention is not that of its training" in said
    assert "mask=sliding window=256" in said
    assert "pass keys" not in said


def test_a_hugging_face_folder_and_files_that_are_named_give_the_same(folder: Path) -> None:
    import_module("cistron.tools.export").main([str(folder / "run"), str(folder / "hf")])
    files = ["--input", str(folder / "long.jsonl"), "--lengths", "1x", "2x", "--methods", *METHODS, "--score-last", "32"]
    every = [*OPTIONS, "--documents", "5"]  # files that are named are read in another order
    evaluate.main([str(folder / "run"), "--extrapolate", "--output", str(folder / "ours"), *every])
    evaluate.main([str(folder / "hf"), "--extrapolate", "--output", str(folder / "theirs"), *files, *every])
    for key, expected in losses(folder / "ours").items():
        assert losses(folder / "theirs")[key] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "1x", "8x"], "of 5 documents there are 4 of at least 256 tokens, 0 of at least 2,048 tokens"),
        (["--lengths", "double"], "eval.extrapolation.lengths = 'double': must be a number of tokens"),
        (["--methods", "re_rope"], "'re_rope' is no method, did you mean 'rerope'?"),
        (["--passkey-samples", "-1"], "error: eval.extrapolation.passkey.samples = -1"),
        (["--output", "/dev/null/x"], "--output /dev/null/x: cannot be written"),
        (["--score-last", "256"], "score_last = 256: must be below the shortest length, 256 tokens"),
    ],
)
def test_what_cannot_be_measured_ends_with_one_message(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    arguments = ["--lengths", "1x", "2x", *arguments] if arguments[0] != "--lengths" else arguments
    assert message in refused(capsys, str(folder / "run"), *arguments)


def test_models_without_a_next_token_or_without_documents_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = write_checkpoint(tmp_path / "encoder", ENCODER, PROTEIN, training={"seq_len": 64, "objective": "mlm"})
    assert "a bidirectional model, trained by mlm, cannot be asked for longer documents" in refused(capsys, str(encoder))
    alone = write_checkpoint(tmp_path / "alone", CAUSAL, training={"seq_len": 128})
    assert "has no [[validation.sources]]; name files with --input" in refused(capsys, str(alone))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one message of the command, which ends with status 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.run("evaluate", [*arguments, "--extrapolate"])
    error = capsys.readouterr().err
    assert caught.value.code == 2
    assert "Traceback" not in error
    return error
