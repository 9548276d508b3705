"""All mistakes are told in one message, one line each, whichever check finds them, however early."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import tomli_w
from cistron.tests.helpers.jobs import refusal, write_job
from cistron.tools.cli import run
from cistron.trainer.config import SINKS, load_config
from cistron.trainer.errors import ConfigError
from cistron.trainer.start import Launch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DEBUG = Path(__file__).resolve().parents[3] / "train_configs" / "debug.toml"
# What is planted in a TOML, and the keys that the lines about it begin with.
MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a word for a number": ({"optimizer": {"lr": "fast"}}, ["optimizer.lr = 'fast'"]),
    "a number out of its range": ({"metrics": {"log_freq": 0}}, ["metrics.log_freq = 0"]),
    "neither of two types": ({"activation_checkpoint": {"selective_ac_option": 1.5}}, ["activation_checkpoint.selective_ac"]),
    "an unknown key": ({"training": {"stepz": 3}}, ["training.stepz: unknown key"]),
    "an unknown table": ({"warmup": {"steps": 8}}, ["warmup: unknown key"]),
    "a word for a table": ({"profiling": "yes"}, ["profiling = 'yes'"]),
    "an unknown choice": ({"lr_scheduler": {"decay_type": "cosin"}}, ["lr_scheduler.decay_type = 'cosin'"]),
    "an unknown preset": ({"model": {"preset": "debgu"}}, ["model.preset = 'debgu'"]),
    "wrong elements of a list": (
        {"eval": {"extrapolation": {"passkey": {"depths": [2.0, 0.5, 3.0]}}}},
        ["eval.extrapolation.passkey.depths.0 = 2.0", "eval.extrapolation.passkey.depths.2 = 3.0"],
    ),
    "a source without a key": (
        {"validation": {"sources": [{"name": "held out", "format": "text"}]}},
        ["validation.sources.0.paths: missing"],
    ),
    "keys of one table": ({"fine_tuning": {"lora": {"alpha": 2.0}}}, ["fine_tuning.lora.alpha = 2.0"]),
    "keys of two tables": ({"head": {"classes": ["a", "b"]}}, ["head: is not read"]),
    "a tokenizer without its file": (
        {"tokenizer": {"kind": "hf", "path": "/nowhere"}},
        ["tokenizer.path: there is no tokenizer.json at /nowhere"],
    ),
    "the layout": ({"parallelism": {"context_parallel_degree": 2}}, ["parallelism: replicate 1"]),
    "what the layout cannot divide": ({"data": {"num_workers": 3}}, ["data.lanes = 8"]),
    "the device": ({"comm": {"trace_buf_size": 8}}, ["comm.trace_buf_size = 8"]),
    "the end": ({"checkpoint": {"enable": False, "last_save_in_hf": True}}, ["checkpoint.last_save_in_hf = true"]),
    "no file of plug-ins": ({"job": {"plugins": ["no_such_module"]}}, ["job.plugins: 'no_such_module'"]),
}


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Tables key by key."""
    both = {key: merged(base[key], over[key]) for key in base.keys() & over.keys() if isinstance(base[key], dict)}
    return {**base, **over, **both}


def lines_of(message: str) -> list[str]:
    """The lines of a message but its first, which must count them."""
    first, *lines = message.rstrip().split("\n  ")
    assert f"{len(lines)} mistake(s)" in first
    return lines


def planted(folder: Path, names: set[str] | list[str]) -> tuple[str, list[str]]:
    """A TOML with these mistakes, and how the lines about them begin."""
    values: dict[str, Any] = {}
    for name in names:
        values = merged(values, MISTAKES[name][0])
    path = folder / "mistakes.toml"
    path.write_text(tomli_w.dumps({"extends": str(folder / "job.toml"), **values}))
    return str(path), [beginning for name in names for beginning in MISTAKES[name][1]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a job is."""
    return write_job(tmp_path_factory.mktemp("mistakes")).parent


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.sets(st.sampled_from(sorted(MISTAKES)), min_size=1).filter(
        lambda names: not {"an unknown preset", "no file of plug-ins"} <= names  # which might have added it
    )
)
def test_so_many_mistakes_so_many_lines_each_with_its_key(folder: Path, names: set[str]) -> None:
    path, beginnings = planted(folder, names)
    with patch("torch.cuda.is_available", return_value=False), pytest.raises(ConfigError) as caught:
        load_config([path], further=Launch(1).complaints)
    lines = lines_of(str(caught.value))
    assert len(lines) == len(beginnings)
    for beginning in beginnings:
        assert sum(line.startswith(beginning) for line in lines) == 1, (beginning, lines)


def test_eight_mistakes_of_a_toml_are_eight_lines_of_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a word for a number", "an unknown key", "an unknown preset", "keys of two tables", "the layout"]
    names += ["a tokenizer without its file", "the device"]
    path, beginnings = planted(folder, names)
    source = [{"name": "a", "format": "jsonl", "paths": [str(folder / "corpus" / "*.jsonl")], "label": "kind"}]
    message = refusal(capsys, Path(path), "--data.sources", json.dumps(source))
    lines = lines_of(message)
    assert len(lines) == 8
    for beginning in (*beginnings, "data.sources.0.label = 'kind': training.objective = \"causal\" reads no labels"):
        assert sum(line.startswith(beginning) for line in lines) == 1, (beginning, lines)


def test_what_took_four_rounds_takes_one(capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "world-size": "2",
        "parallelism.tensor_parallel_degree": "2",
        "training.seq_len": "511",
        "metrics.enable_wandb": "true",
        "optimizer.name": "Muon",
        "fine_tuning.freeze": '["layers.*"]',
        "model.attention.executor": "flex",
    }
    with pytest.raises(SystemExit) as caught:
        run("check", [str(DEBUG), *(word for key, value in options.items() for word in (f"--{key}", value))])
    assert caught.value.code == 2
    lines = lines_of(capsys.readouterr().err)
    for beginning in (
        "training.seq_len = 511: must be a multiple of 2",
        "metrics.enable_wandb = true: the package wandb is not installed",
        'optimizer.name = "Muon": it is for the matrices of the blocks',
        "model.attention.executor",
    ):
        assert sum(line.startswith(beginning) for line in lines) == 1, (beginning, lines)
    assert len(lines) == 4


def test_mistakes_of_the_command_line_hide_no_others(folder: Path) -> None:
    path, beginnings = planted(folder, ["an unknown table", "keys of two tables"])
    words = [
        "--training.stps",
        "7",
        path,
        "--training.seed",
        "x",
        "--optimizer.betas",
        "--model.rope",
        "8",
        "--data.stages",
        "[{",
    ]
    with pytest.raises(ConfigError) as caught:
        load_config([*words, "--data.stages", "[{", "more.toml", "--training.gc_freq"], further=Launch(1).complaints)
    lines = lines_of(str(caught.value))
    beginnings += [
        "command line: unknown option --training.stps, did you mean '--training.steps'?",
        "training.seed = 'x'",
        "command line: unknown option --optimizer.betas",
        "command line: --model.rope 8: it is a table",
        "command line: Parsing error encountered for data.stages",
        "command line: unrecognized arguments: more.toml",
        "command line: argument --training.gc_freq: expected one argument",
    ]
    assert len(lines) == len(beginnings)
    for beginning in beginnings:
        assert sum(line.startswith(beginning) for line in lines) == 1, (beginning, lines)


def test_what_may_follow_from_a_mistake_is_not_told_beside_it(folder: Path) -> None:
    (folder / "follows.toml").write_text(
        f'extends = "{folder}/job.toml"\n[validation]\nenable = true\nsource = []\n[mlm]\nmask_rate = 0.2\n'
        '[training]\nobjective = "mml"\n[checkpoint]\ninterval = "7"\nkeep_every_n = 14\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_config([str(folder / "follows.toml")], further=Launch(1).complaints)
    lines = lines_of(str(caught.value))
    assert [line.split(" ")[0] for line in lines] == ["training.objective", "checkpoint.interval", "validation.source:"]


def test_a_file_that_cannot_be_read_hides_no_mistake_of_the_command_line(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([str(folder / "nowhere.toml"), "--training.seed", "x", "--training.stps"], further=Launch(1).complaints)
    assert len(lines_of(str(caught.value))) == 3


def test_the_configuration_is_printed_although_it_does_not_fit_the_machine(folder: Path) -> None:
    _, options = load_config(
        [str(folder / "job.toml"), "--comm.trace_buf_size", "8", "--print-config"], further=Launch(1).complaints
    )
    assert options.print_config


def test_a_shipped_configuration_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(["debug"])[0] == load_config([str(DEBUG)])[0]
    (tmp_path / "mine.toml").write_text('extends = "debug"\n[training]\nsteps = 3\n')
    assert load_config(["--config", "mine.toml"])[0].model == load_config(["debug"])[0].model
    with pytest.raises(ConfigError, match=r"debgu: no such file.*did you mean 'debug'\?"):
        load_config(["debgu"])
    (tmp_path / "debug").write_text("[training]\nsteps = 4\n[[data.sources]]\nname = 'a'\nformat = 'text'\npaths = ['x']\n")
    assert load_config(["debug"])[0].training.steps == 4


def test_a_plug_in_of_the_toml_is_imported_before_its_names_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugin_of_a_test.py").write_text(
        "from cistron.trainer.config import SINKS\n"
        "from cistron.trainer.metrics import Sink\n"
        '@SINKS.add("nothing", says="records go nowhere")\n'
        "class Nothing(Sink): ...\n"
    )
    toml = tmp_path / "job.toml"
    toml.write_text('[job]\nplugins = ["plugin_of_a_test"]\n[metrics]\nsinks = ["nothing"]\n')
    with pytest.raises(ConfigError, match="plugin_of_a_test") as caught:
        load_config([str(toml)])
    assert len(lines_of(str(caught.value))) == 1, "that it knows no such sink may follow from that"
    monkeypatch.syspath_prepend(tmp_path)
    for registered in (SINKS._says, SINKS._parts):
        monkeypatch.setattr(SINKS, "_says" if registered is SINKS._says else "_parts", dict(registered))
    try:
        assert load_config([str(toml)])[0].metrics.sinks == ["nothing"]
        toml.write_text(toml.read_text().replace('["nothing"]', '["nothin"]'))
        with pytest.raises(ConfigError, match=r"metrics.sinks.0 = 'nothin'.*did you mean 'nothing'\?"):
            load_config([str(toml)])
        with pytest.raises(SystemExit):
            load_config([str(toml), "--help"])
        assert "nothing: records go nowhere" in capsys.readouterr().out
    finally:
        sys.modules.pop("plugin_of_a_test", None)


def test_a_plug_in_on_a_disk_that_is_away_may_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = tmp_path / "mount"
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{away}")
    argv = ["--job.plugins", '["cistron_is_away.parts"]']
    with pytest.raises(ConfigError, match=f"PYTHONPATH names {away}, which is not there") as caught:
        load_config(argv)
    assert caught.value.passing, "a launcher's restart tries it again"
    away.mkdir()
    with pytest.raises(ConfigError, match="No module named 'cistron_is_away'") as caught:
        load_config(argv)
    assert not caught.value.passing
