"""Hugging Face folders with values that no model has: each is refused by file and key, and nothing is built of it."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cistron.base import UserError
from cistron.datasets.tokenizers import TokenizerConfig, build_tokenizer
from cistron.tests.drills.fuzzed_kinds import make_kinds
from cistron.trainer.checkpoints import Folder
from cistron.trainer.huggingface import HuggingFaceFolder

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 17082734\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    make_kinds(folder, ["hf"])
    return folder / "hf" / "model"


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refused(folder: Path) -> str:
    began = time.monotonic()
    with pytest.raises(UserError) as caught:
        HuggingFaceFolder.open(Folder(folder)).found()
    assert time.monotonic() - began < 10
    return str(caught.value)


def put(file: str, key: str, value: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**content, key: value}))

    return change


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


CASES = {
    "rope_scaling a list": (put("config.json", "rope_scaling", [1, 2]), "rope_scaling is [1, 2]"),
    "rope_type a list": (put("config.json", "rope_scaling", {"rope_type": []}), "rope_type is []"),
    "rope_theta not a number": (put("config.json", "rope_parameters", {"rope_theta": float("nan")}), "the number NaN"),
    "rope_theta too large": (put("config.json", "rope_parameters", {"rope_theta": 1e300}), "theta is 1e+300"),
    "longrope without lists": (
        put("config.json", "rope_scaling", {"rope_type": "longrope", "factor": 2.0, "short_factor": 3, "long_factor": 3}),
        "short_factor is 3; it must be a list",
    ),
    "eos a text": (put("config.json", "eos_token_id", "2"), "eos_token_id is '2'; it must be an integer"),
    "eos beyond every id": (put("generation_config.json", "eos_token_id", 2**32), "eos_token_id is 4294967296"),
    "weight_map a list": (put("model.safetensors.index.json", "weight_map", ["a"]), "weight_map is ['a']"),
    "weight_map of numbers": (put("model.safetensors.index.json", "weight_map", {"a": 3}), "weight_map is {'a': 3}"),
    "a file's name too long": (put("model.safetensors.index.json", "weight_map", {"a": "n" * 5000}), "there is no nnn"),
    "ten million layers": (put("config.json", "num_hidden_layers", 10**7), "n_layers is 10000000"),
    "layers a text": (put("config.json", "num_hidden_layers", "2"), "num_hidden_layers is '2'"),
    "no heads": (put("config.json", "num_attention_heads", 0), "num_attention_heads is 0; it must be an integer above 0"),
    "an embedding of 2^40 rows": (put("config.json", "vocab_size", 2**40), "vocab_size is 1099511627776"),
    "positions beyond": (put("config.json", "max_position_embeddings", 10**12), "max_position_embeddings is 1000000000000"),
    "norm a list": (put("config.json", "rms_norm_eps", [1]), "rms_norm_eps is [1]"),
    "tied by a word": (put("config.json", "tie_word_embeddings", "false"), "tie_word_embeddings is 'false'"),
    "architectures a number": (put("config.json", "architectures", 3), "architectures is 3"),
    "architectures of lists": (put("config.json", "architectures", [[]]), "architectures is [[]]"),
    "layer_types a number": (put("config.json", "layer_types", 3), "layer_types is 3"),
    "config nested deeply": (write("config.json", '{"a":' * 100_000), "nested more than 64 deep"),
    "config with a long integer": (write("config.json", '{"a": ' + "9" * 50_000 + "}"), "an integer of 50000 digits"),
    "config a list": (write("config.json", "[]"), "config.json: holds a list"),
    "config of latin-1": (lambda folder: (folder / "config.json").write_bytes(b'{"a": "\xe9"}'), "is not UTF-8"),
    "config a pointer": (write("config.json", LFS), "pointer of git-lfs"),
    "tokenizer.json a pointer": (write("tokenizer.json", LFS), "tokenizer.json: this is a pointer of git-lfs"),
    "tokenizer.json's model a list": (write("tokenizer.json", '{"model": []}'), "is not a tokenizer.json"),
    "settings a list": (write("tokenizer_config.json", "[]"), "tokenizer_config.json: holds a list"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_no_model_has_is_refused_by_its_key(model: Path, case: str) -> None:
    change, problem = CASES[case]
    change(model)
    if "settings" in case:  # which the tokenizers of the Hugging Face library alone read
        table = TokenizerConfig(kind="hf", path=str(model))
        with pytest.raises(UserError, match=problem.replace("[", r"\[")):
            build_tokenizer(table)
        return
    assert problem in refused(model)


def test_weights_that_are_a_pointer_say_so(model: Path) -> None:
    next(model.glob("model-*.safetensors")).write_text(LFS)
    assert "git lfs pull" in refused(model)


def test_a_link_that_leads_nowhere_is_no_file_of_weights(model: Path) -> None:
    (model / "old.safetensors").symlink_to(model / "gone")
    HuggingFaceFolder.open(Folder(model))
