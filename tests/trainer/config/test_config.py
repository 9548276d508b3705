"""The configuration: strict, complete about mistakes, and readable back from what it prints."""

import dataclasses
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cistron.datasets.config import Stage
from cistron.datasets.readers import SourceConfig
from cistron.trainer.config import JobConfig, load_config
from cistron.trainer.errors import ConfigError
from cistron.trainer.optim import learning_rate
from cistron.trainer.processes import Layout
from hypothesis import given
from hypothesis import strategies as st

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCE = '[[data.sources]]\nname = "a"\nformat = "text"\npaths = ["x"]\n'


def write(folder: Path, text: str, name: str = "job.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def mistakes(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(["--config", write(folder, text), *overrides])
    return str(caught.value)


def test_overrides_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "[training]\nsteps = 3\nseq_len = 64\n" + SOURCE)
    config, _ = load_config(["--config", path, "--training.steps", "7", "--optimizer.lr", "3e-4", "--compile.enable", "true"])
    assert (config.training.steps, config.training.seq_len, config.training.local_batch_size) == (7, 64, 8)
    assert config.optimizer.lr == 3e-4
    assert config.compile.enable is True


def test_every_mistake_of_a_file_is_reported_at_once_with_its_key_and_the_nearest_name(tmp_path: Path) -> None:
    message = mistakes(
        tmp_path,
        '[training]\nstepz = 3\nsteps = "7"\nseq_len = 1\n[modle]\nx = 1\n[model]\nattention = "sdpa"\n'
        '[[data.sources]]\nname = "a"\nformat = "jsonll"\npath = "q"\n',
    )
    assert "8 mistake(s)" in message
    for part in (
        "training.stepz: unknown key, did you mean 'steps'?",
        "training.steps = '7': input should be a valid integer",
        "training.seq_len = 1: input should be greater than or equal to 2",
        "model.attention = 'sdpa': it is a table; write [model.attention] executor = \"sdpa\"",
        "modle: unknown key, did you mean 'model'?",
        "data.sources.0.format = 'jsonll': no such format, did you mean 'jsonl'?",
        "data.sources.0.path: unknown key, did you mean 'paths'?",
        "data.sources.0.paths: missing",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("key", "word", "options"),
    [
        ("model.attention", "flex", "--model.attention.executor flex"),
        ("model.rope", "8", "--model.rope.theta, --model.rope.scaling"),
        ("job", "outputs/a", "--job.dump_folder, --job.description"),
    ],
)
def test_a_word_for_a_table_is_answered_with_the_options_of_its_keys(key: str, word: str, options: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([f"--{key}", word, "--head", '{"pool": "mean"}', "--validation", "x"])
    assert f"--{key} {word}: it is a table, whose keys are options of their own: {options}" in str(caught.value)
    assert "--head" not in str(caught.value)


def test_every_mistake_in_the_stages_of_a_mixture_is_reported_with_its_key(tmp_path: Path) -> None:
    b = SOURCE.replace('"a"', '"b"') + "weight = 0\n"
    stages = "".join(
        f"[[data.stages]]\nstep = {step}\nweights = {weights}\n"
        for step, weights in ((9, "{ a = 1, q = 2 }"), (9, "{ a = 0.0 }"), (3, "{ a = 1 }"))
    )
    message = mistakes(tmp_path, SOURCE + b + stages)
    for part in (
        "data.sources.1.weight = 0.0: no stage gives 'b' another one",
        "data.stages.0.weights.q: no source of this name; there are: a, b",
        "data.stages.1.step = 9: must come after step 9",
        "data.stages.1.weights: name at least one source",
        "data.stages.2.step = 3: must come after step 9",
    ):
        assert part in message
    assert "5 mistake(s)" in message
    assert "data.stages.0.step = 1" in mistakes(tmp_path, SOURCE + "[[data.stages]]\nstep = 1\nweights = { a = 1 }\n")
    assert "data.stages.0.weights.a = -1" in mistakes(tmp_path, SOURCE + "[[data.stages]]\nstep = 2\nweights = { a = -1 }\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SOURCE + SOURCE, "data.sources: names must differ, found ['a', 'a']"),
        (SOURCE + "weight = 0.0\n", "data.sources.weight: all are 0"),
        (SOURCE + "weight = -1.0\n", "data.sources.0.weight = -1.0"),
        (SOURCE + "max_epochs = 0\n", "data.sources.0.max_epochs = 0"),
        (
            '[data]\nlayout = "padded"\npacking = "concat"\n' + SOURCE,
            'data.packing = "concat": a padded row holds one document',
        ),
    ],
)
def test_sources_that_make_no_sense_together_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in mistakes(tmp_path, text)


@pytest.mark.parametrize("order", [("FILE", "--training.steps", "7"), ("--training.steps", "7", "FILE")])
def test_the_file_may_come_before_or_after_the_options(tmp_path: Path, order: tuple[str, ...]) -> None:
    path = write(tmp_path, SOURCE)
    config, options = load_config([path if word == "FILE" else word for word in order])
    assert (config.training.steps, options.config, config.data.sources[0].name) == (7, path, "a")
    with pytest.raises(ConfigError, match="two config files"):
        load_config([path, "--config", path])
    with pytest.raises(ConfigError, match=r"unrecognized arguments: other.toml"):
        load_config([path, "other.toml"])


def test_a_misspelt_override_is_refused_with_the_nearest_name_even_when_it_is_a_prefix(tmp_path: Path) -> None:
    message = mistakes(tmp_path, SOURCE, "--training.step", "3")
    assert "unknown option --training.step, did you mean '--training.steps'?" in message


def test_an_override_of_the_wrong_type_names_key_and_value(tmp_path: Path) -> None:
    assert "training.steps = 'many'" in mistakes(tmp_path, SOURCE, "--training.steps", "many")


def test_environment_variables_do_not_change_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINING", '{"steps": 5}')
    assert load_config(["--config", write(tmp_path, SOURCE)])[0].training.steps == JobConfig().training.steps


def test_extends_merges_tables_key_by_key_and_replaces_lists(tmp_path: Path) -> None:
    write(tmp_path, "[training]\nsteps = 5\nseq_len = 64\n" + SOURCE, "base.toml")
    middle = '[training]\nsteps = 6\n[[data.sources]]\nname = "b"\nformat = "fasta"\npaths = ["y"]\n'
    write(tmp_path, 'extends = "base.toml"\n' + middle, "middle.toml")
    config, _ = load_config(["--config", write(tmp_path, 'extends = "middle.toml"\n[model]\ndim = 8\n')])
    assert (config.training.steps, config.training.seq_len, config.model.dim) == (6, 64, 8)
    assert [s.name for s in config.data.sources] == ["b"]


def test_extends_in_a_circle_and_a_missing_base_are_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "job.toml"\n', "other.toml")
    assert "goes in a circle" in mistakes(tmp_path, 'extends = "other.toml"\n')
    assert "nowhere.toml: cannot be read" in mistakes(tmp_path, 'extends = "nowhere.toml"\n')


def test_a_file_that_is_not_toml_is_refused_with_the_place(tmp_path: Path) -> None:
    assert "not valid TOML" in mistakes(tmp_path, "[training\nsteps = 3")
    assert "line 1" in mistakes(tmp_path, "[training\nsteps = 3")


@given(
    steps=st.integers(1, 10**9),
    lr=st.floats(1e-12, 1e3),
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    eos=st.none() | st.integers(1, 10**6),
    weight=st.floats(1e-3, 1e3),
    step=st.integers(2, 10**6),
)
def test_the_printed_configuration_reads_back_to_the_same_job(
    steps: int, lr: float, text: str, eos: int | None, weight: float, step: int
) -> None:
    config = JobConfig(
        job={"description": text},
        model={"eos_id": eos},
        training={"steps": steps},
        optimizer={"lr": lr},
        data={
            "sources": [
                {
                    "name": text or "a",
                    "format": "text",
                    "paths": ["/" + text.replace("\0", "")],
                    "weight": weight,
                    "max_epochs": eos,
                }
            ],
            "stages": [{"step": step, "weights": {text or "a": weight}}],
        },
    )
    assert JobConfig(**tomllib.loads(config.to_toml())) == config


def test_help_documents_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load_config(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, table in JobConfig.model_fields.items():
        for key, field in getattr(table.annotation, "model_fields", {}).items():
            assert f"--{name}.{key}" in text
            assert field.description, f"{name}.{key} has no docstring"
            assert field.description.split(".")[0] in text
    for nested in (SourceConfig, Stage):  # lists of tables, which the command line takes as JSON
        assert all(field.description for field in nested.model_fields.values())


def test_help_shows_what_a_preset_decides_as_such_and_otherwise_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_config(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    shown = dict(re.findall(r"--([\w.]+) (?:(?!--[\w.]+ ).)*?\(default: ([^()]*)\)", text))
    for key in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "hidden_dim", "norm_eps", "qk_norm", "tie_embeddings"):
        assert shown[f"model.{key}"] == "the preset's"
    assert shown["model.rope.theta"] == "the preset's"
    assert shown["model.rope.scaling"] == "none"
    assert shown["model.attention.executor"] == "auto"
    for name, table in JobConfig.model_fields.items():
        for key, field in getattr(table.annotation, "model_fields", {}).items():
            if isinstance(field.default, (int, float)):
                assert shown[f"{name}.{key}"] == str(field.default)


def test_degrees_that_do_not_multiply_to_the_world_size_are_refused_with_the_arithmetic() -> None:
    config = JobConfig(parallelism={"tensor_parallel_degree": 2, "data_parallel_shard_degree": 3})
    with pytest.raises(ConfigError, match=r"replicate 1 x shard 3 x context 1 x tensor 2 = 6, but 4 process"):
        Layout.resolve(config, 4)
    config = JobConfig(parallelism={"tensor_parallel_degree": 2, "context_parallel_degree": 2})
    assert dataclasses.astuple(Layout.resolve(config, 8)) == (1, 2, 2, 2)


@pytest.mark.parametrize(("decay_type", "halfway"), [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - 0.5**0.5)])
def test_the_learning_rate_warms_up_stays_and_decays(decay_type: str, halfway: float) -> None:
    schedule = {"warmup_steps": 10, "decay_ratio": 0.4, "decay_type": decay_type, "min_lr_factor": 0.1}
    config = JobConfig(training={"steps": 100}, optimizer={"lr": 2.0}, lr_scheduler=schedule)
    rates = [learning_rate(config, step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[59] == 2.0
    assert rates[80] == pytest.approx(2.0 * (0.1 + 0.9 * halfway))
    assert 0.2 < rates[99] < rates[98]
    assert all(later <= earlier for earlier, later in pairwise(rates[9:]))


@pytest.mark.parametrize("other", [{"exclude_tags": True, "reverse_complement": 0.0}, {"reverse_complement": 0.25}])
def test_what_is_asked_for_documents_comes_from_the_toml(tmp_path: Path, other: dict[str, Any]) -> None:
    asked = {
        "lowercase_weight": 0.1, "exclude_tags": False, "exclude_degenerate": True, "uppercase": True,
        "long_documents": "window", "window_overlap": 16, **other,
    }  # fmt: skip
    path = write(tmp_path, tomli_w.dumps({"data": asked}) + SOURCE)
    config, _ = load_config(["--config", path])
    assert config.data.identity() == asked
