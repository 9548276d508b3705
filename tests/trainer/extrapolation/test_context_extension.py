"""Rotary scalings in a job: what is refused by key, and how a run begins from weights that saw shorter rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from cistron.tests.helpers.jobs import metrics, refusal, train_here, write_job
from cistron.trainer.checkpoints import read

YARN = ("--model.rope.scaling", "yarn", "--model.rope.factor", "4", "--model.rope.original_seq_len", "16")


def scaled(scaling: str, **changes: str) -> tuple[str, ...]:
    """Options of a scaling from 16 tokens to the 64 of the job's rows, with some changed or, where empty, left out."""
    options = {"scaling": scaling, "factor": "4", "original_seq_len": "16"} | changes
    return tuple(part for key, value in options.items() if value for part in (f"--model.rope.{key}", value))


ONES, TWO = "[1,1,1,1]", "[1,1]"
REFUSED = {
    "an unknown name": (scaled("yarm"), ["model.rope.scaling = 'yarm'", "'yarn'"]),
    "an unknown key": (scaled("yarn", betafast="3"), ["--model.rope.betafast", "did you mean '--model.rope.beta_fast'"]),
    "an unknown ramp": (scaled("yarn", ramp="straight"), ["model.rope.ramp = 'straight'", "'index' or 'paper'"]),
    "odd heads": (("--model.head_dim", "7"), ["model.head_dim is 7", "must be even"]),
    "heads of 2 and ntk": ((*scaled("ntk"), "--model.head_dim", "2"), ["model.head_dim is 2", '"ntk"', "d/(d - 2)"]),
    "heads of 2 and dynamic_ntk": ((*scaled("dynamic_ntk"), "--model.head_dim", "2"), ["model.head_dim is 2", '"linear"']),
    "theta of 1": (("--model.rope.theta", "1"), ["model.rope.theta is 1.0", "above 1"]),
    "a factor below 1": (scaled("linear", factor="0.5"), ["model.rope.factor is 0.5", "above 1"]),
    "an infinite factor": (scaled("linear", factor="Infinity"), ["model.rope.factor", "finite"]),
    "a factor of 1": (scaled("yarn", factor="1"), ['model.rope.factor is 1.0 with scaling "yarn"', 'scaling = "none"']),
    "a factor left out": (scaled("yarn", factor=""), ['model.rope.factor is 1.0 with scaling "yarn"']),
    "a factor without a scaling": (scaled("", original_seq_len=""), ['model.rope.factor is 4.0 with scaling "none"', "leave"]),
    "no trained length": (scaled("ntk", original_seq_len=""), ["model.rope.original_seq_len is not set", '"ntk" needs it']),
    "a trained length of 1": (scaled("ntk", original_seq_len="1"), ["model.rope.original_seq_len is 1", "at least 2"]),
    "betas in the wrong order": (
        scaled("yarn", beta_fast="1", beta_slow="32"),
        ["model.rope.beta_fast is 1.0", "above beta_slow = 32.0"],
    ),
    "llama3's factors in the wrong order": (
        scaled("llama3", high_freq_factor="1"),
        ["model.rope.high_freq_factor is 1.0", "above low_freq_factor = 1.0"],
    ),
    "an attention factor of 0": (scaled("yarn", attention_factor="0"), ["model.rope.attention_factor is 0.0", "above 0"]),
    "lists of the wrong length": (
        scaled("longrope", short_factor=ONES, long_factor=TWO),
        ["model.rope.long_factor has 2 numbers", "head_dim / 2 = 4"],
    ),
    "lists left out": (scaled("longrope"), ["model.rope.short_factor has 0 numbers", "model.rope.long_factor has 0 numbers"]),
    "lists below 0": (scaled("longrope", short_factor="[1,1,1,-1]", long_factor=ONES), ["short_factor", "above 0"]),
    "a factor too small for the rows": (
        scaled("yarn", factor="2"),
        ["model.rope.factor is 2", "2 x original_seq_len = 32 tokens", "training.seq_len is 64: set factor = 4"],
    ),
    "dynamic where it does nothing": (
        scaled("dynamic_ntk", original_seq_len="64"),
        ['"dynamic_ntk"', "training.seq_len = 64", "original_seq_len = 64", 'or set scaling = "none"'],
    ),
    "a scaling of rows that need none": (
        scaled("yarn", original_seq_len="64"),
        ['"yarn"', "beyond model.rope.original_seq_len = 64", "training.seq_len is 64: raise seq_len", "initial_load_path"],
    ),
    "rows too short for any pair to turn": (
        scaled("yarn", original_seq_len="4", factor="16", beta_slow="9"),
        ["model.rope.original_seq_len is 4", "beta_slow = 9", "a ramp from pair 0 to pair -1", 'set ramp = "paper"'],
    ),
    "an option of another scaling": (
        scaled("linear", beta_fast="16"),
        ['model.rope.beta_fast is 16.0 with scaling "linear"', '"ntk_by_parts" or "yarn"', "leave beta_fast out"],
    ),
    "a list of another scaling": (scaled("yarn", long_factor=ONES), ["model.rope.long_factor", 'scaling = "longrope"']),
    "what Hugging Face lacks": (
        (*scaled("ntk_mixed"), "--checkpoint.last_save_in_hf", "true"),
        ["no Hugging Face class computes what this model does", 'model.rope.scaling is "ntk_mixed"'],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    overrides, expected = REFUSED[case]
    message = refusal(capsys, write_job(tmp_path), *overrides)
    for part in expected:
        assert part in message


def test_a_run_begins_from_shorter_rows_and_says_how_they_were_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained on 16 tokens, gone on with 64 and YaRN; resumed only as it is; begun from again only with its trained
    length.
    """
    config = write_job(tmp_path, steps=2)
    short = tmp_path / "short"
    train_here(config, "--job.dump_folder", str(short), "--training.seq_len", "16")
    begin = ("--checkpoint.initial_load_path", str(short / "checkpoint" / "step-2"))
    message = refusal(
        capsys,
        config,
        *begin,
        "--model.rope.factor",
        "4",
        *YARN[:2],
        "--model.rope.original_seq_len",
        "16",
        "--training.seq_len",
        "65",
        "--data.lanes",
        "1",
    )
    assert "set factor = 4.0625" in message

    train_here(config, *begin, *YARN)
    said = capsys.readouterr().out
    assert f"weights from {short}/checkpoint/step-2" in said
    assert "warning: model.rope.original_seq_len" not in said
    assert len(metrics(config)) == 2
    rope = read(tmp_path / "run" / "checkpoint" / "step-2").state.model.rope
    assert (rope.scaling, rope.factor, rope.original_seq_len) == ("yarn", 4.0, 16)

    more = ("--training.steps", "3")
    message = refusal(capsys, config, *more)
    for row in ("rope.scaling", "rope.factor", "rope.original_seq_len"):
        assert row in message
    assert "'yarn'" in message
    assert "rope.theta" not in message
    train_here(config, *more, *YARN)
    assert "resumed from" in capsys.readouterr().out

    again = ("--checkpoint.initial_load_path", str(tmp_path / "run" / "checkpoint" / "step-3"))
    again = (*again, "--job.dump_folder", str(tmp_path / "again"))
    message = refusal(capsys, config, *again)
    assert "rope.scaling" in message, "a default is not another choice"
    message = refusal(capsys, config, *again, *YARN[:4], "--model.rope.original_seq_len", "32")
    assert "was first trained on rows of another length" in message
    assert "model.rope.original_seq_len | 16         | 32" in message
    train_here(config, *again, *YARN[:2], "--model.rope.factor", "8", *YARN[4:], "--training.seq_len", "128")
    assert "weights from" in capsys.readouterr().out

    other = ("--job.dump_folder", str(tmp_path / "other"))
    short_rows = ("--training.seq_len", "16")
    message = refusal(capsys, config, *begin, *other, *YARN, *short_rows)
    assert "training.seq_len is 16: raise seq_len" in message, "its weights know no YaRN"
    message = refusal(capsys, config, *begin, *other, *YARN, "--checkpoint.initial_load_model_only", "false")
    assert "with checkpoint.initial_load_model_only = true: weights alone may begin with these" in message
    known = ("--checkpoint.initial_load_path", str(tmp_path / "run" / "checkpoint" / "step-3"))
    train_here(config, *known, "--job.dump_folder", str(tmp_path / "tuned"), *YARN, *short_rows)
    assert "weights from" in capsys.readouterr().out

    assert "rope.theta | 10000.0" in refusal(capsys, config, *begin, *other, "--model.preset", "llama3_8b", *SHAPE)
    train_here(config, *begin, *other, "--model.rope.theta", "500000", "--model.rope.original_seq_len", "8")
    said = capsys.readouterr().out
    assert "warning: model.rope.original_seq_len is 8" in said
    assert "its own rows had 16 tokens" in said


def test_a_resumed_run_keeps_angles_that_follow_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows may change where the table does not: of longrope, not across the trained length."""
    dynamic, longrope = write_job(tmp_path / "dynamic", steps=1), write_job(tmp_path / "longrope", steps=1)
    more = ("--training.steps", "2", "--data.on_change", "restart", "--training.seq_len")
    train_here(dynamic, *scaled("dynamic_ntk"))
    message = refusal(capsys, dynamic, *scaled("dynamic_ntk"), *more, "128")
    assert 'those of model.rope.scaling "dynamic_ntk" follow the length of rows' in message
    assert "training.seq_len | 64         | 128" in message
    assert "set training.seq_len = 64; to go on from its weights alone" in message

    lists = scaled("longrope", factor="8", short_factor=ONES, long_factor="[2,2,2,2]")
    train_here(longrope, *lists)
    assert "training.seq_len | 64         | 16" in refusal(capsys, longrope, *lists, *more, "16")
    train_here(longrope, *lists, *more, "128")
    assert "resumed from" in capsys.readouterr().out


# what the job leaves to its preset, as "debug" has it
SHAPE = ("--model.vocab_size", "512", "--model.norm_eps", "1e-5", "--model.tie_embeddings", "false", "--model.qk_norm", "false")
