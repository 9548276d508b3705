"""`import cistron`: quick, typed, and every example in its docstrings runs as written."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import cistron
import pytest
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.tests.helpers.jobs import write_job
from cistron.tests.helpers.models import CAUSAL, ENCODER, PROTEIN, write_checkpoint
from cistron.trainer.inference import OpenedModel

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FUNCTIONS = ("open_model", "embed", "score", "sample", "train")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the examples have it: a checkpoint of a tiny model of DNA, and the TOML of a job of three steps."""
    folder = tmp_path_factory.mktemp("notebook")
    dna = build_tokenizer(TokenizerConfig(kind="dna"))
    write_checkpoint(folder / "outputs" / "dna" / "checkpoint" / "step-1", CAUSAL.replace(vocab_size=dna.vocab_size), dna)
    write_job(folder, steps=3).rename(folder / "words.toml")
    return folder


def test_importing_it_is_quick_and_loads_neither_torch_nor_pydantic() -> None:
    code = "import sys, cistron; print(*sorted({'torch', 'pydantic', 'numpy'} & sys.modules.keys()), cistron.__version__)"
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [cistron.__version__]
    (line,) = [line for line in done.stderr.splitlines() if line.endswith("| cistron")]
    assert int(line.split("|")[1]) < 300_000, "microseconds, with what it imports"


def test_it_offers_what_it_names_and_nothing_else() -> None:
    assert set(dir(cistron)) == set(cistron.__all__)
    assert all(getattr(cistron, name) is not None for name in cistron.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        cistron.trian  # noqa: B018


def test_the_package_says_that_it_is_typed() -> None:
    root = Path(cistron.__file__).parent
    assert (root / "py.typed").is_file()
    data = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in data["cistron"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_docstring_runs_as_written(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {name: getattr(cistron, name) for name in cistron.__all__}
    examples = doctest.DocTestParser().get_examples(getattr(cistron, name).__doc__)
    assert len(examples) >= 2
    for example in examples:
        with redirect_stdout(StringIO()):  # what training prints is no result
            if example.want:
                assert repr(eval(example.source, names)) == example.want.strip()
            else:
                exec(example.source, names)


def test_a_job_that_python_puts_together_trains_as_its_toml_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    tables = tomllib.loads((folder / "words.toml").read_text())
    tables["job"]["dump_folder"] = "outputs/of_python"
    run = cistron.train(cistron.JobConfig.model_validate(tables))
    assert (run.folder, run.step, run.metrics["step"]) == (Path("outputs/of_python"), 3, 3)
    by_path = cistron.train(str(folder / "words.toml"))
    assert run.metrics["loss"] == by_path.metrics["loss"]


MISTAKES: dict[str, tuple[Callable[[OpenedModel], object], str]] = {
    "one text": (lambda model: cistron.embed(model, "ACGT", layer="norm"), "give a list of them"),
    "an empty sequence": (lambda model: cistron.score(model, ["ACGT", ""]), r"sequences\[1\]"),
    "a letter that is none": (lambda model: cistron.score(model, ["AC!T"]), r"sequences\[0\], byte 2"),
    "no such layer": (lambda model: cistron.embed(model, ["A"], layer="layers.7"), "the model has no such layer"),
    "no prompt": (lambda model: cistron.sample(model, ""), "prompt: has no tokens"),
    "a temperature": (lambda model: cistron.sample(model, "A", temperature=math.nan), "temperature = nan"),
    "no such file": (lambda model: cistron.open_model("nowhere"), "nowhere: not a complete checkpoint"),
    "no such type": (lambda model: cistron.open_model("nowhere", dtype="float64"), "dtype = 'float64': must be one of"),
    "no such device": (lambda model: cistron.open_model("nowhere", device="tpu"), "device = 'tpu'"),
    "no such job": (lambda model: cistron.train("debgu"), "did you mean 'debug'"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_a_user_error(folder: Path, case: str) -> None:
    model = cistron.open_model(folder / "outputs" / "dna" / "checkpoint")
    ask, expected = MISTAKES[case]
    with pytest.raises(cistron.UserError, match=expected):
        ask(model)


def test_a_bidirectional_model_scores_by_hiding_and_does_not_continue(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-1", ENCODER, PROTEIN, training={"objective": "mlm", "seq_len": 64})
    (score,) = cistron.score(path, ["MKV"])
    assert (score.residues, score.tokens) == (3, 3)
    with pytest.raises(cistron.UserError, match="cannot generate"):
        cistron.sample(path, "MKV")
